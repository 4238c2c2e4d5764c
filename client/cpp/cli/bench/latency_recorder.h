// Percentiles of many times in bounded memory.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_LATENCY_RECORDER_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_LATENCY_RECORDER_H_

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace attention::cli {

// Counts times in log-linear buckets, as HdrHistogram does: each power of two
// of nanoseconds is cut into 2^precision_bits equal buckets, so a percentile
// is at most 2^-precision_bits above the exact one (0.8 % with 7 bits) and
// never below it. Memory: about 8 * 36 * 2^precision_bits bytes (37 KB with 7
// bits), whatever is added. Not thread-safe.
class LatencyRecorder {
 public:
  // `precision_bits`: [1, 12].
  explicit LatencyRecorder(int precision_bits = 7);

  // Times below 0 count as 0, times above 1 hour as 1 hour.
  void Add(absl::Duration time);

  int64_t count() const { return count_; }
  // Exact. Zero if nothing was added.
  absl::Duration max() const { return absl::Nanoseconds(max_); }

  // The least time that at least `percent` % of those added do not exceed,
  // rounded up to its bucket's end, but never above max(). `percent`:
  // [0, 100]. Zero if nothing was added.
  absl::Duration Percentile(double percent) const;

  // Adds what `other` has; its precision must be the same.
  void Merge(const LatencyRecorder& other);

 private:
  size_t BucketOf(int64_t nanoseconds) const;
  // The largest number of nanoseconds in the bucket.
  int64_t EndOf(size_t bucket) const;

  int bits_;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  int64_t max_ = 0;
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_LATENCY_RECORDER_H_
