// What the server tells about itself to Prometheus. docs/operations.md lists
// every metric.
#ifndef ATTENTION_SERVER_METRICS_METRICS_H_
#define ATTENTION_SERVER_METRICS_METRICS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status_code_enum.h"

namespace attention::server {

// A call that has ended. Texts and code become labels, so each is one of a
// fixed set, never a client's: what is not in the set counts as "other".
struct CallSummary {
  // A method's name without its service, "ComputeAttention", but for those of
  // health, "Health/Check", and "Reflection".
  absl::string_view method;
  grpc::StatusCode code = grpc::StatusCode::OK;
  // Why the server refused to do the work, by ReasonName() of status.h; empty
  // if it did not refuse.
  absl::string_view reason = {};
  int64_t request_bytes = 0;
  int64_t response_bytes = 0;
  // How long each phase took; zero for one that the call did not reach: until
  // the call was let in, reading its body, decoding it, until its first task
  // began, and so on. Total is from its headers to its end.
  absl::Duration wait = {};
  absl::Duration receive = {};
  absl::Duration decode = {};
  absl::Duration queue = {};
  absl::Duration compute = {};
  absl::Duration encode = {};
  absl::Duration send = {};
  absl::Duration total = {};
  // Work in seconds of one thread.
  double predicted_seconds = 0;
  double used_seconds = 0;
};

// Of a tenant, which the server's operator named.
struct TenantSample {
  std::string name;
  // Since the tenant was first configured, by how they ended: with an answer,
  // refused, or else.
  std::array<double, 3> calls{};
  double used_seconds = 0;
  // Now.
  int64_t bytes = 0;
  int64_t sessions = 0;
  int64_t session_bytes = 0;
};

// What is so at this moment.
struct Snapshot {
  // The budget, what each kind of memory takes from it, and unused memory that
  // is kept.
  int64_t budget_bytes = 0;
  int64_t reading_bytes = 0;
  int64_t tensor_bytes = 0;
  int64_t answer_bytes = 0;
  int64_t scratch_bytes = 0;
  int64_t header_bytes = 0;
  int64_t http_bytes = 0;
  int64_t pooled_bytes = 0;
  int64_t waiting_calls = 0;
  int64_t running_calls = 0;
  // Work of the calls that wait or run, in seconds of one thread.
  double queued_seconds = 0;
  // Rates of one thread, measured while running.
  double multiply_adds_per_second = 0;
  double bytes_per_second = 0;
  // Of gRPC.
  int64_t connections = 0;
  int64_t max_connections = 0;
  int64_t connections_cut = 0;  // since the start
  // Kept between calls.
  int64_t sessions = 0;
  int64_t session_bytes = 0;
  int64_t max_session_bytes = 0;
  // That clients on this machine share.
  int64_t shared_bytes = 0;
  int64_t max_shared_bytes = 0;
  // Since the start.
  int64_t log_lines_dropped = 0;
  bool draining = false;
  // Those configured now.
  std::vector<TenantSample> tenants = {};
};

// Labels of attention_build_info, and what does not change while it runs.
struct BuildInfo {
  std::string version;
  std::string simd_target;
  std::string grpc_version;
  // That compute.
  int64_t threads = 0;
};

// Thread-safe. The number of time series is fixed: every one exists from the
// start, at zero; those of a snapshot once there is a source of them, and those
// of tenants while they are configured.
class Metrics {
 public:
  explicit Metrics(const BuildInfo& build);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // Cheap and never blocks for long: each histogram has a lock of its own that
  // is held for a few additions. Figures that are negative or not finite count
  // as zero.
  void CallEnded(const CallSummary& call);

  // An answer to a request over HTTP, with that status. Statuses that the
  // server does not send count as "other".
  void CountHttpAnswer(int status);

  // Called at each scrape, one at a time. It must not block and must not call
  // this object. Null takes it away: once this has returned it is not called
  // any more.
  void SetSnapshotSource(std::function<Snapshot()> source);

  // Everything in Prometheus' text format 0.0.4.
  std::string Text();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_METRICS_METRICS_H_
