// Logs and counts the calls that are not ComputeAttention: GetCapabilities,
// health, reflection, and methods that nobody knows; gives their errors a
// reason and their answers the ids of their callers. Each of them has its part
// in the account of its connection. ComputeCall does all that for its own.
#ifndef ATTENTION_SERVER_RPC_CALL_COUNTER_H_
#define ATTENTION_SERVER_RPC_CALL_COUNTER_H_

#include <spdlog/logger.h>

#include "grpcpp/support/server_interceptor.h"
#include "server/auth/authenticator.h"
#include "server/connections/connection_table.h"
#include "server/log_limiter.h"
#include "server/metrics/metrics.h"
#include "server/options.h"

namespace attention::server {

// Makes an interceptor for each such call, which gRPC deletes with it. A
// stream, such as a health Watch, counts once: when it ends. Thread-safe, as
// gRPC demands. Nothing is owned; all must outlive every call.
class CallCounterFactory final
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  CallCounterFactory(const Options& options, const Authenticator& authenticator,
                     ConnectionTable& connections, spdlog::logger& log,
                     LogLimiter& log_limiter, Metrics& metrics)
      : max_header_bytes_(options.max_header_bytes),
        authenticator_(authenticator),
        connections_(connections),
        log_(log),
        log_limiter_(log_limiter),
        metrics_(metrics) {}

  // Null where there is nothing to count, or no memory for it.
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  const int64_t max_header_bytes_;
  const Authenticator& authenticator_;
  ConnectionTable& connections_;
  spdlog::logger& log_;
  LogLimiter& log_limiter_;
  Metrics& metrics_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_COUNTER_H_
