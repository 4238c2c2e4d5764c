// Requests to send, and what came back in a form that tests compare.
#ifndef ATTENTION_TESTS_SUPPORT_MESSAGES_H_
#define ATTENTION_TESTS_SUPPORT_MESSAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "grpcpp/support/status.h"

namespace attention::testing {

// `values` as FLOAT32 in `data`, and in `float_values`.
v1::Tensor DataTensor(const std::vector<int64_t>& shape,
                      const std::vector<float>& values);
v1::Tensor FloatTensor(const std::vector<int64_t>& shape,
                       const std::vector<float>& values);

// A tensor of `type` in `data` with numbers between -1 and 1 that depend on
// `seed`; BOOL and integers get 0 and 1.
v1::Tensor RandomTensor(v1::DataType type, const std::vector<int64_t>& shape,
                        uint32_t seed);

// A valid request in layout BHSD: query (1, 2, 3, 4), key (1, 1, 5, 4), value
// (1, 1, 5, 2), FLOAT32.
v1::ComputeAttentionRequest SmallRequest();

// A tensor of BOOL as one of BITS.
v1::Tensor Packed(const v1::Tensor& bools);

// One head, `length` queries and keys of size 1: little to send, length^2 to
// compute.
v1::ComputeAttentionRequest LongRequest(int64_t length);

// The FLOAT32 numbers of `data`.
std::vector<float> FloatsOf(const v1::Tensor& tensor);

// The kernel's answer to `request`, called directly; its timing is empty. Only
// for valid requests with payloads in `data`.
v1::ComputeAttentionResponse KernelAnswer(
    const v1::ComputeAttentionRequest& request);

// The google.rpc details of a status.
struct Details {
  // Of google.rpc.BadRequest.
  std::string field;
  std::string description;
  // Of google.rpc.RetryInfo.
  std::optional<absl::Duration> retry_delay;
  // Of google.rpc.ErrorInfo.
  std::string reason;
  // Of google.rpc.QuotaFailure.
  std::string quota_subject;
  // Of google.rpc.ResourceInfo: the name.
  std::string resource;
};

// Fails the test if the details are malformed or disagree with the status.
Details DetailsOf(const grpc::Status& status);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_MESSAGES_H_
