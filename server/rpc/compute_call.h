// One ComputeAttention call, from its bytes to its answer.
#ifndef ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
#define ATTENTION_SERVER_RPC_COMPUTE_CALL_H_

#include <spdlog/logger.h>

#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "kernel/thread_pool.h"
#include "server/admission/admission.h"
#include "base/buffer_pool.h"
#include "server/metrics/metrics.h"
#include "server/options.h"
#include "server/worker_threads.h"

namespace attention::server {

// What calls share. Nothing is owned; all must outlive every call.
struct CallEnvironment {
  const Options& options;
  Admission& admission;
  BufferPool& buffers;
  ThreadPool& compute;
  WorkerThreads& workers;
  spdlog::logger& log;
  Metrics& metrics;
};

// Begins a call and returns the reactor that gRPC wants for it; it deletes
// itself. Answers small requests before it returns; leaves long work to the
// workers.
grpc::ServerUnaryReactor* StartComputeCall(const CallEnvironment& environment,
                                           grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_COMPUTE_CALL_H_
