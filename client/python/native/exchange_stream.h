// A stream each of whose messages is answered by one.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_EXCHANGE_STREAM_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_EXCHANGE_STREAM_H_

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "attention/connection.h"
#include "attention/internal/shared_queue.h"

namespace attention::python {

// Begins with its first message. One message at a time: the next Exchange()
// comes after the last one's `done`. Between messages it has no operation under
// way, so that it may be destroyed then, which cancels the stream.
class ExchangeStream {
 public:
  // What happens is done by who takes the events of `queue`, which are
  // internal::QueueEvents; it must outlive the stream.
  ExchangeStream(Connection connection, std::string method,
                 grpc::CompletionQueue& queue);
  ~ExchangeStream();
  ExchangeStream(const ExchangeStream&) = delete;
  ExchangeStream& operator=(const ExchangeStream&) = delete;

  // Sends `message` and calls `done` once, with its answer or with why there is
  // none: then the stream has ended, and nothing of it refers to the message
  // any more. `done` may destroy the stream. A request to stop ends it.
  using Done = std::function<void(const absl::Status&, grpc::ByteBuffer&)>;
  void Exchange(grpc::ByteBuffer& message, std::stop_token stop, Done done);

  // Tells the server that no message comes any more, and calls `done` once it
  // has ended the stream; at once if it has not begun, or has ended. Nothing
  // but Cancel() may be called then.
  void Close(std::stop_token stop, Done done);

  // Ends the stream. Thread-safe, until `done` is called.
  void Cancel();

 private:
  class Event final : public internal::QueueEvent {
   public:
    Event(ExchangeStream& stream, void (ExchangeStream::*function)(bool))
        : stream_(stream), function_(function) {}
    void Run(bool ok) override;
    void* tag() { return static_cast<internal::QueueEvent*>(this); }

   private:
    ExchangeStream& stream_;
    void (ExchangeStream::* const function_)(bool);
  };
  struct Canceller {
    ExchangeStream* stream;
    void operator()() const { stream->Cancel(); }
  };

  void Started(bool ok);
  void Written(bool ok);
  void Read(bool ok);
  void Closed(bool ok);
  void Finished(bool ok);

  void Send();
  void EndIfBoth();
  void Finish();
  void End(const absl::Status& status);

  const Connection connection_;
  const std::string method_;
  grpc::CompletionQueue& queue_;
  std::unique_ptr<grpc::ClientContext> context_;
  // Null: not begun, or ended.
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer message_;
  grpc::ByteBuffer answer_;
  grpc::Status status_;
  Done done_;
  std::optional<std::stop_callback<Canceller>> stop_;
  bool writing_ = false;
  bool reading_ = false;
  bool answered_ = false;
  // gRPC orders who begins an operation and who goes on with it, but
  // ThreadSanitizer does not see into it.
  std::atomic<int> handovers_{0};
  Event started_{*this, &ExchangeStream::Started};
  Event written_{*this, &ExchangeStream::Written};
  Event read_{*this, &ExchangeStream::Read};
  Event closed_{*this, &ExchangeStream::Closed};
  Event finished_{*this, &ExchangeStream::Finished};
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_EXCHANGE_STREAM_H_
