// Answers of the server's own gRPC methods as JSON.
#ifndef ATTENTION_SERVER_HTTP_ANSWER_JSON_H_
#define ATTENTION_SERVER_HTTP_ANSWER_JSON_H_

#include <optional>
#include <string>

#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"

namespace attention::server {

// `answer`, which is a message like `prototype`, in proto3 JSON; nothing if it
// cannot be read. Clears `answer` once it is read. Takes at most kAnswerFactor
// times its bytes, some KiB aside, itself included.
std::optional<std::string> WriteAnswerJson(
    grpc::ByteBuffer& answer, const google::protobuf::Message& prototype);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_ANSWER_JSON_H_
