#include "tests/support/http2_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/socket.h"

namespace attention::testing {
namespace {

constexpr uint8_t kEndStream = 1;
constexpr uint8_t kEndHeaders = 4;
constexpr uint8_t kAck = 1;
constexpr size_t kMaxFrame = 16384;

std::string BigEndian(uint32_t number, int bytes) {
  std::string text;
  while (bytes-- > 0) text += static_cast<char>(number >> (8 * bytes));
  return text;
}

uint32_t FromBigEndian(const std::string& bytes) {
  uint32_t number = 0;
  for (char byte : bytes) number = number << 8 | static_cast<uint8_t>(byte);
  return number;
}

// A string of HPACK, not compressed: its length, in a prefix of 7 bits.
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

HeaderList GrpcHeaders(const std::string& path) {
  return {{":method", "POST"}, {":scheme", "http"},
          {":path", path},     {":authority", "test"},
          {"te", "trailers"},  {"content-type", "application/grpc"}};
}

std::string GrpcMessage(const std::string& bytes, bool compressed) {
  return absl::StrCat(BigEndian(compressed ? 1 : 0, 1),
                      BigEndian(static_cast<uint32_t>(bytes.size()), 4), bytes);
}

Http2Client::Http2Client(const std::string& address)
    : socket_(ConnectTo(address)) {
  const timeval limit = {.tv_sec = 30, .tv_usec = 0};
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  Send(socket_, Http2Start());
  // What the server's settings say holds from their acknowledgement on.
  Frame frame;
  while (ReadFrame(&frame)) {
    if (frame.type != Type::kSettings) continue;
    SendFrame(Type::kSettings, kAck, 0, "");
    break;
  }
}

uint32_t Http2Client::Call(const HeaderList& headers, bool last) {
  std::string coded;
  for (const auto& [name, value] : headers) {
    coded += std::string(1, '\0') + Coded(name) + Coded(value);
  }
  const uint32_t stream = next_stream_;
  next_stream_ += 2;
  Type type = Type::kHeaders;
  size_t at = 0;
  do {
    const std::string part = coded.substr(at, kMaxFrame);
    at += part.size();
    SendFrame(type,
              (at == coded.size() ? kEndHeaders : 0) |
                  (last && type == Type::kHeaders ? kEndStream : 0),
              stream, part);
    type = Type::kContinuation;
  } while (at < coded.size());
  return stream;
}

void Http2Client::SendData(uint32_t stream, const std::string& bytes,
                           bool last) {
  EXPECT_LE(bytes.size(), kMaxFrame);
  SendFrame(Type::kData, last ? kEndStream : 0, stream, bytes);
}

void Http2Client::Cancel(uint32_t stream) {
  constexpr uint32_t kCancel = 8;
  SendFrame(Type::kReset, 0, stream, BigEndian(kCancel, 4));
}

bool Http2Client::Ping() {
  SendFrame(Type::kPing, 0, 0, std::string(8, 'p'));
  Frame frame;
  while (ReadFrame(&frame)) {
    if (frame.type == Type::kPing && frame.flags == kAck) return true;
    if (frame.type == Type::kGoaway) return false;
  }
  return false;
}

std::string Http2Client::ReadAnswer(uint32_t stream) {
  std::string answer;
  Frame frame;
  while (ReadFrame(&frame)) {
    if (frame.stream != stream) continue;
    if (frame.type == Type::kReset) break;
    if (frame.type != Type::kHeaders && frame.type != Type::kData) continue;
    answer += frame.payload;
    if ((frame.flags & kEndStream) != 0) break;
  }
  return answer;
}

void Http2Client::SendFrame(Type type, uint8_t flags, uint32_t stream,
                            const std::string& payload) {
  Send(socket_,
       absl::StrCat(BigEndian(static_cast<uint32_t>(payload.size()), 3),
                    BigEndian(static_cast<uint8_t>(type), 1),
                    BigEndian(flags, 1), BigEndian(stream, 4), payload));
}

bool Http2Client::ReadFrame(Frame* frame) {
  std::string header;
  if (!ReadBytes(9, &header)) return false;
  frame->type = static_cast<Type>(header[3]);
  frame->flags = static_cast<uint8_t>(header[4]);
  frame->stream = FromBigEndian(header.substr(5));
  return ReadBytes(FromBigEndian(header.substr(0, 3)), &frame->payload);
}

bool Http2Client::ReadBytes(size_t count, std::string* bytes) {
  bytes->resize(count);
  size_t have = 0;
  while (have < count) {
    const ssize_t got =
        recv(socket_.get(), bytes->data() + have, count - have, 0);
    if (got < 0 && errno != ECONNRESET) {
      ADD_FAILURE() << "nothing comes: " << std::strerror(errno);
    }
    if (got <= 0) return false;
    have += static_cast<size_t>(got);
  }
  return true;
}

bool HasHeader(const std::string& answer, const std::string& name,
               const std::string& value) {
  return absl::StrContains(answer, Coded(name) + Coded(value));
}

}  // namespace attention::testing
