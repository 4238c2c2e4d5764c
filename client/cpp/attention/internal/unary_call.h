// A call of one message and one answer, both as bytes.
#ifndef ATTENTION_INTERNAL_UNARY_CALL_H_
#define ATTENTION_INTERNAL_UNARY_CALL_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <stop_token>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/lease.h"

namespace attention::internal {

// What every call carries: the token, the deadline.
void Prepare(const Connection& connection, const CallOptions& options,
             grpc::ClientContext& context);

// The options of a second call, in the time that the first one left which began
// then.
CallOptions InTimeLeft(CallOptions options, absl::Time begin);

// Cancels a call when it is asked to stop.
struct Canceller {
  grpc::ClientContext* context;
  void operator()() const { context->TryCancel(); }
};
using StopCallback = std::stop_callback<Canceller>;

struct UnaryCall {
  UnaryCall() = default;
  // A ByteBuffer is copied where it could be moved, and then keeps its slices.
  UnaryCall(UnaryCall&& other) noexcept
      : method(std::move(other.method)),
        message_bytes(other.message_bytes),
        lease(std::move(other.lease)) {
    message.Swap(&other.message);
  }

  std::string method;  // "/package.Service/Method"
  // Sent in kRequestBytesHeader.
  size_t message_bytes = 0;
  grpc::ByteBuffer message;
  // What the message's slices were lent from.
  Lease lease;
};

struct UnaryAnswer {
  // As Connection::Explain() tells it.
  absl::Status status;
  grpc::ByteBuffer message;
};

// One try. Returns when the call has ended and nothing refers to lent memory
// any more. The lease is left to the caller, to be looked at.
UnaryAnswer RunUnary(const Connection& connection, const CallOptions& options,
                     UnaryCall& call);

// Calls `done` once, when RunUnary() would return, on another thread.
void StartUnary(const Connection& connection, const CallOptions& options,
                UnaryCall call, std::function<void(UnaryAnswer)> done);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_UNARY_CALL_H_
