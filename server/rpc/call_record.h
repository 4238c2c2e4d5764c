// What is told about a call when it has ended: a log line and metrics, the same
// for every kind of call.
#ifndef ATTENTION_SERVER_RPC_CALL_RECORD_H_
#define ATTENTION_SERVER_RPC_CALL_RECORD_H_

#include <spdlog/logger.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "kernel/tensor_view.h"
#include "server/auth/tenant.h"
#include "server/inference/statistics.h"
#include "server/log_limiter.h"
#include "server/metrics/metrics.h"
#include "server/rpc/call_headers.h"

namespace attention::server {

// Filled in while the call runs, by one thread at a time; whoever ends the call
// from outside needs a lock (AdmittedCall).
struct CallRecord {
  explicit CallRecord(absl::string_view method) : method(method) {}

  // The same caller's next message, of those that count as calls, has come.
  void BeginAgain();

  absl::string_view method;  // as in CallSummary
  absl::Time arrival = absl::Now();
  TenantPtr tenant;  // null while it is not known
  int64_t request_bytes = 0;
  int64_t response_bytes = 0;
  // Phases, in their order: until it was let in; reading the message; decoding
  // it; until its first task began; computing; writing the answer.
  absl::Duration wait, receive, decode, queue, compute, encode;
  // Thread-seconds of computing, as foretold and as they were.
  double predicted_seconds = 0;
  double used_seconds = 0;
  // Of a call's tensors, once they are known, and the tokens of a stream: for
  // the log line.
  struct Shapes {
    Shape query, key, value;
    std::optional<int64_t> tokens;
  };
  std::optional<Shapes> shapes;
  CallerIds caller;
  // Where the call counts as an inference too; else null.
  InferenceStatistics* inferences = nullptr;
  // There is nothing to tell of its end: what came has been answered.
  bool answered = false;

  v1::Timing Timing() const;

  // Logs and counts the end of the call.
  void End(const absl::Status& status, spdlog::logger& log, LogLimiter& limiter,
           Metrics& metrics) const;

 private:
  void Log(const absl::Status& status, spdlog::logger& log,
           LogLimiter& limiter) const;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_RECORD_H_
