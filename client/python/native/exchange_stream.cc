#include "client/python/native/exchange_stream.h"

#include <utility>

namespace attention::python {

ExchangeStream::ExchangeStream(Connection connection, std::string method,
                               grpc::CompletionQueue& queue)
    : connection_(std::move(connection)),
      method_(std::move(method)),
      queue_(queue),
      context_(std::make_unique<grpc::ClientContext>()) {}

ExchangeStream::~ExchangeStream() = default;

void ExchangeStream::Exchange(grpc::ByteBuffer& message, std::stop_token stop,
                              Done done) {
  message_.Swap(&message);
  done_ = std::move(done);
  answered_ = false;
  stop_.emplace(std::move(stop), Canceller{this});
  if (call_ != nullptr) return Send();
  connection_.Authorize(*context_);
  grpc::GenericStub stub(connection_.channel());
  call_ = stub.PrepareCall(context_.get(), method_, &queue_);
  auto* const call = call_.get();
  void* const started = started_.tag();
  handovers_.fetch_add(1, std::memory_order_release);
  // From here on it belongs to who takes the events.
  call->StartCall(started);
}

void ExchangeStream::Close(std::stop_token stop, Done done) {
  if (call_ == nullptr) {
    grpc::ByteBuffer none;
    return done(absl::OkStatus(), none);
  }
  done_ = std::move(done);
  stop_.emplace(std::move(stop), Canceller{this});
  auto* const call = call_.get();
  void* const closed = closed_.tag();
  handovers_.fetch_add(1, std::memory_order_release);
  // From here on it belongs to who takes the events.
  call->WritesDone(closed);
}

void ExchangeStream::Cancel() { context_->TryCancel(); }

void ExchangeStream::Event::Run(bool ok) {
  static_cast<void>(stream_.handovers_.load(std::memory_order_acquire));
  (stream_.*function_)(ok);
}

void ExchangeStream::Started(bool ok) { ok ? Send() : Finish(); }

void ExchangeStream::Send() {
  writing_ = reading_ = true;
  auto* const call = call_.get();
  grpc::ByteBuffer message;
  message.Swap(&message_);
  grpc::ByteBuffer* const answer = &answer_;
  void* const read = read_.tag();
  handovers_.fetch_add(1, std::memory_order_release);
  // What is written ends nothing while the answer is not read: all is there
  // until Read() is called.
  call->Write(message, written_.tag());
  call->Read(answer, read);
}

void ExchangeStream::Written(bool /*ok*/) {
  writing_ = false;
  EndIfBoth();
}

void ExchangeStream::Read(bool ok) {
  reading_ = false;
  answered_ = ok;
  EndIfBoth();
}

void ExchangeStream::EndIfBoth() {
  if (writing_ || reading_) return;
  answered_ ? End(absl::OkStatus()) : Finish();
}

void ExchangeStream::Closed(bool /*ok*/) { Finish(); }

void ExchangeStream::Finish() { call_->Finish(&status_, finished_.tag()); }

void ExchangeStream::Finished(bool /*ok*/) {
  absl::Status status = connection_.Explain(status_, *context_);
  if (status.ok()) {
    status =
        absl::UnavailableError("the server ended the stream before its answer");
  }
  stop_.reset();
  // In this order; with them goes what they hold of the message, and with
  // message_ what was never sent.
  call_.reset();
  message_.Clear();
  context_ = std::make_unique<grpc::ClientContext>();
  End(status);
}

void ExchangeStream::End(const absl::Status& status) {
  stop_.reset();
  grpc::ByteBuffer answer;
  answer.Swap(&answer_);
  const Done done = std::move(done_);
  done(status, answer);
}

}  // namespace attention::python
