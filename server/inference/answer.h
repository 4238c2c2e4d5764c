// The answers of inferences: inference.ModelInferResponse.
#ifndef ATTENTION_SERVER_INFERENCE_ANSWER_H_
#define ATTENTION_SERVER_INFERENCE_ANSWER_H_

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/response_encoder.h"
#include "wire/message_writer.h"

namespace attention::server {

// What the answer to the request `id` begins with.
wire::MessageWriter StartInferAnswer(absl::string_view id);

// Adds the computed tensors, those of `outputs` alone if it is not empty:
// numbers of fields of ComputeAttentionResponse. Copies no payload; uses up
// `encoder`.
void AddOutputs(ResponseEncoder& encoder, absl::Span<const int> outputs,
                wire::MessageWriter& answer);

// Tells clients of a stream that no other answer to the same request follows.
void AddFinal(wire::MessageWriter& answer);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_ANSWER_H_
