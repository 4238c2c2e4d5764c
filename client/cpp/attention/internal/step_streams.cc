#include "attention/internal/step_streams.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/status.h"

namespace attention::internal {
namespace {

constexpr char kStepMethod[] = "/attention.v1.SessionService/Step";
// How often CallOptions::interrupted is asked.
constexpr absl::Duration kAskEvery = absl::Milliseconds(50);

// Until when a call may take.
absl::Time EndOf(const CallOptions& options) {
  return options.timeout == absl::InfiniteDuration()
             ? absl::InfiniteFuture()
             : absl::Now() + options.timeout;
}

// Whether a stream that was kept may have ended like this before its message
// came.
bool EndedBetweenMessages(const absl::Status& status) {
  if (ForbidsRetry(status)) return false;
  const std::string reason = ErrorReason(status);
  if (absl::IsUnavailable(status) && reason.empty()) return true;
  // A stream keeps the token that it began with, which may be good no more; a
  // new one has the token of now.
  return absl::IsUnauthenticated(status) || reason == "DRAINING" ||
         reason == "IDLE_TOO_LONG" || reason == "MEMORY_BUSY";
}

}  // namespace

// A call of Step, used by one thread at a time: by that which waits for an
// answer. It does the connection's work itself meanwhile, see RunUnary().
class StepStream {
 public:
  StepStream(const Connection& connection, size_t first_message_bytes)
      : connection_(connection) {
    connection_.Authorize(context_);
    context_.AddMetadata(kRequestBytesHeader,
                         absl::StrCat(first_message_bytes));
    grpc::GenericStub stub(connection_.channel());
    stream_ = stub.PrepareCall(&context_, kStepMethod, &queue_);
    stream_->StartCall(Tag(kStarted));
    pending_ = kStarted;
  }
  ~StepStream() {
    Close(absl::Now() + absl::FromChrono(StepStreams::kGoodbye));
    // gRPC wants a queue to be empty in the end.
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  StepStream(const StepStream&) = delete;
  StepStream& operator=(const StepStream&) = delete;

  // Sends a message and waits for its answer. Not OK: the stream has ended, and
  // is of no more use.
  absl::Status Exchange(const CallOptions& options, absl::Time end,
                        const grpc::ByteBuffer& message,
                        grpc::ByteBuffer* answer) {
    std::optional<StopCallback> stop(std::in_place, options.stop,
                                     Canceller{&context_});
    Wait waiting(*this, options, end);
    if (pending_ != 0 && !waiting.ForAll()) return Finish(waiting);
    stream_->Write(message, Tag(kWritten));
    stream_->Read(answer, Tag(kRead));
    pending_ = kWritten | kRead;
    if (!waiting.ForAll()) return Finish(waiting);
    // In this order: a stop after the question would cancel unseen.
    stop.reset();
    cancelled_ = cancelled_ || options.stop.stop_requested();
    return absl::OkStatus();
  }

  // Whether it can be used after an answer: it may have been cancelled when
  // that was there.
  bool usable() const { return !cancelled_; }

  // Ends it well, or cancels it where that has not worked by `end`. To be
  // called between messages.
  void Close(absl::Time end) {
    if (finished_) return;
    const CallOptions options;
    Wait waiting(*this, options, end);
    waiting.ForAll();
    stream_->WritesDone(Tag(kClosed));
    pending_ |= kClosed;
    waiting.ForAll();
    static_cast<void>(Finish(waiting));
  }

 private:
  // What is under way, as bits; their addresses are the operations' tags.
  static constexpr uint8_t kStarted = 1;
  static constexpr uint8_t kWritten = 2;
  static constexpr uint8_t kRead = 4;
  static constexpr uint8_t kClosed = 8;
  static constexpr uint8_t kFinished = 16;
  static void* Tag(const uint8_t& operation) {
    return const_cast<uint8_t*>(&operation);
  }

  // Waits for operations; cancels the call when the time is up or the caller
  // has changed its mind, and goes on waiting for the operations to fail.
  class Wait {
   public:
    Wait(StepStream& stream, const CallOptions& options, absl::Time end)
        : stream_(stream), options_(options), end_(end) {
      if (options_.interrupted) ask_at_ = absl::Now() + kAskEvery;
    }

    // Until no operations are under way. False if one of them failed.
    bool ForAll() {
      bool all_ok = true;
      void* tag;
      bool ok;
      while (stream_.pending_ != 0) {
        if (!Next(&tag, &ok)) continue;
        stream_.pending_ &=
            static_cast<uint8_t>(~*static_cast<const uint8_t*>(tag));
        all_ok = all_ok && ok;
      }
      return all_ok;
    }
    bool timed_out() const { return timed_out_; }

   private:
    bool Next(void** tag, bool* ok) {
      const absl::Time wake = std::min(end_, ask_at_);
      if (wake == absl::InfiniteFuture()) return stream_.queue_.Next(tag, ok);
      const auto next =
          stream_.queue_.AsyncNext(tag, ok, absl::ToChronoTime(wake));
      if (next == grpc::CompletionQueue::GOT_EVENT) return true;
      const absl::Time now = absl::Now();
      if (now >= ask_at_) {
        if (options_.interrupted()) stream_.Cancel();
        ask_at_ = now + kAskEvery;
      }
      if (now >= end_) {
        timed_out_ = true;
        stream_.Cancel();
        end_ = absl::InfiniteFuture();
      }
      return false;
    }

    StepStream& stream_;
    const CallOptions& options_;
    absl::Time end_;
    absl::Time ask_at_ = absl::InfiniteFuture();
    bool timed_out_ = false;
  };

  void Cancel() {
    cancelled_ = true;
    context_.TryCancel();
  }

  // How the stream ended, of which an operation has failed.
  absl::Status Finish(Wait& waiting) {
    grpc::Status status;
    stream_->Finish(&status, Tag(kFinished));
    pending_ |= kFinished;
    waiting.ForAll();
    finished_ = true;
    if (waiting.timed_out()) {
      return absl::DeadlineExceededError("Deadline Exceeded");
    }
    if (status.ok()) {
      return absl::UnavailableError("the stream ended without an answer");
    }
    return connection_.Explain(status, context_);
  }

  const Connection connection_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  uint8_t pending_ = 0;
  bool cancelled_ = false;
  bool finished_ = false;
};

StepStreams::StepStreams(Connection connection)
    : connection_(std::move(connection)) {}

StepStreams::~StepStreams() {
  const absl::Time end = absl::Now() + absl::FromChrono(kGoodbye);
  for (const std::unique_ptr<StepStream>& stream : idle_) stream->Close(end);
}

UnaryAnswer StepStreams::Run(const CallOptions& options, UnaryCall& call) {
  const absl::Time end = EndOf(options);
  UnaryAnswer answer;
  std::unique_ptr<StepStream> stream = TakeIdle();
  const bool kept = stream != nullptr;
  const auto exchange = [&] {
    if (stream == nullptr) {
      stream = std::make_unique<StepStream>(connection_, call.message_bytes);
    }
    answer.status =
        stream->Exchange(options, end, call.message, &answer.message);
    if (!answer.status.ok()) stream.reset();
  };
  exchange();
  if (kept && EndedBetweenMessages(answer.status)) exchange();
  call.message.Clear();
  // Who has answered a message has all of it, so that gRPC is about to let go
  // of lent memory. A stream that does not is given up.
  if (stream != nullptr && stream->usable() && call.lease.WaitFor(kGoodbye)) {
    Keep(std::move(stream));
  }
  stream.reset();
  call.lease.Wait();
  return answer;
}

std::unique_ptr<StepStream> StepStreams::TakeIdle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.empty()) return nullptr;
  std::unique_ptr<StepStream> stream = std::move(idle_.back());
  idle_.pop_back();
  return stream;
}

void StepStreams::Keep(std::unique_ptr<StepStream> stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.size() < kMostIdle) idle_.push_back(std::move(stream));
}

}  // namespace attention::internal
