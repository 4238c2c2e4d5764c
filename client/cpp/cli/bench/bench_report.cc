#include "client/cpp/cli/bench/bench_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "attention/tensor.h"

namespace attention::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr struct {
  const char* name;
  double percent;
} kPercentiles[] = {
    {"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"max", 100}};

double Milliseconds(absl::Duration time) {
  return absl::ToDoubleMilliseconds(time);
}

// "0.612", "12.3", "1234": three digits, all of those before the point.
std::string ThreeDigits(double number) {
  const int decimals = number < 1 ? 3 : number < 10 ? 2 : number < 100 ? 1 : 0;
  return absl::StrFormat("%.*f", decimals, number);
}

std::string Duration(absl::Duration time) { return absl::FormatDuration(time); }

std::string TimesRow(const char* name, const LatencyRecorder& times) {
  std::string row = absl::StrFormat("  %-12s", name);
  for (const auto& [unused, percent] : kPercentiles) {
    absl::StrAppendFormat(
        &row, "%10s",
        times.count() == 0
            ? "-"
            : ThreeDigits(Milliseconds(times.Percentile(percent))));
  }
  return row + "\n";
}

std::string TimesHead() {
  std::string row = absl::StrFormat("  %-12s", "ms");
  for (const auto& [name, unused] : kPercentiles) {
    absl::StrAppendFormat(&row, "%10s", name);
  }
  return row + "\n";
}

double PerSecond(double number, absl::Duration time) {
  return time > absl::ZeroDuration() ? number / absl::ToDoubleSeconds(time) : 0;
}

double CpuShare(const RunStatistics& statistics) {
  return PerSecond(absl::ToDoubleSeconds(statistics.cpu), statistics.wall);
}

std::string LoadText(const LoadOptions& options) {
  if (options.rate.empty()) {
    return absl::StrCat("closed loop, ", options.concurrency,
                        " open calls per client");
  }
  std::vector<std::string> steps;
  steps.reserve(options.rate.size());
  for (const RateStep& step : options.rate) {
    steps.push_back(absl::StrCat(step.calls_per_second));
  }
  return absl::StrCat("open loop, ", absl::StrJoin(steps, " then "),
                      " calls/s");
}

std::string Codes(const CallStatistics& counts) {
  std::vector<std::string> parts;
  parts.reserve(counts.by_code.size() + 1);
  for (const auto& [code, count] : counts.by_code) {
    parts.push_back(absl::StrCat(CodeName(code), " ", count));
  }
  if (counts.unsent > 0) {
    parts.push_back(absl::StrCat("never sent ", counts.unsent));
  }
  return parts.empty() ? "none" : absl::StrJoin(parts, ", ");
}

std::string KindText(const CallStatistics& counts, absl::Duration elapsed) {
  std::string text = absl::StrFormat(
      "  calls       %d, answered OK %d (%d late)\n"
      "  by code     %s\n"
      "  goodput     %s calls/s answered OK within the deadline\n"
      "  traffic     %s GB/s sent, %s GB/s received, of calls answered OK\n",
      counts.calls, counts.ok(), counts.late, Codes(counts),
      ThreeDigits(PerSecond(static_cast<double>(counts.good), elapsed)),
      ThreeDigits(
          PerSecond(1e-9 * static_cast<double>(counts.request_bytes), elapsed)),
      ThreeDigits(
          PerSecond(1e-9 * static_cast<double>(counts.answer_bytes), elapsed)));
  return absl::StrCat(text, TimesHead(), TimesRow("accepted", counts.accepted),
                      TimesRow("refused", counts.refusals));
}

std::string LagText(const LoadOptions& options,
                    const RunStatistics& statistics) {
  if (options.rate.empty()) return "";
  std::string text = TimesRow("sent late", statistics.lag);
  if (GeneratorIsTheLimit(statistics)) {
    absl::StrAppend(&text,
                    "  The load generator is the limit: it could not keep to "
                    "the schedule.\n  A lower rate or another machine would "
                    "show the server's.\n");
  }
  if (statistics.waited > 0) {
    absl::StrAppend(&text, "  ", statistics.waited,
                    " calls were sent late because --max-open=",
                    options.max_open, " were open.\n");
  }
  return text;
}

std::string VerdictText(const Verdict& verdict) {
  if (!verdict.checked) return "  answers     not checked\n";
  std::string text;
  for (const std::string& line : verdict.wrong_first) {
    absl::StrAppend(&text, "  WRONG       ", line, "\n");
  }
  if (verdict.different > 0) {
    absl::StrAppend(&text, "  WRONG       ", verdict.different,
                    " answers have other bits than the first of their kind\n");
  }
  return text.empty() ? "  answers     right, and the same bits each time\n"
                      : text;
}

Json TimesJson(const LatencyRecorder& times) {
  Json json{{"count", times.count()}};
  for (const auto& [name, percent] : kPercentiles) {
    json[absl::StrCat(name, "_ms")] =
        times.count() == 0 ? Json(nullptr)
                           : Json(Milliseconds(times.Percentile(percent)));
  }
  return json;
}

Json CallsJson(const CallStatistics& counts, absl::Duration elapsed) {
  Json codes = Json::object();
  for (const auto& [code, count] : counts.by_code) {
    codes[CodeName(code)] = count;
  }
  return {
      {"calls", counts.calls},
      {"ok", counts.ok()},
      {"late", counts.late},
      {"refused", counts.refused},
      {"unsent", counts.unsent},
      {"wrong", counts.wrong},
      {"by_code", codes},
      {"goodput", PerSecond(static_cast<double>(counts.good), elapsed)},
      {"sent_gb_per_s",
       PerSecond(1e-9 * static_cast<double>(counts.request_bytes), elapsed)},
      {"received_gb_per_s",
       PerSecond(1e-9 * static_cast<double>(counts.answer_bytes), elapsed)},
      {"accepted", TimesJson(counts.accepted)},
      {"refusals", TimesJson(counts.refusals)},
  };
}

Json OptionsJson(const LoadOptions& options, const Workload& workload) {
  Json rate = Json::array();
  for (const RateStep& step : options.rate) {
    rate.push_back({{"calls_per_second", step.calls_per_second},
                    {"seconds", absl::ToDoubleSeconds(step.duration)}});
  }
  return {
      {"server", options.server},
      {"clients", options.clients},
      {"loop", options.rate.empty() ? "closed" : "open"},
      {"rate", rate},
      {"concurrency",
       options.rate.empty() ? Json(options.concurrency) : Json(nullptr)},
      {"warmup_s", absl::ToDoubleSeconds(options.warmup)},
      {"timeout_s", absl::ToDoubleSeconds(options.timeout)},
      {"max_open", options.max_open},
      {"seed", options.seed},
      {"type", TypeName(workload.numbers.type())},
  };
}

Json TimelineJson(const RunStatistics& statistics) {
  Json timeline = Json::array();
  for (const Interval& interval : statistics.timeline) {
    const LatencyRecorder& times = interval.accepted;
    const bool any = times.count() > 0;
    timeline.push_back(
        {{"calls", interval.calls},
         {"good", interval.good},
         {"refused", interval.refused},
         {"failed", interval.failed},
         {"p99_ms",
          any ? Json(Milliseconds(times.Percentile(99))) : Json(nullptr)}});
  }
  return timeline;
}

}  // namespace

std::string CodeName(int code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

bool GeneratorIsTheLimit(const RunStatistics& statistics) {
  return statistics.lag.Percentile(99) > absl::Milliseconds(50) &&
         statistics.waited == 0;
}

std::string ProgressLine(absl::Duration since_start, absl::Duration measured,
                         absl::Duration total, const CallStatistics& so_far) {
  constexpr int kWidth = 10;
  const double share =
      std::clamp(absl::FDivDuration(since_start, total), 0.0, 1.0);
  const int filled = static_cast<int>(share * kWidth);
  std::string line = absl::StrFormat(
      "[%s%s] %.1f s of %s", std::string(filled, '#'),
      std::string(kWidth - filled, '.'), absl::ToDoubleSeconds(since_start),
      Duration(absl::Trunc(total, absl::Milliseconds(100))));
  if (measured <= absl::ZeroDuration()) {
    line += "  warming up";
  } else {
    absl::StrAppend(
        &line, "  ",
        ThreeDigits(PerSecond(static_cast<double>(so_far.good), measured)),
        " calls/s  p50 ",
        ThreeDigits(Milliseconds(so_far.accepted.Percentile(50))), " p99 ",
        ThreeDigits(Milliseconds(so_far.accepted.Percentile(99))), " ms  ",
        so_far.calls - so_far.good, " failed");
  }
  if (line.size() > 79) line.resize(79);
  return line;
}

std::string FormatTable(const LoadOptions& options, const Workload& workload,
                        const RunStatistics& statistics,
                        const Verdict& verdict) {
  std::string text = absl::StrCat(
      options.server, ", ", options.clients, " clients, ", LoadText(options),
      ", deadline ", Duration(options.timeout), ", ",
      Duration(absl::Trunc(statistics.elapsed, absl::Milliseconds(1))),
      " measured\n");
  for (size_t i = 0; i < workload.kinds.size(); ++i) {
    const CallKind& kind = workload.kinds[i];
    absl::StrAppend(&text, kind.name,
                    kind.computes()
                        ? absl::StrCat(" ", TypeName(workload.numbers.type()))
                        : "",
                    ", ", kind.request.Length(), " bytes per request\n",
                    KindText(statistics.kinds[i], statistics.elapsed));
  }
  if (workload.kinds.size() > 1) {
    absl::StrAppend(&text, "all\n",
                    KindText(statistics.Total(), statistics.elapsed));
  }
  absl::StrAppend(&text, LagText(options, statistics));
  absl::StrAppend(&text, "  client CPU  ",
                  ThreeDigits(absl::ToDoubleSeconds(statistics.cpu)), " s, ",
                  absl::StrFormat("%.0f", 100 * CpuShare(statistics)),
                  " % of one core\n", VerdictText(verdict));
  return text;
}

std::string FormatJson(const LoadOptions& options, const Workload& workload,
                       const RunStatistics& statistics,
                       const Verdict& verdict) {
  Json kinds = Json::array();
  for (size_t i = 0; i < workload.kinds.size(); ++i) {
    const CallKind& kind = workload.kinds[i];
    Json json{{"name", kind.name}, {"request_bytes", kind.request.Length()}};
    json.update(CallsJson(statistics.kinds[i], statistics.elapsed));
    kinds.push_back(std::move(json));
  }
  const bool open_loop = !options.rate.empty();
  const Json json{
      {"options", OptionsJson(options, workload)},
      {"seconds", absl::ToDoubleSeconds(statistics.elapsed)},
      {"total", CallsJson(statistics.Total(), statistics.elapsed)},
      {"kinds", kinds},
      {"lag", open_loop ? TimesJson(statistics.lag) : Json(nullptr)},
      {"waited", statistics.waited},
      {"generator_is_the_limit", GeneratorIsTheLimit(statistics)},
      {"client_cpu_s", absl::ToDoubleSeconds(statistics.cpu)},
      {"client_cpu_share", CpuShare(statistics)},
      {"answers",
       {{"checked", verdict.checked},
        {"good", verdict.good()},
        {"wrong", verdict.wrong_first}}},
      {"interval_s", absl::ToDoubleSeconds(statistics.interval)},
      {"timeline", TimelineJson(statistics)},
  };
  return json.dump(1) + "\n";
}

}  // namespace attention::cli
