#include "attention/internal/unary_call.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/internal/interruption.h"
#include "attention/internal/shared_queue.h"

namespace attention::internal {
namespace {

void PrepareUnary(const Connection& connection, const CallOptions& options,
                  const UnaryCall& call, grpc::ClientContext& context) {
  Prepare(connection, options, context);
  context.AddMetadata(kRequestBytesHeader, absl::StrCat(call.message_bytes));
}

// A call that StartUnary() began, until it has ended.
struct Pending final : QueueEvent {
  Pending(const Connection& of, const CallOptions& options, UnaryCall to_begin,
          std::function<void(UnaryAnswer)> then)
      : connection(of), call(std::move(to_begin)), done(std::move(then)) {
    PrepareUnary(connection, options, call, context);
  }

  void Run(bool ok) override;

  const Connection connection;
  UnaryCall call;
  std::function<void(UnaryAnswer)> done;
  UnaryAnswer answer;
  grpc::Status status;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
  std::optional<StopCallback> stop;
  // Set by who begins the call, read by who ends it: gRPC orders the two, but
  // ThreadSanitizer does not see into it.
  std::atomic<bool> begun{false};
};

void Pending::Run(bool /*ok*/) {
  static_cast<void>(begun.load(std::memory_order_acquire));
  // In this order: the lease waits for what the others hold.
  answer.status = connection.Explain(status, context);
  const auto ended = std::make_shared<UnaryAnswer>(std::move(answer));
  Lease lease = std::move(call.lease);
  const auto then = std::move(done);
  delete this;
  std::move(lease).WhenReturned([then, ended] { then(std::move(*ended)); });
}

}  // namespace

void Prepare(const Connection& connection, const CallOptions& options,
             grpc::ClientContext& context) {
  connection.Authorize(context);
  if (options.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
}

CallOptions InTimeLeft(CallOptions options, absl::Time begin) {
  options.timeout =
      std::max(absl::ZeroDuration(), options.timeout - (absl::Now() - begin));
  return options;
}

UnaryAnswer RunUnary(const Connection& connection, const CallOptions& options,
                     UnaryCall& call) {
  UnaryAnswer answer;
  {
    // A queue of its own: the calling thread then does the connection's work
    // itself, which is faster than to be woken by one of gRPC's threads.
    grpc::CompletionQueue queue;
    grpc::ClientContext context;
    PrepareUnary(connection, options, call, context);
    grpc::GenericStub stub(connection.channel());
    const auto reader =
        stub.PrepareUnaryCall(&context, call.method, call.message, &queue);
    call.message.Clear();
    reader->StartCall();
    grpc::Status status;
    reader->Finish(&answer.message, &status, nullptr);
    const StopCallback stop(options.stop, Canceller{&context});
    void* tag;
    bool ok;
    Interruption(options.interrupted, context).Next(queue, &tag, &ok);
    answer.status = connection.Explain(status, context);
  }
  call.lease.Wait();
  return answer;
}

void StartUnary(const Connection& connection, const CallOptions& options,
                UnaryCall call, std::function<void(UnaryAnswer)> done) {
  auto* pending =
      new Pending(connection, options, std::move(call), std::move(done));
  grpc::GenericStub stub(connection.channel());
  pending->reader =
      stub.PrepareUnaryCall(&pending->context, pending->call.method,
                            pending->call.message, &SharedQueue());
  pending->call.message.Clear();
  pending->reader->StartCall();
  pending->stop.emplace(options.stop, Canceller{&pending->context});
  auto* reader = pending->reader.get();
  grpc::ByteBuffer* const message = &pending->answer.message;
  grpc::Status* const status = &pending->status;
  pending->begun.store(true, std::memory_order_release);
  // From here on it belongs to the queue's thread.
  reader->Finish(message, status, static_cast<QueueEvent*>(pending));
}

}  // namespace attention::internal
