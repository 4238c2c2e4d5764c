// A call that would take minutes.
#ifndef ATTENTION_TESTS_SUPPORT_LONG_CALL_H_
#define ATTENTION_TESTS_SUPPORT_LONG_CALL_H_

#include <chrono>
#include <future>
#include <memory>

#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "tests/support/messages.h"

namespace attention::testing {

// Started by the constructor, cancelled by the destructor.
class LongCall {
 public:
  // 2^40 pairs of query and key; a few MiB to send.
  static const v1::ComputeAttentionRequest& Request() {
    static const v1::ComputeAttentionRequest request =
        LongRequest(int64_t{1} << 20);
    return request;
  }

  explicit LongCall(const std::shared_ptr<grpc::Channel>& channel,
                    std::chrono::system_clock::time_point deadline =
                        std::chrono::system_clock::time_point::max())
      : LongCall(channel, Request(), deadline) {}

  LongCall(const std::shared_ptr<grpc::Channel>& channel,
           const v1::ComputeAttentionRequest& request,
           std::chrono::system_clock::time_point deadline =
               std::chrono::system_clock::time_point::max())
      : stub_(v1::AttentionService::NewStub(channel)) {
    context_.set_deadline(deadline);
    stub_->async()->ComputeAttention(
        &context_, &request, &response_,
        [this](grpc::Status status) { promise_.set_value(status); });
  }

  ~LongCall() {
    Cancel();
    Wait();
  }

  void Cancel() { context_.TryCancel(); }
  bool ended() const {
    return status_.wait_for(std::chrono::seconds(0)) ==
           std::future_status::ready;
  }
  const grpc::Status& Wait() { return status_.get(); }
  const v1::ComputeAttentionResponse& response() const { return response_; }

 private:
  std::unique_ptr<v1::AttentionService::Stub> stub_;
  grpc::ClientContext context_;
  v1::ComputeAttentionResponse response_;
  std::promise<grpc::Status> promise_;
  std::shared_future<grpc::Status> status_ = promise_.get_future().share();
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_LONG_CALL_H_
