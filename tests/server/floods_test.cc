// Peers that flood the server lose their connection, others do not.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "tests/support/http2_frames.h"
#include "tests/support/raw_call.h"
#include "tests/support/socket.h"
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized =
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

TEST_F(FloodsTest, FramesThatMeanNothing) {
  std::string pings, updates;
  for (int i = 0; i < 1000; ++i) {
    pings += MakeFrame(FrameType::kPing, 0, 0, std::string(8, '\0'));
    updates += MakeFrame(FrameType::kWindowUpdate, 0, 0, BigEndian(1));
  }
  EXPECT_TRUE(IsCut([&] { return pings; }, int64_t{1} << 30));
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
