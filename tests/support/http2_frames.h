// HTTP/2 by hand, for peers that do not behave as gRPC's clients do. socket.h
// has what a connection begins with.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_
#define ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace attention::testing {

// HTTP/2's types of frames.
enum class Frame : char {
  kHeaders = 1,
  kReset = 3,
  kPing = 6,
  kWindowUpdate = 8,
  kContinuation = 9
};
inline constexpr char kEndHeaders = 4;

inline std::string BigEndian(uint32_t value) {
  std::string bytes(4, '\0');
  for (int i = 3; i >= 0; --i, value >>= 8) bytes[i] = static_cast<char>(value);
  return bytes;
}

inline std::string MakeFrame(Frame type, char flags, uint32_t stream,
                             absl::string_view payload) {
  return absl::StrCat(
      BigEndian(static_cast<uint32_t>(payload.size())).substr(1),
      std::string(1, static_cast<char>(type)), std::string(1, flags),
      BigEndian(stream), payload);
}

// Not indexed, not compressed.
inline std::string Header(absl::string_view name, absl::string_view value) {
  return absl::StrCat(std::string(1, '\0'),
                      std::string(1, static_cast<char>(name.size())), name,
                      std::string(1, static_cast<char>(value.size())), value);
}

inline std::string CallHeaders(absl::string_view method) {
  return Header(":method", "POST") + Header(":scheme", "http") +
         Header(":path", method) + Header(":authority", "x") +
         Header("content-type", "application/grpc") + Header("te", "trailers");
}

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_
