#include "attention/internal/unary_call.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::internal {
namespace {

struct Canceller {
  grpc::ClientContext* context;
  void operator()() const { context->TryCancel(); }
};
using StopCallback = std::stop_callback<Canceller>;

void PrepareUnary(const Connection& connection, const CallOptions& options,
                  const UnaryCall& call, grpc::ClientContext& context) {
  Prepare(connection, options, context);
  context.AddMetadata(kRequestBytesHeader, absl::StrCat(call.message_bytes));
}

// A call that StartUnary() began, until it has ended.
struct Pending {
  Pending(const Connection& connection, const CallOptions& options,
          UnaryCall to_begin, std::function<void(UnaryAnswer)> then)
      : call(std::move(to_begin)), done(std::move(then)) {
    PrepareUnary(connection, options, call, context);
  }

  UnaryCall call;
  std::function<void(UnaryAnswer)> done;
  UnaryAnswer answer;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
  std::optional<StopCallback> stop;
  // Set by who begins the call, read by who ends it: gRPC orders the two, but
  // ThreadSanitizer does not see into it.
  std::atomic<bool> begun{false};
};

void Finish(std::unique_ptr<Pending> pending) {
  static_cast<void>(pending->begun.load(std::memory_order_acquire));
  const auto answer = std::make_shared<UnaryAnswer>(std::move(pending->answer));
  Lease lease = std::move(pending->call.lease);
  auto done = std::move(pending->done);
  pending.reset();
  std::move(lease).WhenReturned(
      [done = std::move(done), answer] { done(std::move(*answer)); });
}

// Where all calls of StartUnary() end, and the thread that ends them. Not
// gRPC's own callbacks: on their threads the last reference to a channel must
// not be dropped, which waits for those very threads, and a call holds one.
// Neither ever ends, so that a process may exit with calls under way.
grpc::CompletionQueue& SharedQueue() {
  static auto* const queue = [] {
    auto* queue = new grpc::CompletionQueue;
    std::thread([queue] {
      void* tag;
      bool ok;
      while (queue->Next(&tag, &ok)) {
        Finish(std::unique_ptr<Pending>(static_cast<Pending*>(tag)));
      }
    }).detach();
    return queue;
  }();
  return *queue;
}

}  // namespace

void Prepare(const Connection& connection, const CallOptions& options,
             grpc::ClientContext& context) {
  connection.Authorize(context);
  if (options.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
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
    reader->Finish(&answer.message, &answer.status, nullptr);
    const StopCallback stop(options.stop, Canceller{&context});
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
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
  UnaryAnswer& answer = pending->answer;
  pending->begun.store(true, std::memory_order_release);
  // From here on it belongs to the queue's thread.
  reader->Finish(&answer.message, &answer.status, pending);
}

}  // namespace attention::internal
