// Requests of ComputeAttention as those of the Open Inference Protocol.
#ifndef ATTENTION_TESTS_SUPPORT_INFER_MESSAGES_H_
#define ATTENTION_TESTS_SUPPORT_INFER_MESSAGES_H_

#include <string>

#include "attention/v1/attention.pb.h"
#include "inference/inference.pb.h"

namespace attention::testing {

enum class Elements { kRaw, kNumbers };

// The same computation. Tensors have their elements in `data`; those of FLOAT16
// and BFLOAT16 can not be numbers.
inference::ModelInferRequest InferRequestOf(
    const v1::ComputeAttentionRequest& request,
    Elements elements = Elements::kRaw);

// The elements of the output `name`; fails the test if there is none.
std::string RawOutput(const inference::ModelInferResponse& response,
                      const std::string& name);

// `got` has the same output tensors as `wanted`, to the bit, and no others.
void ExpectSameOutputs(const inference::ModelInferResponse& got,
                       const v1::ComputeAttentionResponse& wanted);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_INFER_MESSAGES_H_
