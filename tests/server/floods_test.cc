// Peers that flood the server lose their connection, others do not.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"
#include "grpcpp/grpcpp.h"
#include "tests/support/http2_frames.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/sanitizers.h"
#include "tests/support/socket.h"
#include "tests/support/stream_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

constexpr char kCompute[] = "/attention.v1.AttentionService/ComputeAttention";
constexpr char kCapabilities[] =
    "/attention.v1.AttentionService/GetCapabilities";

class FloodsTest : public ::testing::Test {
 protected:
  std::string address() { return server_.server().addresses().front(); }

  bool CutAny() {
    return !absl::StrContains(server_.server().metrics().Text(),
                              "attention_connections_cut_total 0\n");
  }

  // Sends what `next` makes until the connection is gone; false if the server
  // bears more than `most_bytes`, or does not read for half a minute.
  bool IsCut(const std::function<std::string()>& next, int64_t most_bytes) {
    const Descriptor socket = ConnectTo(address());
    const timeval limit = {.tv_sec = 30, .tv_usec = 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    Send(socket, Http2Start());
    char answers[1 << 16];
    while (most_bytes > 0) {
      const std::string bytes = next();
      const ssize_t sent =
          send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) return errno != EAGAIN;
      most_bytes -= sent;
      while (recv(socket.get(), answers, sizeof(answers), MSG_DONTWAIT) > 0) {
      }
    }
    return false;
  }

  void ExpectServes() {
    const auto channel = server_.Channel(Transport::kLoopback);
    EXPECT_TRUE(RawUnaryCall(channel, kCapabilities, "").status.ok());
  }

  TestServer server_;
};

constexpr bool kSanitized = kAddressSanitizer || kThreadSanitizer;

// By the server or by gRPC, which bears few pings.
TEST_F(FloodsTest, Pings) {
  if (!absl::StartsWith(grpc::Version(), "1.51.")) {
    GTEST_SKIP() << "gRPC 1.83 answers pings one by one: it takes minutes";
  }
  std::string pings;
  for (int i = 0; i < 1000; ++i) {
    pings += MakeFrame(FrameType::kPing, 0, 0, std::string(8, '\0'));
  }
  EXPECT_TRUE(IsCut([&] { return pings; }, int64_t{1} << 30));
  ExpectServes();
}

TEST_F(FloodsTest, WindowUpdates) {
  std::string updates;
  for (int i = 0; i < 1000; ++i) {
    updates += MakeFrame(FrameType::kWindowUpdate, 0, 0, BigEndian(1));
  }
  EXPECT_TRUE(IsCut([&] { return updates; }, int64_t{1} << 32));
  EXPECT_TRUE(WaitUntil([&] { return CutAny(); }));
  ExpectServes();
}

TEST_F(FloodsTest, StreamsResetAtOnce) {
  uint32_t stream = 1;
  const std::string headers = Coded(GrpcHeaders(kCompute));
  EXPECT_TRUE(IsCut(
      [&] {
        std::string bytes;
        for (int i = 0; i < 200; ++i, stream += 2) {
          bytes +=
              MakeFrame(FrameType::kHeaders, kEndHeaders, stream, headers) +
              MakeFrame(FrameType::kReset, 0, stream, BigEndian(8));
        }
        return bytes;
      },
      int64_t{256} << 20));
  EXPECT_TRUE(WaitUntil([&] { return CutAny(); }));
  ExpectServes();
}

TEST_F(FloodsTest, HeadersWithoutEnd) {
  if (kSanitized) {
    GTEST_SKIP() << "gRPC then reads them so slowly that they are no flood";
  }
  // The beginning of a value of 2^27 bytes, then a byte in each frame.
  std::string next = MakeFrame(FrameType::kHeaders, 0, 1,
                               std::string("\0\1a\x7f\x81\xff\xff\x3f", 8));
  EXPECT_TRUE(IsCut(
      [&] {
        const std::string bytes = next;
        next.clear();
        for (int i = 0; i < 1000; ++i) {
          next += MakeFrame(FrameType::kContinuation, 0, 1, "z");
        }
        return bytes;
      },
      int64_t{256} << 20));
  EXPECT_TRUE(WaitUntil([&] { return CutAny(); }));
  ExpectServes();
}

TEST_F(FloodsTest, BodiesThatNobodyAskedFor) {
  const auto channel = server_.Channel(Transport::kLoopback);
  // A field that no message has, 256 MiB long.
  const std::string body =
      std::string("\x7a\x80\x80\x80\x80\x01", 6) + std::string(1 << 28, 'x');
  EXPECT_FALSE(RawUnaryCall(channel, kCapabilities, body).status.ok());
  EXPECT_TRUE(WaitUntil([&] { return CutAny(); }));
  // gRPC connects again.
  EXPECT_TRUE(WaitUntil(
      [&] { return RawUnaryCall(channel, kCapabilities, "").status.ok(); }));
}

