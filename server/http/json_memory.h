// What JSON takes in memory, measured, to be held before it is taken.
#ifndef ATTENTION_SERVER_HTTP_JSON_MEMORY_H_
#define ATTENTION_SERVER_HTTP_JSON_MEMORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/http/http_server.h"

namespace attention::server {

// Reading a body, per byte of it, the body included. Lists of numbers of one
// digit take the most: 8.5 where they become floats of a message, 10.2 where
// they are `indices`, which go through base64.
inline constexpr int64_t kReadFactor = 10;

// Writing an answer as text, per byte of its message: a float of 4 bytes has up
// to 16 characters with its comma, and protobuf keeps the message twice.
inline constexpr int64_t kAnswerFactor = 6;

// Bodies and answers of no more bytes are not counted so: that a session was
// made must be told also where memory is short.
inline constexpr int64_t kSmallJson = int64_t{64} << 10;

// Holds what it takes to read a body, to keep an answer until its turn comes,
// and to write it, before that is done. False where it is not to be had.
bool HoldToRead(absl::string_view body, HttpExchange& exchange);
bool HoldToWait(const grpc::ByteBuffer& answer, HttpExchange& exchange);
bool HoldToWrite(const grpc::ByteBuffer& answer, HttpExchange& exchange);
// Why the call ends then: Unavailable, with a delay.
absl::Status TooMuchHeld();

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_JSON_MEMORY_H_
