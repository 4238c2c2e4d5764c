#include "server/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/metrics/process_metrics.h"
#include "server/metrics/sample.h"
#include "server/status.h"

namespace attention::server {
namespace {

using ::prometheus::Counter;
using ::prometheus::Family;
using ::prometheus::Histogram;
using ::prometheus::MetricFamily;

// The last of each list counts what is in none.
constexpr absl::string_view kMethods[] = {"ComputeAttention",
                                          "StreamAttention",
                                          "GetCapabilities",
                                          "Sessions",
                                          "AppendKeyValues",
                                          "Attend",
                                          "Step",
                                          "ModelInfer",
                                          "ModelStreamInfer",
                                          "Inference",
                                          "Health/Check",
                                          "Health/List",
                                          "Health/Watch",
                                          "Reflection",
                                          "other"};
constexpr absl::string_view kReasons[] = {"QUEUE_FULL",
                                          "DEADLINE_TOO_CLOSE",
                                          "MEMORY_BUSY",
                                          "MEMORY_TOO_LARGE",
                                          "OUT_OF_MEMORY",
                                          "HEADERS_TOO_LARGE",
                                          "REQUEST_TOO_LARGE",
                                          "ANSWER_TOO_LARGE",
                                          "DRAINING",
                                          "SLOW_UPLOAD",
                                          "SLOW_READER",
                                          "IDLE_TOO_LONG",
                                          "TOKEN_MISSING",
                                          "TOKEN_MALFORMED",
                                          "TOKEN_UNKNOWN",
                                          "TENANT_NOT_ALLOWED",
                                          "TENANT_TOO_LARGE",
                                          "TENANT_BYTES",
                                          "TENANT_WORK",
                                          "TOO_MANY_STREAMS",
                                          "SESSION_BYTES",
                                          "SESSION_COUNT",
                                          "other"};
// What is answered over HTTP.
constexpr absl::string_view kHttpStatuses[] = {
    "200", "204", "400", "401", "403", "404", "405", "409",  "413",
    "415", "429", "499", "500", "501", "503", "504", "other"};
// How a call ended: with an answer, refused by the server, or else.
constexpr absl::string_view kResults[] = {"ok", "refused", "error"};
// gRPC's codes are 0 to 16.
constexpr size_t kCodes = 17;

// A phase's label and where a summary has it.
struct Phase {
  const char* name;
  absl::Duration CallSummary::* duration;
};
constexpr Phase kPhases[] = {
    {"wait", &CallSummary::wait},       {"receive", &CallSummary::receive},
    {"decode", &CallSummary::decode},   {"queue", &CallSummary::queue},
    {"compute", &CallSummary::compute}, {"encode", &CallSummary::encode},
    {"send", &CallSummary::send}};

// Seconds: small calls take 0.1 ms, the largest minutes.
const Histogram::BucketBoundaries& LatencyBuckets() {
  static const auto& buckets = *new Histogram::BucketBoundaries{
      1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05,
      0.1,  0.25,   0.5,  1,    2.5,    5,    10,   30,    60};
  return buckets;
}

template <size_t kCount>
size_t IndexOf(const absl::string_view (&names)[kCount],
               absl::string_view name) {
  const auto* const found = std::find(names, names + kCount, name);
  return std::min<size_t>(found - names, kCount - 1);
}

size_t ResultOf(const CallSummary& call) {
  if (!call.reason.empty()) return 1;
  return call.code == grpc::StatusCode::OK ? 0 : 2;
}

double Finite(double value) {
  return std::isfinite(value) && value > 0 ? value : 0;
}

double Finite(absl::Duration duration) {
  return Finite(absl::ToDoubleSeconds(duration));
}

// A counter for each value of one label.
template <size_t kCount>
std::array<Counter*, kCount> CountersBy(
    const std::string& label, const absl::string_view (&values)[kCount],
    Family<Counter>& family) {
  std::array<Counter*, kCount> counters;
  for (size_t i = 0; i < kCount; ++i) {
    counters[i] = &family.Add({{label, std::string(values[i])}});
  }
  return counters;
}

Family<Counter>& AddCounter(prometheus::Registry& registry, const char* name,
                            const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

Family<Histogram>& AddHistogram(prometheus::Registry& registry,
                                const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

std::vector<MetricFamily> BuildFamilies(const BuildInfo& build) {
  return {GaugeFamily("attention_build_info",
                      "What runs: always 1, the labels tell.",
                      {{1,
                        {{"version", build.version},
                         {"simd_target", build.simd_target},
                         {"grpc_version", build.grpc_version}}}}),
          GaugeFamily("attention_compute_threads", "Threads that compute.",
                      {{static_cast<double>(build.threads), {}}})};
}

std::vector<MetricFamily> SnapshotFamilies(const Snapshot& now) {
  std::vector<MetricFamily> families;
  const auto gauge = [&](const char* name, const char* help, auto value) {
    families.push_back(
        GaugeFamily(name, help, {{static_cast<double>(value), {}}}));
  };
  const auto kind = [](const char* name, int64_t bytes) {
    return Sample{static_cast<double>(bytes), {{"kind", name}}};
  };
  families.push_back(GaugeFamily(
      "attention_memory_bytes",
      "Memory of calls by kind; pooled is unused and kept for the next ones.",
      {kind("reading", now.reading_bytes), kind("tensors", now.tensor_bytes),
       kind("answers", now.answer_bytes), kind("scratch", now.scratch_bytes),
       kind("headers", now.header_bytes), kind("http", now.http_bytes),
       kind("pooled", now.pooled_bytes)}));
  gauge("attention_memory_limit_bytes",
        "Most memory that calls may hold together (--max-inflight-bytes).",
        now.budget_bytes);
  gauge("attention_waiting_calls", "Calls that wait to be let in.",
        now.waiting_calls);
  gauge("attention_running_calls", "Calls that are being worked on.",
        now.running_calls);
  gauge("attention_queued_work_seconds",
        "Predicted work of waiting and running calls, in seconds of a thread.",
        now.queued_seconds);
  gauge("attention_measured_multiply_adds_per_second",
        "Multiply-adds that a thread does per second, measured while running.",
        now.multiply_adds_per_second);
  gauge("attention_measured_bytes_per_second",
        "Bytes that a thread moves per second, measured while running.",
        now.bytes_per_second);
  gauge("attention_connections", "Connections of gRPC that are open.",
        now.connections);
  gauge("attention_connections_limit",
        "Most connections of gRPC at once; 0: no limit.", now.max_connections);
  families.push_back(CounterFamily(
      "attention_connections_cut_total",
      "Connections that were cut because their peers flooded the server.",
      {{static_cast<double>(now.connections_cut), {}}}));
  gauge("attention_sessions", "Sessions.", now.sessions);
  gauge("attention_session_bytes", "Keys and values of sessions, in memory.",
        now.session_bytes);
  gauge("attention_session_limit_bytes", "Most of them.",
        now.max_session_bytes);
  gauge("attention_shared_memory_bytes",
        "Memory that clients on this machine share.", now.shared_bytes);
  gauge("attention_shared_memory_limit_bytes",
        "Most of it; 0: none can be shared.", now.max_shared_bytes);
  gauge("attention_draining", "1 once the server is shutting down, else 0.",
        now.draining);
  families.push_back(
      CounterFamily("attention_log_lines_dropped_total",
                    "Log lines that nobody read in time.",
                    {{static_cast<double>(now.log_lines_dropped), {}}}));
  return families;
}

std::vector<MetricFamily> TenantFamilies(
    const std::vector<TenantSample>& tenants) {
  if (tenants.empty()) return {};
  std::vector<Sample> calls, used, bytes, sessions, session_bytes;
  for (const TenantSample& tenant : tenants) {
    for (size_t r = 0; r < std::size(kResults); ++r) {
      calls.push_back(
          {tenant.calls[r],
           {{"tenant", tenant.name}, {"result", std::string(kResults[r])}}});
    }
    used.push_back({tenant.used_seconds, {{"tenant", tenant.name}}});
    bytes.push_back(
        {static_cast<double>(tenant.bytes), {{"tenant", tenant.name}}});
    sessions.push_back(
        {static_cast<double>(tenant.sessions), {{"tenant", tenant.name}}});
    session_bytes.push_back(
        {static_cast<double>(tenant.session_bytes), {{"tenant", tenant.name}}});
  }
  return {
      CounterFamily("attention_tenant_calls_total",
                    "Calls that ended, by tenant and how they ended.", calls),
      CounterFamily("attention_tenant_used_work_seconds_total",
                    "Seconds of threads that a tenant's ended calls took.",
                    used),
      GaugeFamily("attention_tenant_memory_bytes",
                  "Memory that a tenant's calls hold.", bytes),
      GaugeFamily("attention_tenant_sessions", "Sessions of a tenant.",
                  sessions),
      GaugeFamily("attention_tenant_session_bytes",
                  "Memory that a tenant's sessions hold.", session_bytes)};
}

}  // namespace

struct Metrics::State {
  explicit State(const BuildInfo& build);

  prometheus::Registry registry;
  // Owned by the registry.
  std::array<std::array<Counter*, kCodes>, std::size(kMethods)> calls;
  std::array<std::array<Histogram*, std::size(kResults)>, std::size(kMethods)>
      durations;
  std::array<Histogram*, std::size(kPhases)> phases;
  std::array<Counter*, std::size(kReasons)> refusals;
  std::array<Counter*, std::size(kHttpStatuses)> http_answers;
  std::array<Counter*, std::size(kResults)> used_work;
  Counter* predicted_work;
  Counter* request_bytes;
  Counter* response_bytes;

  // What is read at a scrape, all guarded by scrape_mutex.
  std::mutex scrape_mutex;
  const std::vector<MetricFamily> build_families;
  ProcessMetrics process;
  std::function<Snapshot()> source;
};

Metrics::State::State(const BuildInfo& build)
    : build_families(BuildFamilies(build)) {
  auto& call_family = AddCounter(registry, "attention_calls_total",
                                 "Calls that ended, by method and gRPC code.");
  auto& duration_family = AddHistogram(
      registry, "attention_call_duration_seconds",
      "From a call's headers to its end, by method and how it ended.");
  for (size_t m = 0; m < std::size(kMethods); ++m) {
    const std::string method(kMethods[m]);
    for (size_t code = 0; code < kCodes; ++code) {
      const auto name = CodeName(static_cast<grpc::StatusCode>(code));
      calls[m][code] =
          &call_family.Add({{"method", method}, {"code", std::string(name)}});
    }
    for (size_t r = 0; r < std::size(kResults); ++r) {
      durations[m][r] = &duration_family.Add(
          {{"method", method}, {"result", std::string(kResults[r])}},
          LatencyBuckets());
    }
  }
  auto& phase_family =
      AddHistogram(registry, "attention_call_phase_duration_seconds",
                   "Time in each phase, of the calls that reached it.");
  for (size_t p = 0; p < std::size(kPhases); ++p) {
    phases[p] =
        &phase_family.Add({{"phase", kPhases[p].name}}, LatencyBuckets());
  }
  http_answers = CountersBy(
      "status", kHttpStatuses,
      AddCounter(registry, "attention_http_answers_total",
                 "Answers over HTTP, by status; scrapes and probes too."));
  refusals =
      CountersBy("reason", kReasons,
                 AddCounter(registry, "attention_refusals_total",
                            "Calls that the server refused, by reason."));
  used_work = CountersBy(
      "result", kResults,
      AddCounter(registry, "attention_used_work_seconds_total",
                 "Seconds of threads that ended calls took, by how they "
                 "ended."));
  predicted_work =
      &AddCounter(registry, "attention_predicted_work_seconds_total",
                  "Seconds of threads that ended calls were predicted to take.")
           .Add({});
  request_bytes = &AddCounter(registry, "attention_request_bytes_total",
                              "Bytes of request messages of ended calls.")
                       .Add({});
  response_bytes = &AddCounter(registry, "attention_response_bytes_total",
                               "Bytes of response messages of ended calls.")
                        .Add({});
}

Metrics::Metrics(const BuildInfo& build)
    : state_(std::make_unique<State>(build)) {}

Metrics::~Metrics() = default;

void Metrics::CallEnded(const CallSummary& call) {
  State& state = *state_;
  const size_t method = IndexOf(kMethods, call.method);
  const size_t result = ResultOf(call);
  const auto code = static_cast<size_t>(call.code);
  constexpr auto kUnknown = static_cast<size_t>(grpc::StatusCode::UNKNOWN);
  state.calls[method][code < kCodes ? code : kUnknown]->Increment();
  state.durations[method][result]->Observe(Finite(call.total));
  for (size_t p = 0; p < std::size(kPhases); ++p) {
    const double seconds = Finite(call.*kPhases[p].duration);
    if (seconds > 0) state.phases[p]->Observe(seconds);
  }
  if (!call.reason.empty()) {
    state.refusals[IndexOf(kReasons, call.reason)]->Increment();
  }
  state.used_work[result]->Increment(Finite(call.used_seconds));
  state.predicted_work->Increment(Finite(call.predicted_seconds));
  state.request_bytes->Increment(
      Finite(static_cast<double>(call.request_bytes)));
  state.response_bytes->Increment(
      Finite(static_cast<double>(call.response_bytes)));
}

void Metrics::CountHttpAnswer(int status) {
  state_->http_answers[IndexOf(kHttpStatuses, absl::StrCat(status))]
      ->Increment();
}

void Metrics::SetSnapshotSource(std::function<Snapshot()> source) {
  std::lock_guard<std::mutex> lock(state_->scrape_mutex);
  state_->source = std::move(source);
}

std::string Metrics::Text() {
  std::vector<MetricFamily> families = state_->registry.Collect();
  const auto add = [&](std::vector<MetricFamily> more) {
    std::move(more.begin(), more.end(), std::back_inserter(families));
  };
  {
    std::lock_guard<std::mutex> lock(state_->scrape_mutex);
    add(state_->build_families);
    add(state_->process.Collect());
    if (state_->source) {
      const Snapshot now = state_->source();
      add(SnapshotFamilies(now));
      add(TenantFamilies(now.tenants));
    }
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace attention::server
