// One ModelStreamInfer stream.
#ifndef ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_
#define ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/inference/statistics.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// As StartComputeCall(). `statistics` must outlive the call.
grpc::ServerGenericBidiReactor* StartInferStreamCall(
    const ComputeEnvironment& environment, InferenceStatistics& statistics,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_INFER_STREAM_CALL_H_
