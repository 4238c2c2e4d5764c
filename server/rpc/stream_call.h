// One StreamAttention call, from its headers to its trailers.
#ifndef ATTENTION_SERVER_RPC_STREAM_CALL_H_
#define ATTENTION_SERVER_RPC_STREAM_CALL_H_

#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc/call_environment.h"

namespace attention::server {

// Begins a call, whose messages have not been read yet, and returns the reactor
// that gRPC wants for it; it deletes itself.
//
// What a stream holds, all of it charged before its first chunk is read: the
// query; two messages, one that comes and one that is copied, each of no more
// bytes than the stream's header lets it have; memory for the float_values of
// the one that is copied, of as many bytes; two page sets,
// one that is filled and one that the kernel computes on; the state of all
// rows; all of the output and the messages that carry it. It never asks for
// more. So whatever waits for whom, nothing grows: reads wait for room in a
// page set, computing for keys, writes for the client, and no thread for any of
// them.
grpc::ServerGenericBidiReactor* StartStreamCall(
    const ComputeEnvironment& environment,
    grpc::GenericCallbackServerContext* context);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAM_CALL_H_
