// The bodies of an inference over HTTP, as the Open Inference Protocol (KServe
// v2) has them: JSON, behind which may stand the bytes of tensors.
#ifndef ATTENTION_SERVER_HTTP_INFER_BODY_H_
#define ATTENTION_SERVER_HTTP_INFER_BODY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/http/http_server.h"

namespace attention::server {

// A ModelInferRequest, and how its answer is to be written.
struct InferBody {
  // Owns the body, whose bytes are tensors of it.
  grpc::ByteBuffer request;
  // Outputs that are wanted as bytes (true) or as numbers, and what holds for
  // those that are not named.
  std::set<std::string> binary, numbers;
  bool binary_by_default = false;
};

// `json_bytes`: where the JSON ends and bytes begin (the header
// Inference-Header-Content-Length), if that is told. Numbers in JSON become raw
// bytes of their datatype; INT64 only takes those below 2^53 in size, which
// every JSON library keeps exact.
//
// Everything is read in one pass, which ends at the first error. Memory is at
// most 6 times the JSON's bytes, or 1 MiB where that is more, with the body
// itself counted: each element is held in 8 bytes until its input ends, and
// takes two bytes of JSON or more. Throws std::bad_alloc, and keeps nothing
// then.
//
// Errors: InvalidArgument that names the input or the part of the JSON: for
// what the protocol does not have there, members that are given twice, numbers
// that the datatype does not hold, and more tensors, parameters
// (wire/infer_request.h), sizes of a shape (32), nested lists and objects (12)
// or bytes of one text (64 KiB) than there may be.
absl::StatusOr<InferBody> ReadInferBody(std::string body,
                                        std::optional<int64_t> json_bytes,
                                        absl::string_view model,
                                        absl::string_view version);

// A ModelInferResponse as an HTTP response: 200, with
// Inference-Header-Content-Length where there are bytes. A number is the
// shortest text that is read back as it; what is not finite is the string
// "NaN", "Infinity" or "-Infinity". Memory, with `response` itself, is at most
// 5 times the response's bytes (less than kAnswerFactor), some hundred bytes
// for each output aside: four bytes become at most 16.
//
// Errors: InvalidArgument for outputs of a type that JSON has no numbers for;
// Internal if `response` is no such message.
absl::StatusOr<HttpResponse> WriteInferBody(const grpc::ByteBuffer& response,
                                            const InferBody& asked);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_INFER_BODY_H_
