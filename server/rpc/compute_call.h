// One ComputeAttention call, from its headers to its answer.
#ifndef ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
#define ATTENTION_SERVER_RPC_COMPUTE_CALL_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// Begins a call, whose message has not been read yet, and returns the reactor
// that gRPC wants for it; it deletes itself. On the wire the method is unary;
// for gRPC it is a stream here, so that the call can be let in, made to wait or
// refused before its message is read.
grpc::ServerGenericBidiReactor* StartComputeCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
