// What the calls of every method but ComputeAttention have in common. gRPC
// hands them over with their messages unread and as bytes, so that nothing is
// read for those who may not call, and what is wrong with a message is said
// here: what gRPC's generated code says of it depends on gRPC's version.
#ifndef ATTENTION_SERVER_RPC_RAW_CALL_H_
#define ATTENTION_SERVER_RPC_RAW_CALL_H_

#include <atomic>
#include <cstdint>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/admission/refusals.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/call_record.h"
#include "server/rpc/call_traffic.h"

namespace attention::server {

// Who may call a method.
enum class Access : uint8_t {
  kAnybody,
  kHealth,
  kTenants,
  kTenantsHere,  // those on this machine
};

struct RawMethod {
  absl::string_view name;  // as in CallSummary
  Access access;
};

// Deletes itself when gRPC is done with it. gRPC calls back from one thread at
// a time, but for OnCancel(), and OnWriteDone() beside a read.
class RawCall : public grpc::ServerGenericBidiReactor {
 public:
  // A larger message ends its call with RESOURCE_EXHAUSTED.
  static constexpr int64_t kMaxMessageBytes = int64_t{64} << 10;

  // `environment` must outlive the call.
  RawCall(const CallEnvironment& environment, const RawMethod& method,
          grpc::GenericCallbackServerContext* context);

  // Once, before gRPC has the call: checks headers and whose call it is, and
  // reads the first message.
  void Start();

 protected:
  // The call is let in: it may still be refused, unread.
  virtual absl::Status Begin() { return absl::OkStatus(); }
  // A message came. The next one is read with ReadNext().
  virtual void Received(const grpc::ByteBuffer& message) = 0;
  // The client sends no more.
  virtual void NoMore() = 0;
  // The call has failed.
  virtual void Fail(const absl::Status& status) { End(status); }

  // Null where nobody had to say who calls.
  const TenantPtr& tenant() const { return record_.tenant; }

  void ReadNext();
  // Only the first End() counts. Nothing may be started from then on.
  void End(const absl::Status& status);
  void EndWith(const grpc::ByteBuffer& answer);

  // Runs `step`; what fails for want of memory ends the call, and nothing else.
  template <typename Step>
  void Guarded(const Step& step);

  // Between what is done before gRPC is called and what follows when it calls
  // back. It orders the two itself, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  void OnCancel() override;

 private:
  void OnReadDone(bool ok) final;
  void OnDone() final;

  absl::Status Allowed();

  const CallEnvironment& env_;
  const Access access_;
  grpc::GenericCallbackServerContext* const context_;
  CallRecord record_;
  CallTraffic traffic_;
  grpc::ByteBuffer message_;
  grpc::ByteBuffer answer_;
  std::atomic<int> handovers_{0};
  std::atomic<bool> ended_{false};
  std::atomic<bool> given_up_{false};  // cancelled before its deadline
};

template <typename Step>
void RawCall::Guarded(const Step& step) {
  try {
    step();
  } catch (const std::bad_alloc&) {
    Fail(OutOfMemory());
  }
}

// What gRPC wants of a call that begins.
template <typename Call, typename... Arguments>
grpc::ServerGenericBidiReactor* StartRawCall(Arguments&&... arguments) {
  auto* call = new Call(std::forward<Arguments>(arguments)...);
  call->Start();
  return call;
}

// InvalidArgument if the bytes are no such message.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes,
                          google::protobuf::MessageLite* message);
grpc::ByteBuffer MessageBytes(const google::protobuf::MessageLite& message);

absl::Status CallCancelled();

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_RAW_CALL_H_
