#include "tests/support/http2_frames.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace attention::testing {
namespace {

// A string, not compressed: its length, in a prefix of 7 bits.
std::string Coded(const std::string& text) {
  constexpr size_t kPrefix = 127;
  std::string length(1, static_cast<char>(std::min(text.size(), kPrefix)));
  if (text.size() >= kPrefix) {
    size_t rest = text.size() - kPrefix;
    for (; rest >= 128; rest /= 128) {
      length += static_cast<char>(rest % 128 + 128);
    }
    length += static_cast<char>(rest);
  }
  return length + text;
}

}  // namespace

std::string BigEndian(uint32_t number, int bytes) {
  std::string text;
  while (bytes-- > 0) text += static_cast<char>(number >> (8 * bytes));
  return text;
}

uint32_t FromBigEndian(absl::string_view bytes) {
  uint32_t number = 0;
  for (char byte : bytes) number = number << 8 | static_cast<uint8_t>(byte);
  return number;
}

std::string MakeFrame(FrameType type, uint8_t flags, uint32_t stream,
                      absl::string_view payload) {
  return absl::StrCat(BigEndian(static_cast<uint32_t>(payload.size()), 3),
                      BigEndian(static_cast<uint8_t>(type), 1),
                      BigEndian(flags, 1), BigEndian(stream), payload);
}

HeaderList GrpcHeaders(const std::string& path) {
  return {{":method", "POST"}, {":scheme", "http"},
          {":path", path},     {":authority", "test"},
          {"te", "trailers"},  {"content-type", "application/grpc"}};
}

std::string Coded(const HeaderList& headers) {
  std::string coded;
  for (const auto& [name, value] : headers) {
    absl::StrAppend(&coded, std::string(1, '\0'), Coded(name), Coded(value));
  }
  return coded;
}

bool HasHeader(absl::string_view answer, const std::string& name,
               const std::string& value) {
  return absl::StrContains(answer, Coded(name) + Coded(value));
}

std::string GrpcMessage(const std::string& bytes, bool compressed) {
  return absl::StrCat(BigEndian(compressed ? 1 : 0, 1),
                      BigEndian(static_cast<uint32_t>(bytes.size())), bytes);
}

}  // namespace attention::testing
