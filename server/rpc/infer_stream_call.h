// One ModelStreamInfer stream.
#ifndef ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_
#define ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/infer_call.h"

namespace attention::server {

// As StartComputeCall().
grpc::ServerGenericBidiReactor* StartInferStreamCall(
    const ComputeEnvironment& environment, const InferenceState& state,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_
