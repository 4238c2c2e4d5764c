// HTTP/2 by hand, for peers that do not behave as gRPC's clients do. socket.h
// has what a connection begins with, http2_client.h a client.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_
#define ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace attention::testing {

enum class FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kReset = 3,
  kSettings = 4,
  kPing = 6,
  kGoaway = 7,
  kWindowUpdate = 8,
  kContinuation = 9
};
inline constexpr uint8_t kEndStream = 1;
inline constexpr uint8_t kAck = 1;
inline constexpr uint8_t kEndHeaders = 4;

// The lowest `bytes` bytes of a number, and a number of so many bytes.
std::string BigEndian(uint32_t number, int bytes = 4);
uint32_t FromBigEndian(absl::string_view bytes);

std::string MakeFrame(FrameType type, uint8_t flags, uint32_t stream,
                      absl::string_view payload);

using HeaderList = std::vector<std::pair<std::string, std::string>>;

// What gRPC's clients send with a call of `path`.
HeaderList GrpcHeaders(const std::string& path);

// Headers in HPACK (RFC 7541, 6.2.2): neither indexed nor compressed.
std::string Coded(const HeaderList& headers);

// Whether the coded headers in `answer` have this one.
bool HasHeader(absl::string_view answer, const std::string& name,
               const std::string& value);

// A message as gRPC frames it.
std::string GrpcMessage(const std::string& bytes, bool compressed = false);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP2_FRAMES_H_
