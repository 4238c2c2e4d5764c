#include "attention/internal/stream_call.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "attention/internal/answer_rows.h"
#include "attention/internal/interruption.h"
#include "attention/internal/lease.h"
#include "attention/internal/shared_queue.h"
#include "attention/internal/stream_status.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {
namespace {

constexpr char kStreamMethod[] =
    "/attention.v1.AttentionService/StreamAttention";

// At most one write and one read are under way. The call is finished once both
// have ended for good; then nothing of it is.
class StreamCall {
 public:
  StreamCall(const Connection& connection, const CallOptions& options,
             const ComputeRequest& request, KeyChunks chunks)
      : connection_(connection),
        options_(options),
        chunks_(std::move(chunks)),
        rows_(request, connection.max_receive_bytes()),
        header_(EncodeHeader(request, lease_)) {
    Prepare(connection_, options_, context_);
    context_.AddMetadata(kRequestBytesHeader, absl::StrCat(header_.Length()));
  }

  // Begins on `queue`, on whose thread all else happens. `done` is called once,
  // at the end, and may destroy the call.
  void Start(grpc::CompletionQueue& queue, std::function<void()> done) {
    done_ = std::move(done);
    grpc::GenericStub stub(connection_.channel());
    stream_ = stub.PrepareCall(&context_, kStreamMethod, &queue);
    stop_.emplace(options_.stop, Canceller{&context_});
    auto* const stream = stream_.get();
    void* const started = started_.HandOver();
    // From here on it belongs to the queue's thread.
    stream->StartCall(started);
  }

  // `interrupted`: the caller has cancelled it by other means than its options'
  // stop.
  absl::StatusOr<ComputeResult> Result(bool interrupted) {
    if (!wrong_.ok()) return wrong_;
    if (status_.ok()) return std::move(rows_).Finish();
    // gRPC 1.51 says why it refused an answer, 1.83 no more than CANCELLED.
    if (status_.error_code() == grpc::StatusCode::CANCELLED &&
        status_.error_message().empty() && !interrupted &&
        !options_.stop.stop_requested()) {
      const absl::Status limit = rows_.CheckLimit();
      if (!limit.ok()) return limit;
    }
    return NamedAsInRequest(connection_.Explain(status_, context_));
  }
  Lease TakeLease() { return std::move(lease_); }
  grpc::ClientContext& context() { return context_; }

 private:
  // What one of gRPC's operations ends with.
  class Event final : public QueueEvent {
   public:
    Event(StreamCall& call, void (StreamCall::*function)(bool))
        : call_(call), function_(function) {}
    void Run(bool ok) override {
      static_cast<void>(handed_over_.load(std::memory_order_acquire));
      (call_.*function_)(ok);
    }
    void* tag() { return static_cast<QueueEvent*>(this); }
    // The tag, for another thread.
    void* HandOver() {
      handed_over_.store(true, std::memory_order_release);
      return tag();
    }

   private:
    StreamCall& call_;
    void (StreamCall::* const function_)(bool);
    // Set by who begins the call, read by who goes on with it: gRPC orders the
    // two, but ThreadSanitizer does not see into it.
    std::atomic<bool> handed_over_{false};
  };

  void Started(bool ok) {
    if (!ok) return Finish();
    writing_ = reading_ = true;
    stream_->Write(header_, written_.tag());
    header_.Clear();
    stream_->Read(&message_, read_.tag());
  }

  void Written(bool ok) {
    if (ok && options_.progress) {
      options_.progress(chunks_.sent_bytes(), chunks_.total_bytes());
    }
    std::optional<grpc::ByteBuffer> chunk;
    // What fails to be written is of a call that has ended.
    if (ok && !said_all_) chunk = chunks_.Next(lease_);
    if (chunk) return stream_->Write(*chunk, written_.tag());
    if (ok && !std::exchange(said_all_, true)) {
      return stream_->WritesDone(written_.tag());
    }
    writing_ = false;
    if (!reading_) Finish();
  }

  void Read(bool ok) {
    if (ok) {
      if (wrong_.ok()) wrong_ = rows_.Add(message_);
      // The server cannot know; reading on ends soon.
      if (!wrong_.ok()) context_.TryCancel();
      message_.Clear();
      return stream_->Read(&message_, read_.tag());
    }
    reading_ = false;
    if (!writing_) Finish();
  }

  void Finish() { stream_->Finish(&status_, finished_.tag()); }

  void Finished(bool /*ok*/) {
    stop_.reset();
    const auto done = std::move(done_);
    done();
  }

  const Connection connection_;
  const CallOptions options_;
  Lease lease_;
  KeyChunks chunks_;
  AnswerRows rows_;
  grpc::ByteBuffer header_;
  grpc::ByteBuffer message_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  std::optional<StopCallback> stop_;
  std::function<void()> done_;
  bool writing_ = false;
  bool said_all_ = false;
  bool reading_ = false;
  // Why the answer is none.
  absl::Status wrong_;
  grpc::Status status_;
  Event started_{*this, &StreamCall::Started};
  Event written_{*this, &StreamCall::Written};
  Event read_{*this, &StreamCall::Read};
  Event finished_{*this, &StreamCall::Finished};
};

}  // namespace

absl::StatusOr<ComputeResult> RunStream(const Connection& connection,
                                        const CallOptions& options,
                                        const ComputeRequest& request,
                                        KeyChunks chunks) {
  absl::StatusOr<ComputeResult> result;
  Lease lease;
  {
    // A queue of its own: see RunUnary().
    grpc::CompletionQueue queue;
    StreamCall call(connection, options, request, std::move(chunks));
    bool done = false;
    call.Start(queue, [&done] { done = true; });
    Interruption interruption(options.interrupted, call.context());
    void* tag;
    bool ok;
    while (!done && interruption.Next(queue, &tag, &ok)) {
      static_cast<QueueEvent*>(tag)->Run(ok);
    }
    result = call.Result(interruption.has_cancelled());
    lease = call.TakeLease();
  }
  lease.Wait();
  return result;
}

void StartStream(const Connection& connection, const CallOptions& options,
                 const ComputeRequest& request, KeyChunks chunks,
                 std::function<void(absl::StatusOr<ComputeResult>)> done) {
  auto* call = new StreamCall(connection, options, request, std::move(chunks));
  call->Start(SharedQueue(), [call, done = std::move(done)] {
    const auto result = std::make_shared<absl::StatusOr<ComputeResult>>(
        call->Result(/*interrupted=*/false));
    Lease lease = call->TakeLease();
    delete call;
    std::move(lease).WhenReturned([done, result] { done(std::move(*result)); });
  });
}

}  // namespace attention::internal
