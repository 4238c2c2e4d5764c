#include "server/rpc/raw_call.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "grpc/support/time.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/slice.h"
#include "server/rpc/call_end.h"
#include "server/rpc/call_headers.h"
#include "server/status.h"

namespace attention::server {
namespace {

absl::Status MessageTooLarge(int64_t bytes) {
  return WithReason(Reason::kRequestTooLarge,
                    absl::ResourceExhaustedError(absl::StrCat(
                        "the request has ", bytes, " bytes, wanted at most ",
                        RawCall::kMaxMessageBytes)));
}

}  // namespace

RawCall::RawCall(const CallEnvironment& environment, const RawMethod& method,
                 grpc::GenericCallbackServerContext* context)
    : env_(environment),
      access_(method.access),
      context_(context),
      record_(method.name),
      traffic_(environment.connections, context->peer(),
               HeaderBytes(context->client_metadata())) {}

void RawCall::Start() {
  Guarded([&] {
    record_.caller = CallerIds(context_->client_metadata());
    absl::Status status = CheckHeaders(context_->client_metadata(),
                                       env_.options.max_header_bytes);
    if (status.ok()) status = Allowed();
    if (status.ok()) status = Begin();
    if (!status.ok()) return Fail(status);
    ReadNext();
  });
  HandOver();
}

absl::Status RawCall::Allowed() {
  const CallHeaders& headers = context_->client_metadata();
  absl::StatusOr<TenantPtr> tenant = env_.authenticator.Check(headers);
  if (tenant.ok()) record_.tenant = *tenant;
  switch (access_) {
    case Access::kAnybody:
      return absl::OkStatus();
    case Access::kHealth:
      return env_.authenticator.CheckHealth(headers);
    case Access::kTenants:
      return tenant.status();
    case Access::kTenantsHere:
      return tenant.ok() && !IsOnThisMachine(*context_) ? FromElsewhere()
                                                        : tenant.status();
  }
  return absl::OkStatus();
}

void RawCall::ReadNext() {
  HandOver();
  StartRead(&message_);
}

void RawCall::OnReadDone(bool ok) {
  HandOver();
  Guarded([&] {
    if (!ok) {
      return context_->IsCancelled() ? Fail(CallCancelled()) : NoMore();
    }
    const auto bytes = static_cast<int64_t>(message_.Length());
    if (bytes > kMaxMessageBytes) {
      message_.Clear();
      return Fail(MessageTooLarge(bytes));
    }
    grpc::ByteBuffer message;
    message.Swap(&message_);
    Received(message);
  });
  // gRPC is done with the call only once this has returned.
  HandOver();
}

void RawCall::End(const absl::Status& status) {
  if (ended_.exchange(true)) return;
  const grpc::Status result = EndCall(status, record_, env_, *context_);
  HandOver();
  Finish(result);
}

void RawCall::EndWith(const grpc::ByteBuffer& answer) {
  if (ended_.exchange(true)) return;
  answer_ = answer;
  const grpc::Status result =
      EndCall(absl::OkStatus(), record_, env_, *context_);
  HandOver();
  StartWriteAndFinish(&answer_, grpc::WriteOptions(), result);
}

void RawCall::OnCancel() {
  HandOver();
  const gpr_timespec deadline = context_->raw_deadline();
  given_up_ = gpr_time_cmp(gpr_now(deadline.clock_type), deadline) < 0;
  HandOver();
}

void RawCall::OnDone() {
  HandOver();
  traffic_.End({.cancelled = given_up_});
  delete this;
}

absl::Status ParseMessage(const grpc::ByteBuffer& bytes,
                          google::protobuf::MessageLite* message) {
  grpc::ByteBuffer read = bytes;  // The same slices.
  grpc::ProtoBufferReader reader(&read);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the request is not a valid ", message->GetTypeName(), " message"));
}

grpc::ByteBuffer MessageBytes(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status CallCancelled() {
  return absl::CancelledError("the call was cancelled");
}

}  // namespace attention::server
