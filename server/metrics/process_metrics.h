// Prometheus' standard metrics of a process: process_resident_memory_bytes and
// its siblings.
#ifndef ATTENTION_SERVER_METRICS_PROCESS_METRICS_H_
#define ATTENTION_SERVER_METRICS_PROCESS_METRICS_H_

#include <dirent.h>
#include <prometheus/metric_family.h>

#include <memory>
#include <vector>

#include "base/descriptor.h"

namespace attention::server {

// Keeps the files of /proc open that it reads, so that it can still tell when
// the process has run out of descriptors. Not thread-safe.
class ProcessMetrics {
 public:
  ProcessMetrics();

  // What cannot be read is left out.
  std::vector<prometheus::MetricFamily> Collect();

 private:
  struct CloseFolder {
    void operator()(DIR* folder) const { closedir(folder); }
  };

  const Descriptor statm_;
  const std::unique_ptr<DIR, CloseFolder> descriptors_;
  // Seconds since 1970; 0 if unknown.
  const double start_seconds_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_METRICS_PROCESS_METRICS_H_
