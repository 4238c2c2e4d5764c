#include "server/rpc/append_call.h"

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "attention/v1/session.pb.h"
#include "base/executor.h"
#include "server/layer_append.h"
#include "server/rpc/one_message_call.h"
#include "server/rpc/raw_call.h"
#include "server/session_error.h"
#include "sessions/session_store.h"
#include "wire/memory_meter.h"
#include "wire/session_request.h"

namespace attention::server {
namespace {

class AppendCall final : public OneMessageCall {
 public:
  AppendCall(const ComputeEnvironment& environment, SessionStore& store,
             grpc::GenericCallbackServerContext* context)
      : OneMessageCall("AppendKeyValues", environment, context),
        store_(store) {}

 private:
  class CopyJob final : public Executor::Job {
   public:
    explicit CopyJob(AppendCall& call) : call_(call) {}
    int64_t NextStage() override { return call_.NextStage(); }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      call_.append_->Run(task);
      return true;
    }
    void Done(JobEnd end) override { call_.Copied(end); }

   private:
    AppendCall& call_;
  };

  void Received() override {
    if (record_.request_bytes <= kInlineBytes) {
      const int64_t tasks = NextStage();
      for (int64_t i = 0; i < tasks; ++i) append_->Run(i);
      return Publish();
    }
    Submit(JobSlot::kCopy, std::make_unique<CopyJob>(*this),
           env_.costs.TransferSeconds(record_.request_bytes));
  }

  // The tasks; then 0.
  int64_t NextStage() {
    if (std::exchange(begun_, true)) return 0;
    const absl::Time start = absl::Now();
    Note([&](CallRecord& record) { record.queue = start - received_; });
    try {
      status_ = Begin();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    decode_started_ = start;
    return status_.ok() ? append_->tasks() : 0;
  }

  absl::Status Begin() {
    if (cancelled_ || !request_.Dump(&slices_).ok()) return Abandoned();
    // As many bytes as the message has were taken with it.
    wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
      return ticket_.Hold(MemoryKind::kTensors, bytes);
    });
    auto fields = wire::DecodeAppendRequest(slices_, env_.buffers, meter);
    if (!fields.ok()) return fields.status();
    const std::string id = fields->where.id;
    auto session =
        store_.Use(record_.tenant->name, id, env_.options.lease_clock->Now(),
                   fields->where.incarnation);
    if (!session.ok()) return SessionError(id, session.status());
    session_ = *std::move(session);
    append_.emplace(*std::move(fields));
    absl::Status status = append_->Check(session_->config().format);
    if (status.ok()) {
      status =
          ticket_.Expect(env_.costs.TransferSeconds(record_.request_bytes), 0);
    }
    if (status.ok()) status = append_->Begin(session_, meter);
    return status;
  }

  void Copied(JobEnd end) {
    {
      const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCopy);
      Guarded([&] {
        if (end != JobEnd::kDone) return GiveUp(Abandoned());
        Publish();
      });
    }
    JobEnded();
  }

  // The layer is free for others before the client hears of it.
  void GiveUp(const absl::Status& status) {
    append_.reset();
    End(status);
  }

  void Publish() {
    Note([&](CallRecord& record) {
      record.decode = absl::Now() - decode_started_;
    });
    if (!status_.ok()) return GiveUp(status_);
    const absl::StatusOr<int64_t> length = append_->Publish();
    append_.reset();
    session_ = nullptr;
    slices_.clear();
    request_.Clear();
    if (!length.ok()) return (void)End(length.status());
    v1::AppendKeyValuesResponse response;
    response.set_length(*length);
    Answer(MessageBytes(response));
  }

  SessionStore& store_;
  bool begun_ = false;
  absl::Time decode_started_;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  std::shared_ptr<Session> session_;
  std::optional<LayerAppend> append_;
};

}  // namespace

grpc::ServerGenericBidiReactor* StartAppendCall(
    const ComputeEnvironment& environment, SessionStore& store,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new AppendCall(environment, store, context);
  call->Start();
  return call;
}

}  // namespace attention::server
