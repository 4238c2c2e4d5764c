// What calls share.
#ifndef ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_
#define ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_

#include <spdlog/logger.h>

#include <atomic>

#include "base/buffer_pool.h"
#include "base/executor.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/auth/authenticator.h"
#include "server/connections/connection_table.h"
#include "server/log_limiter.h"
#include "server/metrics/metrics.h"
#include "server/options.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

// Those of every kind. Nothing is owned; all must outlive every call.
struct CallEnvironment {
  const Options& options;
  const Authenticator& authenticator;
  ConnectionTable& connections;
  spdlog::logger& log;
  LogLimiter& log_limiter;
  Metrics& metrics;
};

// Those that compute.
struct ComputeEnvironment : CallEnvironment {
  Admission& admission;
  CostModel& costs;
  BufferPool& buffers;
  Executor& executor;
  // What clients on this machine share.
  const RegionTable& regions;
  // Whether clients have been told to leave: each connection is closed with its
  // last call.
  const std::atomic<bool>& leaving;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_ENVIRONMENT_H_
