// The answers of inferences: inference.ModelInferResponse.
#ifndef ATTENTION_SERVER_INFERENCE_ANSWER_H_
#define ATTENTION_SERVER_INFERENCE_ANSWER_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/inference/request.h"
#include "server/response_encoder.h"
#include "wire/message_writer.h"

namespace attention::server {

// What the answer to the request `id` begins with.
wire::MessageWriter StartInferAnswer(absl::string_view id);

// Adds the computed tensors, those of `outputs` alone if it is not empty.
// Copies no payload, but for what goes to a region; uses up `encoder`.
//
// Errors: InvalidArgument with ErrorField(): a region has become smaller.
absl::Status AddOutputs(ResponseEncoder& encoder,
                        absl::Span<const InferOutput> outputs,
                        wire::MessageWriter& answer);

// Tells clients of a stream that no other answer to the same request follows.
void AddFinal(wire::MessageWriter& answer);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_ANSWER_H_
