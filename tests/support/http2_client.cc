#include "tests/support/http2_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/string_view.h"
#include "tests/support/socket.h"

namespace attention::testing {
namespace {

constexpr size_t kMaxFrame = 16384;
constexpr size_t kFrameHeader = 9;

}  // namespace

Http2Client::Http2Client(const std::string& address)
    : socket_(ConnectTo(address)) {
  EXPECT_TRUE(socket_.valid()) << address;
  const timeval limit = {.tv_sec = 30, .tv_usec = 0};
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  Send(socket_, Http2Start());
  // What the server's settings say holds from their acknowledgement on. And
  // what waits to be accepted is reset when the listener closes.
  EXPECT_TRUE(ReadFrameOf(FrameType::kSettings).has_value());
  SendFrame(FrameType::kSettings, kAck, 0, "");
}

uint32_t Http2Client::Call(const HeaderList& headers, bool last) {
  const std::string coded = Coded(headers);
  const uint32_t stream = next_stream_;
  next_stream_ += 2;
  FrameType type = FrameType::kHeaders;
  size_t at = 0;
  do {
    const std::string part = coded.substr(at, kMaxFrame);
    at += part.size();
    SendFrame(type,
              (at == coded.size() ? kEndHeaders : 0) |
                  (last && type == FrameType::kHeaders ? kEndStream : 0),
              stream, part);
    type = FrameType::kContinuation;
  } while (at < coded.size());
  return stream;
}

void Http2Client::SendData(uint32_t stream, const std::string& bytes,
                           bool last) {
  EXPECT_LE(bytes.size(), kMaxFrame);
  SendFrame(FrameType::kData, last ? kEndStream : 0, stream, bytes);
}

uint32_t Http2Client::Compute(const std::string& message) {
  const uint32_t stream =
      Call(GrpcHeaders("/attention.v1.AttentionService/ComputeAttention"));
  SendData(stream, GrpcMessage(message), /*last=*/true);
  return stream;
}

void Http2Client::Cancel(uint32_t stream) {
  constexpr uint32_t kCancel = 8;
  SendFrame(FrameType::kReset, 0, stream, BigEndian(kCancel));
}

bool Http2Client::Ping() {
  SendFrame(FrameType::kPing, 0, 0, std::string(8, 'p'));
  while (const std::optional<Frame> frame = ReadFrame()) {
    if (frame->type == FrameType::kPing && frame->flags == kAck) return true;
    if (frame->type == FrameType::kGoaway) return false;
  }
  return false;
}

void Http2Client::AnswerPing(const Frame& ping) {
  SendFrame(FrameType::kPing, kAck, 0, ping.payload);
}

void Http2Client::TakeMuch() {
  const int bytes = 16 << 10;
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  constexpr uint16_t kInitialWindowSize = 4;
  constexpr uint32_t kWindow = 16 << 20;
  SendFrame(FrameType::kSettings, 0, 0,
            BigEndian(kInitialWindowSize, 2) + BigEndian(kWindow));
  SendFrame(FrameType::kWindowUpdate, 0, 0, BigEndian(kWindow));
}

void Http2Client::TakeOneMore() {
  SendFrame(FrameType::kWindowUpdate, 0, 0, BigEndian(1));
}

std::optional<Http2Client::Frame> Http2Client::ReadFrame() {
  std::string header;
  if (!ReadBytes(kFrameHeader, header)) return std::nullopt;
  const absl::string_view bytes = header;
  Frame frame = {static_cast<FrameType>(bytes[3]),
                 static_cast<uint8_t>(bytes[4]), FromBigEndian(bytes.substr(5)),
                 ""};
  if (!ReadBytes(FromBigEndian(bytes.substr(0, 3)), frame.payload)) {
    return std::nullopt;
  }
  return frame;
}

std::optional<Http2Client::Frame> Http2Client::ReadFrameOf(FrameType type) {
  for (;;) {
    std::optional<Frame> frame = ReadFrame();
    if (!frame || frame->type == type) return frame;
  }
}

std::string Http2Client::ReadAnswer(uint32_t stream) {
  std::string answer;
  while (const std::optional<Frame> frame = ReadFrame()) {
    if (frame->stream != stream) continue;
    if (frame->type == FrameType::kReset) break;
    if (frame->type != FrameType::kHeaders && frame->type != FrameType::kData) {
      continue;
    }
    answer += frame->payload;
    if ((frame->flags & kEndStream) != 0) break;
  }
  return answer;
}

void Http2Client::SendFrame(FrameType type, uint8_t flags, uint32_t stream,
                            const std::string& payload) {
  Send(socket_, MakeFrame(type, flags, stream, payload));
}

bool Http2Client::ReadBytes(size_t count, std::string& bytes) {
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

uint32_t LastStreamOf(const Http2Client::Frame& goaway) {
  EXPECT_GE(goaway.payload.size(), 8);
  return FromBigEndian(goaway.payload.substr(0, 4)) & 0x7FFFFFFF;
}

}  // namespace attention::testing
