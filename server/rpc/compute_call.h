// One ComputeAttention call, from its headers to its answer.
#ifndef ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
#define ATTENTION_SERVER_RPC_COMPUTE_CALL_H_

#include <atomic>

#include "base/buffer_pool.h"
#include "base/executor.h"
#include "grpcpp/generic/async_generic_service.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// Nothing is owned; all must outlive every call.
struct ComputeEnvironment : CallEnvironment {
  Admission& admission;
  CostModel& costs;
  BufferPool& buffers;
  Executor& executor;
  // Whether clients have been told to leave: each connection is closed with its
  // last call.
  const std::atomic<bool>& leaving;
};

// The header in which a client may tell the size of its message in bytes, so
// that exactly this much memory is kept for it before it is read.
inline constexpr char kRequestBytesHeader[] = "attention-request-bytes";

// Begins a call, whose message has not been read yet, and returns the reactor
// that gRPC wants for it; it deletes itself. On the wire the method is unary;
// for gRPC it is a stream here, so that the call can be let in, made to wait or
// refused before its message is read.
grpc::ServerGenericBidiReactor* StartComputeCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
