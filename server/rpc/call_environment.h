// What calls of every kind share.
#ifndef ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_
#define ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_

#include <spdlog/logger.h>

#include "server/auth/authenticator.h"
#include "server/connections/connection_table.h"
#include "server/log_limiter.h"
#include "server/metrics/metrics.h"
#include "server/options.h"

namespace attention::server {

// Nothing is owned; all must outlive every call.
struct CallEnvironment {
  const Options& options;
  const Authenticator& authenticator;
  ConnectionTable& connections;
  spdlog::logger& log;
  LogLimiter& log_limiter;
  Metrics& metrics;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_
