#include "server/rpc/one_message_call.h"

#include <cstdint>

#include "absl/time/clock.h"
#include "server/admission/refusals.h"
#include "server/rpc/call_end.h"

namespace attention::server {

void OneMessageCall::ReadFirst() {
  read_since_ = absl::Now();
  ReadInto(&request_);
}

void OneMessageCall::OnReadDone(bool ok) {
  HandOver();
  if (ended_) return;
  Guarded([&] {
    // A read that fails since the stream broke may come before OnCancel().
    if (!ok && (cancelled_ || context_->IsCancelled())) {
      return (void)End(Abandoned());
    }
    if (!has_message_) {
      if (!ok) return (void)End(WrongNumberOfMessages("none"));
      has_message_ = true;
      // Until this one fails the call is still being read: only then is it
      // known that there is no second message.
      return (void)ReadInto(&surplus_);
    }
    if (ok) return (void)End(WrongNumberOfMessages("more than one"));
    if (absl::Status status = Accept(); !status.ok()) return (void)End(status);
    Received();
  });
}

absl::Status OneMessageCall::Accept() {
  received_ = absl::Now();
  Note([&](CallRecord& record) {
    record.receive = received_ - record.arrival - record.wait;
    record.request_bytes = static_cast<int64_t>(request_.Length());
    message_bytes_ = record.request_bytes;
    read_since_.reset();
  });
  if (record_.request_bytes > env_.options.max_request_bytes) {
    return RequestTooLarge(record_.request_bytes,
                           env_.options.max_request_bytes);
  }
  return ticket_.ReadDone(record_.request_bytes);
}

// Of a large answer.
void OneMessageCall::OnWriteDone(bool /*ok*/) {
  HandOver();
  Hold();
  FinishOnceTaken();
}

void OneMessageCall::Answer(const grpc::ByteBuffer& response) {
  response_ = response;
  Note([&](CallRecord& record) {
    record.response_bytes = static_cast<int64_t>(response_.Length());
  });
  End(absl::OkStatus());
}

void OneMessageCall::TellSuccess() {
  env_.costs.RecordCall(record_.request_bytes,
                        record_.predicted_seconds +
                            env_.costs.TransferSeconds(record_.request_bytes +
                                                       record_.response_bytes));
  ticket_.Sending(record_.response_bytes);
}

void OneMessageCall::SendAnswer() {
  if (record_.response_bytes > kLargeAnswer) return StartWrite(&response_);
  StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
}

}  // namespace attention::server
