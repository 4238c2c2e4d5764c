#include "server/metrics/process_metrics.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/metrics/sample.h"

namespace attention::server {
namespace {

// Seconds since 1970 at which the machine started; 0 if unknown.
double BootSeconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    double seconds;
    if (absl::ConsumePrefix(&rest, "btime ") &&
        absl::SimpleAtod(rest, &seconds)) {
      return seconds;
    }
  }
  return 0;
}

// Seconds since 1970 at which this process started; 0 if unknown.
double StartSeconds() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // The program's name, in brackets, may hold anything.
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  const std::vector<std::string> fields =
      absl::StrSplit(line.substr(name_end + 1), ' ', absl::SkipEmpty());
  // proc(5): field 22 of the line, the third being the first after the name.
  constexpr size_t kStartTime = 22 - 3;
  double ticks;
  if (fields.size() <= kStartTime ||
      !absl::SimpleAtod(fields[kStartTime], &ticks)) {
    return 0;
  }
  const double boot = BootSeconds();
  return boot == 0 ? 0 : boot + ticks / sysconf(_SC_CLK_TCK);
}

double Seconds(const timeval& time) {
  return time.tv_sec + time.tv_usec * 1e-6;
}

// Entries of /proc/self/fd.
double CountDescriptors(DIR* folder) {
  rewinddir(folder);
  int64_t count = 0;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] != '.') ++count;
  }
  return static_cast<double>(count);
}

}  // namespace

ProcessMetrics::ProcessMetrics()
    : statm_(open("/proc/self/statm", O_RDONLY | O_CLOEXEC)),
      descriptors_(opendir("/proc/self/fd")),
      start_seconds_(StartSeconds()) {}

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() {
  std::vector<prometheus::MetricFamily> families;
  const auto gauge = [&](const char* name, const char* help, double value) {
    families.push_back(GaugeFamily(name, help, {{value, {}}}));
  };
  char text[128] = {};
  int64_t virtual_pages, resident_pages;
  // Numbers of the system's own, which fit.
  if (pread(statm_.get(), text, sizeof(text) - 1, 0) > 0 &&
      // NOLINTNEXTLINE(bugprone-unchecked-string-to-number-conversion)
      std::sscanf(text, "%" SCNd64 " %" SCNd64, &virtual_pages,
                  &resident_pages) == 2) {
    const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.",
          static_cast<double>(virtual_pages) * page);
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.",
          static_cast<double>(resident_pages) * page);
  }
  if (rusage usage; getrusage(RUSAGE_SELF, &usage) == 0) {
    families.push_back(CounterFamily(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        {{Seconds(usage.ru_utime) + Seconds(usage.ru_stime), {}}}));
  }
  if (descriptors_ != nullptr) {
    gauge("process_open_fds", "Number of open file descriptors.",
          CountDescriptors(descriptors_.get()));
  }
  if (rlimit limit; getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    gauge("process_max_fds", "Maximum number of open file descriptors.",
          static_cast<double>(limit.rlim_cur));
  }
  if (start_seconds_ > 0) {
    gauge("process_start_time_seconds",
          "Start time of the process since unix epoch in seconds.",
          start_seconds_);
  }
  return families;
}

}  // namespace attention::server