// A connection whose bodies go as fast as HTTP/2's windows let them.
class BodySender {
 public:
  explicit BodySender(const std::string& address)
      : socket_(ConnectTo(address)) {
    const timeval limit = {.tv_sec = 30, .tv_usec = 0};
    for (const int option : {SO_SNDTIMEO, SO_RCVTIMEO}) {
      setsockopt(socket_.get(), SOL_SOCKET, option, &limit, sizeof(limit));
    }
    Send(Http2Start() + MakeFrame(FrameType::kSettings, kAck, 0, ""));
  }

  bool Start(uint32_t stream, const std::string& method) {
    return Send(MakeFrame(FrameType::kHeaders, kEndHeaders, stream,
                          Coded(GrpcHeaders(method))));
  }

  // False once the server has closed the connection.
  bool SendBody(uint32_t stream, absl::string_view bytes) {
    constexpr int64_t kMaxFrame = 16384;
    while (!bytes.empty()) {
      const int64_t part =
          std::min({static_cast<int64_t>(bytes.size()), kMaxFrame, window_,
                    stream_window_ + more_[stream]});
      if (part <= 0) {
        if (!ReadFrame()) return false;
        continue;
      }
      if (!Send(
              MakeFrame(FrameType::kData, 0, stream, bytes.substr(0, part)))) {
        return false;
      }
      window_ -= part;
      more_[stream] -= part;
      bytes.remove_prefix(part);
    }
    return true;
  }

 private:
  bool Send(const std::string& bytes) {
    return send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }

  std::optional<std::string> Read(size_t count) {
    std::string bytes(count, '\0');
    if (count > 0 && recv(socket_.get(), bytes.data(), count, MSG_WAITALL) !=
                         static_cast<ssize_t>(count)) {
      return std::nullopt;
    }
    return bytes;
  }

  bool ReadFrame() {
    const auto header = Read(9);
    if (!header) return false;
    const absl::string_view bytes = *header;
    const auto payload = Read(FromBigEndian(bytes.substr(0, 3)));
    if (!payload) return false;
    const auto type = static_cast<FrameType>(bytes[3]);
    if (type == FrameType::kWindowUpdate) {
      const uint32_t stream = FromBigEndian(bytes.substr(5));
      (stream == 0 ? window_ : more_[stream]) += FromBigEndian(*payload);
    }
    for (size_t at = 0;
         type == FrameType::kSettings && at + 6 <= payload->size(); at += 6) {
      constexpr uint32_t kInitialWindowSize = 4;
      const absl::string_view setting =
          absl::string_view(*payload).substr(at, 6);
      if (FromBigEndian(setting.substr(0, 2)) == kInitialWindowSize) {
        stream_window_ = FromBigEndian(setting.substr(2));
      }
    }
    return true;
  }

  Descriptor socket_;
  int64_t window_ = 65535, stream_window_ = 0;
  std::map<uint32_t, int64_t> more_;  // of each stream
};

// A stream may bring no more than it is charged for: these have two tokens.
TEST_F(FloodsTest, ChunksLargerThanTheirStreams) {
  const std::string header =
      StreamOf(LongRequest(2)).Header().SerializeAsString();
  constexpr int64_t kPart = int64_t{1} << 20;
  // Of a chunk of 8 MiB.
  const std::string body = GrpcMessage(header) + std::string(1, '\0') +
                           BigEndian((8 << 20) - 1) + std::string(kPart, 'x');
  BodySender peer(address());
  for (uint32_t stream = 1; stream < 200; stream += 2) {
    if (!peer.Start(stream, kStreamAttention)) break;
    if (!peer.SendBody(stream, body)) break;
  }
  EXPECT_TRUE(WaitUntil([&] { return CutAny(); }));
  ExpectServes();
}

TEST_F(FloodsTest, HonestCallsAreNeverCut) {
  const auto channel = server_.Channel(Transport::kLoopback);
  // Bad requests of all sizes: some are refused before they are read.
  for (const size_t bytes : {size_t{1}, size_t{100'000}, size_t{8} << 20}) {
    for (int i = 0; i < 30; ++i) {
      EXPECT_FALSE(RawUnaryCall(channel, kCompute, std::string(bytes, '\xff'))
                       .status.ok());
    }
  }
  // Cancelled half way, and before they are read.
  const std::string large(size_t{1} << 20, 'x');
  for (int i = 0; i < 1000; ++i) {
    RawStream call(channel, kCompute);
    call.StartWrite(large);
  }
  for (int i = 0; i < 2000; ++i) {
    EXPECT_TRUE(RawUnaryCall(channel, kCapabilities, "").status.ok());
  }
  EXPECT_FALSE(CutAny());
}

}  // namespace
}  // namespace attention::testing
