#include "tests/support/http2_peer.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "tests/support/socket.h"

namespace attention::testing {
namespace {

constexpr uint8_t kEndHeaders = 4;
constexpr size_t kFrameHeader = 9;

std::string BigEndian(uint32_t number, int bytes) {
  std::string text;
  for (int i = bytes - 1; i >= 0; --i) {
    text += static_cast<char>(number >> (8 * i));
  }
  return text;
}

uint32_t FromBigEndian(const std::string& text, size_t begin, size_t bytes) {
  uint32_t number = 0;
  for (size_t i = 0; i < bytes; ++i) {
    number = number << 8 | static_cast<uint8_t>(text[begin + i]);
  }
  return number;
}

// A header field, neither indexed nor compressed (RFC 7541, 6.2.2).
std::string Field(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + static_cast<char>(name.size()) + name +
         static_cast<char>(value.size()) + value;
}

}  // namespace

Http2Peer::Http2Peer(const std::string& address)
    : address_(address), socket_(ConnectTo(address)) {
  EXPECT_TRUE(socket_.valid()) << address;
  const timeval limit = {.tv_sec = 30, .tv_usec = 0};
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  Send(socket_, Http2Start());
  // What waits to be accepted is reset when the listener closes.
  EXPECT_TRUE(ReadFrameOf(kSettings).has_value());
}

void Http2Peer::SendCall(uint32_t stream, const std::string& message) {
  SendFrame(
      {kHeaders, kEndHeaders, stream,
       Field(":method", "POST") + Field(":scheme", "http") +
           Field(":path", "/attention.v1.AttentionService/ComputeAttention") +
           Field(":authority", address_) +
           Field("content-type", "application/grpc") +
           Field("te", "trailers")});
  const std::string length =
      BigEndian(static_cast<uint32_t>(message.size()), 4);
  SendFrame(
      {kData, kEndStream, stream, std::string(1, '\0') + length + message});
}

void Http2Peer::AnswerPing(const Frame& ping) {
  SendFrame({kPing, kAck, 0, ping.payload});
}

void Http2Peer::TakeMuch() {
  const int bytes = 16 << 10;
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  constexpr uint16_t kInitialWindowSize = 4;
  constexpr uint32_t kWindow = 16 << 20;
  SendFrame({kSettings, 0, 0,
             BigEndian(kInitialWindowSize, 2) + BigEndian(kWindow, 4)});
  SendFrame({kWindowUpdate, 0, 0, BigEndian(kWindow, 4)});
}

void Http2Peer::TakeOneMore() {
  SendFrame({kWindowUpdate, 0, 0, BigEndian(1, 4)});
}

std::optional<Http2Peer::Frame> Http2Peer::ReadFrame() {
  std::string header;
  if (!ReadBytes(kFrameHeader, header)) return std::nullopt;
  Frame frame = {static_cast<uint8_t>(header[3]),
                 static_cast<uint8_t>(header[4]),
                 FromBigEndian(header, 5, 4) & 0x7FFFFFFF, ""};
  if (!ReadBytes(FromBigEndian(header, 0, 3), frame.payload)) {
    return std::nullopt;
  }
  return frame;
}

std::optional<Http2Peer::Frame> Http2Peer::ReadFrameOf(Type type) {
  for (;;) {
    std::optional<Frame> frame = ReadFrame();
    if (!frame || frame->type == type) return frame;
  }
}

void Http2Peer::SendFrame(const Frame& frame) {
  Send(socket_, BigEndian(static_cast<uint32_t>(frame.payload.size()), 3) +
                    static_cast<char>(frame.type) +
                    static_cast<char>(frame.flags) +
                    BigEndian(frame.stream, 4) + frame.payload);
}

bool Http2Peer::ReadBytes(size_t count, std::string& bytes) {
  bytes.resize(count);
  for (size_t done = 0; done < count;) {
    const ssize_t got =
        recv(socket_.get(), bytes.data() + done, count - done, 0);
    if (got < 0 && errno != ECONNRESET) {
      ADD_FAILURE() << "nothing comes: " << std::strerror(errno);
    }
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

uint32_t LastStreamOf(const Http2Peer::Frame& goaway) {
  EXPECT_GE(goaway.payload.size(), 8);
  return FromBigEndian(goaway.payload, 0, 4) & 0x7FFFFFFF;
}

}  // namespace attention::testing
