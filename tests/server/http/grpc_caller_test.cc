#include "server/http/grpc_caller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "attention/v1/attention.pb.h"
#include "server/http/json_memory.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using server::GrpcCaller;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// One that lets `most` bytes be held.
class FakeExchange final : public server::HttpExchange {
 public:
  explicit FakeExchange(int64_t most) : most_(most) {}

  void Answer(server::HttpResponse) override {}
  void Abort() noexcept override {}
  bool gone() const override { return false; }
  bool Hold(int64_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_.push_back(bytes);
    return bytes <= most_;
  }
  void OnGone(std::function<void()>) override {}

  std::vector<int64_t> held() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  const int64_t most_;
  mutable std::mutex mutex_;
  std::vector<int64_t> held_;  // guarded by mutex_
};

class GrpcCallerTest : public ::testing::Test {
 protected:
  // With so many queries of two heads; two floats of the answer each.
  GrpcCaller::Result Call(int rows,
                          const std::shared_ptr<FakeExchange>& exchange) {
    auto caller = GrpcCaller::Create(
        [this] { return server_.Channel(Transport::kLoopback); },
        int64_t{1} << 30);
    EXPECT_TRUE(caller.ok()) << caller.status();
    v1::ComputeAttentionRequest request = SmallRequest();
    v1::Tensor& query = *request.mutable_query();
    query.clear_data();
    query.clear_float_values();
    query.set_shape(2, rows);
    query.mutable_float_values()->Resize(2 * rows * 4, 1);
    const grpc::Slice slice(request.SerializeAsString());
    GrpcCaller::Call call;
    call.method = "/attention.v1.AttentionService/ComputeAttention";
    call.tenant = std::make_shared<server::Tenant>();
    call.request = grpc::ByteBuffer(&slice, 1);
    GrpcCaller::Result result;
    absl::Notification done;
    (*caller)->Post({.exchange = exchange, .tenant = call.tenant, .run = [&] {
                       (*caller)->Start(exchange, call,
                                        [&](const GrpcCaller::Result& its) {
                                          result = its;
                                          done.Notify();
                                        });
                     }});
    done.WaitForNotification();
    return result;
  }

  TestServer server_;
};

TEST_F(GrpcCallerTest, WhatWaitsToBeWrittenIsHeld) {
  const auto exchange = std::make_shared<FakeExchange>(int64_t{1} << 30);
  const GrpcCaller::Result result = Call(1 << 16, exchange);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  const auto bytes = static_cast<int64_t>(result.response.Length());
  EXPECT_GT(bytes, 1 << 20);
  EXPECT_THAT(exchange->held(),
              ElementsAre(server::kAnswerFactor * bytes, bytes));
}

TEST_F(GrpcCallerTest, WhatMayNotWaitIsDropped) {
  const GrpcCaller::Result result =
      Call(1 << 16, std::make_shared<FakeExchange>(1 << 21));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("too much memory"));
  EXPECT_EQ(result.response.Length(), 0);
}

// That a session was made must be told also where memory is short.
TEST_F(GrpcCallerTest, SmallAnswersAreAlwaysTold) {
  const auto exchange = std::make_shared<FakeExchange>(0);
  const GrpcCaller::Result result = Call(1, exchange);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_THAT(exchange->held(), IsEmpty());
}

}  // namespace
}  // namespace attention::testing
