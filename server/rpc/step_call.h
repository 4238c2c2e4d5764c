// SessionService's Step.
#ifndef ATTENTION_SERVER_RPC_STEP_CALL_H_
#define ATTENTION_SERVER_RPC_STEP_CALL_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"
#include "sessions/session_store.h"

namespace attention::server {

// Begins a call, which deletes itself when gRPC is done with it. `environment`
// and `store` must outlive it.
grpc::ServerGenericBidiReactor* StartStepCall(
    const ComputeEnvironment& environment, SessionStore& store,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STEP_CALL_H_
