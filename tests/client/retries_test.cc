#include "attention/internal/retries.h"

#include <grpcpp/server_context.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/details/v1/details.pb.h"
#include "attention/status.h"
#include "tests/client/fake_service.h"

namespace attention {
namespace {

using absl::Milliseconds;
using absl::Seconds;
using internal::Retries;
using internal::Twice;
using Result = absl::StatusOr<ComputeResult>;

grpc::Status Failed(grpc::StatusCode code, const std::string& reason,
                    std::optional<absl::Duration> delay = std::nullopt) {
  details::v1::Status details;
  details.set_code(code);
  const auto add = [&](const char* name, const std::string& bytes) {
    auto* const detail = details.add_details();
    detail->set_type_url(absl::StrCat("type.googleapis.com/google.rpc.", name));
    detail->set_value(bytes);
  };
  if (!reason.empty()) {
    details::v1::ErrorInfo info;
    info.set_domain("attention");
    info.set_reason(reason);
    add("ErrorInfo", info.SerializeAsString());
  }
  if (delay) {
    details::v1::RetryInfo info;
    info.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(*delay % Seconds(1))));
    info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(*delay));
    add("RetryInfo", info.SerializeAsString());
  }
  return {code, "so it is", details.SerializeAsString()};
}

grpc::Status Busy(absl::Duration delay) {
  return Failed(grpc::StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL", delay);
}

grpc::Status UnderWay(absl::Duration delay) {
  return Failed(grpc::StatusCode::UNAVAILABLE, "APPEND_UNDER_WAY", delay);
}

absl::Status WithPushback(const grpc::Status& failed, const std::string& text) {
  absl::Status status = FromGrpcStatus(failed);
  status.SetPayload("grpc-retry-pushback-ms", absl::Cord(text));
  return status;
}

std::optional<absl::Duration> FirstPause(
    Twice twice, const absl::Status& failed, int max_attempts = 4,
    absl::Time deadline = absl::InfiniteFuture()) {
  return Retries(twice, max_attempts).PauseAfter(failed, deadline);
}

// `pause`, or up to a fifth longer.
void ExpectPause(std::optional<absl::Duration> got, absl::Duration pause) {
  ASSERT_TRUE(got.has_value());
  EXPECT_GE(*got, pause);
  EXPECT_LE(*got, 1.2 * pause);
}

TEST(RetriesTest, ABusyServerIsAskedAgainWhenItSays) {
  for (const Twice twice :
       {Twice::kHarmful, Twice::kHarmless, Twice::kAppend}) {
    ExpectPause(FirstPause(twice, FromGrpcStatus(Busy(Milliseconds(70)))),
                Milliseconds(70));
    const grpc::Status limit =
        Failed(grpc::StatusCode::RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE");
    EXPECT_EQ(FirstPause(twice, FromGrpcStatus(limit)), std::nullopt);
  }
}

TEST(RetriesTest, WhatMayHaveBeenDoneIsSentAgainWhereThatIsHarmless) {
  const absl::Status lost = absl::UnavailableError("connection reset");
  EXPECT_EQ(FirstPause(Twice::kHarmful, lost), std::nullopt);
  ExpectPause(FirstPause(Twice::kHarmless, lost), Milliseconds(100));
  ExpectPause(FirstPause(Twice::kAppend, lost), Milliseconds(100));
  const absl::Status draining =
      FromGrpcStatus(Failed(grpc::StatusCode::UNAVAILABLE, "DRAINING"));
  ExpectPause(FirstPause(Twice::kHarmful, draining), Milliseconds(100));
  const absl::Status another =
      FromGrpcStatus(Failed(grpc::StatusCode::UNAVAILABLE, "SHARD_LOST"));
  EXPECT_EQ(FirstPause(Twice::kAppend, another), std::nullopt);
}

TEST(RetriesTest, TheTrailerGoesFirst) {
  const grpc::Status busy = Busy(Seconds(30));
  ExpectPause(FirstPause(Twice::kHarmless, WithPushback(busy, "40")),
              Milliseconds(40));
  for (const char* never : {"-1", "soon", "", "1.5", "99999999999999999999"}) {
    const absl::Status status = WithPushback(busy, never);
    EXPECT_EQ(FirstPause(Twice::kHarmless, status), std::nullopt) << never;
    EXPECT_TRUE(ForbidsRetry(status)) << never;
    EXPECT_EQ(RetryDelay(status), std::nullopt) << never;
  }
  EXPECT_FALSE(ForbidsRetry(FromGrpcStatus(busy)));
}

TEST(RetriesTest, PausesDoubleUpToTheLastAttempt) {
  const absl::Status lost = absl::UnavailableError("connection reset");
  Retries retries(Twice::kHarmless, 9);
  for (const int wanted : {100, 200, 400, 800, 1600, 3200, 5000, 5000}) {
    ExpectPause(retries.PauseAfter(lost, absl::InfiniteFuture()),
                Milliseconds(wanted));
  }
  EXPECT_EQ(retries.PauseAfter(lost, absl::InfiniteFuture()), std::nullopt);
  EXPECT_EQ(FirstPause(Twice::kHarmless, lost, 1), std::nullopt);
}

TEST(RetriesTest, AnAppendUnderWayIsWaitedForBesideTheAttempts) {
  const absl::Status under_way = FromGrpcStatus(UnderWay(Milliseconds(20)));
  Retries retries(Twice::kAppend, 2);
  for (const int wanted : {20, 20, 40, 80, 160, 320, 500, 500, 500}) {
    ExpectPause(retries.PauseAfter(under_way, absl::InfiniteFuture()),
                Milliseconds(wanted));
  }
  // As long as the server says at least.
  ExpectPause(retries.PauseAfter(FromGrpcStatus(UnderWay(Seconds(2))),
                                 absl::InfiniteFuture()),
              Seconds(2));
  const absl::Status lost = absl::UnavailableError("connection reset");
  EXPECT_NE(retries.PauseAfter(lost, absl::InfiniteFuture()), std::nullopt);
  EXPECT_EQ(retries.PauseAfter(lost, absl::InfiniteFuture()), std::nullopt);
  EXPECT_EQ(FirstPause(Twice::kHarmless, under_way), std::nullopt);
  EXPECT_EQ(FirstPause(Twice::kAppend, under_way, 1), std::nullopt);
}

TEST(RetriesTest, APausePastTheDeadlineIsNotBegun) {
  const absl::Status busy = FromGrpcStatus(Busy(Seconds(10)));
  EXPECT_EQ(FirstPause(Twice::kHarmless, busy, 4, absl::Now() + Seconds(9)),
            std::nullopt);
  ExpectPause(FirstPause(Twice::kHarmless, busy, 4, absl::Now() + Seconds(99)),
              Seconds(10));
}

class ClientRetriesTest : public ::testing::Test {
 protected:
  // Answers as the test says, call by call; well after that.
  ClientRetriesTest()
      : service_([this](auto& context, const auto& request, auto& response) {
          const size_t call = calls_++;
          const std::lock_guard<std::mutex> lock(mutex_);
          if (call < refusals_.size()) {
            if (!pushback_.empty()) {
              context.AddTrailingMetadata("grpc-retry-pushback-ms", pushback_);
            }
            return refusals_[call];
          }
          *response.mutable_output() = request.query();
          return grpc::Status::OK;
        }) {}

  static ComputeRequest Request() {
    static const std::vector<float> row = {1, 2};
    ComputeRequest request;
    request.query = request.key = request.value =
        TensorSpan::Of<float>(row, {1, 2});
    return request;
  }
  // So many first calls, and with this trailer, if any.
  void Refuse(size_t calls, const grpc::Status& status,
              const std::string& pushback = "") {
    const std::lock_guard<std::mutex> lock(mutex_);
    calls_ = 0;
    refusals_.assign(calls, status);
    pushback_ = pushback;
  }
  Client MakeClient(int max_attempts = 4) {
    ClientOptions options;
    options.max_attempts = max_attempts;
    return Client(service_.address(), options);
  }
  Result Compute(bool async, const Client& client,
                 const CallOptions& options = {}) {
    if (!async) return client.Compute(Request(), options);
    return client.ComputeAsync(Request(), options).get();
  }

  std::atomic<size_t> calls_ = 0;
  std::mutex mutex_;
  // Both guarded by mutex_.
  std::vector<grpc::Status> refusals_;
  std::string pushback_;
  FakeService service_;
};

TEST_F(ClientRetriesTest, AreMadeOfBothKindsOfCalls) {
  Refuse(2, Busy(Milliseconds(30)));
  for (const bool async : {false, true}) {
    calls_ = 0;
    const absl::Time begin = absl::Now();
    const Result result = Compute(async, MakeClient());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->output.elements<float>()[1], 2);
    EXPECT_EQ(calls_, 3);
    EXPECT_GE(absl::Now() - begin, Milliseconds(60));
  }
}

TEST_F(ClientRetriesTest, EndWithTheLastError) {
  Refuse(9, Busy(Milliseconds(1)));
  for (const bool async : {false, true}) {
    for (const int attempts : {1, 4, 6}) {
      calls_ = 0;
      const Result result = Compute(async, MakeClient(attempts));
      EXPECT_EQ(ErrorReason(result.status()), "QUEUE_FULL");
      EXPECT_EQ(calls_, attempts);
    }
  }
}

TEST_F(ClientRetriesTest, HeedTheTrailer) {
  for (const bool async : {false, true}) {
    Refuse(1, Busy(Seconds(60)), "20");
    EXPECT_TRUE(Compute(async, MakeClient()).ok());
    EXPECT_EQ(calls_, 2);
    Refuse(1, Busy(Seconds(60)), "-1");
    const Result result = Compute(async, MakeClient());
    EXPECT_TRUE(ForbidsRetry(result.status())) << result.status();
    EXPECT_EQ(calls_, 1);
  }
}

TEST_F(ClientRetriesTest, EndInsideAPauseWithTheCall) {
  Refuse(1, Busy(Seconds(60)));
  const Client client = MakeClient();
  for (const bool async : {false, true}) {
    calls_ = 0;
    std::stop_source stop;
    const std::jthread stopper([&] {
      while (calls_ == 0) absl::SleepFor(Milliseconds(1));
      absl::SleepFor(Milliseconds(100));
      stop.request_stop();
    });
    const absl::Time begin = absl::Now();
    const Result result = Compute(async, client, {.stop = stop.get_token()});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
    EXPECT_LT(absl::Now() - begin, Seconds(30));
    EXPECT_EQ(calls_, 1);
  }
}

TEST_F(ClientRetriesTest, EndWhenTheCallerIsInterrupted) {
  Refuse(1, Busy(Seconds(60)));
  const auto interrupted = [this] { return calls_ > 0; };
  const Result result =
      Compute(false, MakeClient(), {.interrupted = interrupted});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(ClientRetriesTest, BeginNoPauseThatWouldOutlastTheTimeout) {
  Refuse(1, Busy(Seconds(60)));
  for (const bool async : {false, true}) {
    calls_ = 0;
    const absl::Time begin = absl::Now();
    const Result result =
        Compute(async, MakeClient(), {.timeout = Seconds(30)});
    EXPECT_EQ(ErrorReason(result.status()), "QUEUE_FULL");
    EXPECT_LT(absl::Now() - begin, Seconds(20));
    EXPECT_EQ(calls_, 1);
  }
}

// In turn the pauses alone would take ten seconds.
TEST_F(ClientRetriesTest, OfCallsThatDoNotBlockPauseTogether) {
  constexpr int kCalls = 100;
  Refuse(kCalls, Busy(Milliseconds(100)));
  const absl::Time begin = absl::Now();
  std::vector<std::future<Result>> results;
  {
    // The client may be gone before another try.
    const Client client = MakeClient();
    results.reserve(kCalls);
    for (int i = 0; i < kCalls; ++i) {
      results.push_back(client.ComputeAsync(Request()));
    }
  }
  for (auto& result : results) EXPECT_TRUE(result.get().ok());
  EXPECT_EQ(calls_, 2 * kCalls);
  EXPECT_LT(absl::Now() - begin, Seconds(5));
}

TEST_F(ClientRetriesTest, BeginAStreamAnew) {
  // Above what a single message is sent for.
  const std::vector<float> keys(3 << 20, 1);
  ComputeRequest request;
  static const std::vector<float> row(64, 1);
  request.query = TensorSpan::Of<float>(row, {1, 64});
  request.key = request.value =
      TensorSpan::Of<float>(keys, {(3 << 20) / 64, 64});
  for (const bool async : {false, true}) {
    service_.RefuseStreams("QUEUE_FULL", Milliseconds(10));
    const int before = service_.streams();
    const Client client = MakeClient();
    const Result result =
        async ? client.ComputeAsync(request).get() : client.Compute(request);
    EXPECT_EQ(ErrorReason(result.status()), "QUEUE_FULL");
    EXPECT_EQ(service_.streams() - before, 4);
    EXPECT_EQ(calls_, 0);
  }
}

TEST(ConnectionRetriesTest, AttemptsThatCannotBe) {
  for (const int attempts : {0, -1}) {
    ClientOptions options;
    options.max_attempts = attempts;
    const absl::Status status =
        Connection::Make("127.0.0.1:1", options).status();
    EXPECT_EQ(status, absl::InvalidArgumentError(absl::StrCat(
                          "max_attempts: got ", attempts,
                          ", wanted at least 1, which is one try")));
  }
}

TEST(AfterPauseTest, EndsOnceWhateverComesFirst) {
  for (int i = 0; i < 300; ++i) {
    std::stop_source stop;
    if (i % 3 == 0) stop.request_stop();
    std::promise<void> ended;
    internal::AfterPause(absl::Microseconds(i % 50), stop.get_token(),
                         [&ended] { ended.set_value(); });  // twice: throws
    if (i % 3 == 1) stop.request_stop();
    ASSERT_EQ(ended.get_future().wait_for(std::chrono::seconds(30)),
              std::future_status::ready);
  }
}

}  // namespace
}  // namespace attention
