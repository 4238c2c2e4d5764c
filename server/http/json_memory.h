// What JSON takes in memory, measured, to be held before it is taken.
#ifndef ATTENTION_SERVER_HTTP_JSON_MEMORY_H_
#define ATTENTION_SERVER_HTTP_JSON_MEMORY_H_

#include <cstdint>

namespace attention::server {

// Reading a body, per byte of it, the body included. Lists of numbers of one
// digit take the most: 8.5 where they become floats of a message, 10.2 where
// they are `indices`, which go through base64.
inline constexpr int64_t kReadFactor = 10;

// An answer as text, with the message that it is made from, per byte of the
// message: a float of 4 bytes has up to 14 characters.
inline constexpr int64_t kAnswerFactor = 5;

// Bodies and answers of no more bytes are not counted so: that a session was
// made must be told also where memory is short.
inline constexpr int64_t kSmallJson = int64_t{64} << 10;

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_JSON_MEMORY_H_
