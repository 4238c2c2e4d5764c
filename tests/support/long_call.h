// A call that would take minutes.
#ifndef ATTENTION_TESTS_SUPPORT_LONG_CALL_H_
#define ATTENTION_TESTS_SUPPORT_LONG_CALL_H_

#include <chrono>
#include <memory>
#include <string>

#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/support/async_unary_call.h"
#include "server/rpc/call_headers.h"
#include "tests/support/messages.h"

namespace attention::testing {

// Tells the server the size of the message beforehand.
struct Announced {};

// Started by the constructor, cancelled by the destructor. Not thread-safe.
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
    call_ = stub_->AsyncComputeAttention(&context_, request, &queue_);
    call_->Finish(&response_, &status_, nullptr);
  }

  LongCall(const std::shared_ptr<grpc::Channel>& channel, Announced,
           const v1::ComputeAttentionRequest& request = Request())
      : stub_(v1::AttentionService::NewStub(channel)) {
    context_.AddMetadata(server::kRequestBytesHeader,
                         std::to_string(request.ByteSizeLong()));
    call_ = stub_->AsyncComputeAttention(&context_, request, &queue_);
    call_->Finish(&response_, &status_, nullptr);
  }

  ~LongCall() {
    Cancel();
    Wait();
  }

  void Cancel() { context_.TryCancel(); }
  bool ended() { return Poll(std::chrono::system_clock::now()); }
  const grpc::Status& Wait() {
    Poll(std::chrono::system_clock::time_point::max());
    return status_;
  }
  // Once it has ended.
  const v1::ComputeAttentionResponse& response() const { return response_; }

 private:
  // Whether it has ended by `limit`.
  bool Poll(std::chrono::system_clock::time_point limit) {
    void* tag;
    bool ok;
    if (!ended_) {
      ended_ = queue_.AsyncNext(&tag, &ok, limit) ==
               grpc::CompletionQueue::GOT_EVENT;
    }
    return ended_;
  }

  std::unique_ptr<v1::AttentionService::Stub> stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  v1::ComputeAttentionResponse response_;
  grpc::Status status_;
  bool ended_ = false;
  std::unique_ptr<grpc::ClientAsyncResponseReader<v1::ComputeAttentionResponse>>
      call_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_LONG_CALL_H_
