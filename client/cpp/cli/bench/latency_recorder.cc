#include "client/cpp/cli/bench/latency_recorder.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace attention::cli {
namespace {

constexpr int64_t kLongest = int64_t{3600} * 1'000'000'000;

}  // namespace

LatencyRecorder::LatencyRecorder(int precision_bits) : bits_(precision_bits) {
  counts_.resize(BucketOf(kLongest) + 1);
}

// Numbers below 2^bits have a bucket each. One with its highest bit at
// position bits + e falls into group e + 1, by the `bits` bits that follow.
size_t LatencyRecorder::BucketOf(int64_t nanoseconds) const {
  const auto n = static_cast<uint64_t>(nanoseconds);
  const int exponent = std::bit_width(n) - 1 - bits_;
  if (exponent < 0) return n;
  const uint64_t within = (n >> exponent) - (uint64_t{1} << bits_);
  return (static_cast<uint64_t>(exponent + 1) << bits_) + within;
}

int64_t LatencyRecorder::EndOf(size_t bucket) const {
  const uint64_t group = bucket >> bits_;
  if (group == 0) return static_cast<int64_t>(bucket);
  const uint64_t within = bucket & ((uint64_t{1} << bits_) - 1);
  return static_cast<int64_t>(
      (((uint64_t{1} << bits_) + within + 1) << (group - 1)) - 1);
}

void LatencyRecorder::Add(absl::Duration time) {
  const int64_t n =
      std::clamp(absl::ToInt64Nanoseconds(time), int64_t{0}, kLongest);
  ++counts_[BucketOf(n)];
  ++count_;
  max_ = std::max(max_, n);
}

absl::Duration LatencyRecorder::Percentile(double percent) const {
  if (count_ == 0) return absl::ZeroDuration();
  const auto wanted = static_cast<int64_t>(
      std::ceil(percent / 100 * static_cast<double>(count_)));
  const int64_t rank = std::clamp(wanted, int64_t{1}, count_);
  int64_t seen = 0;
  for (size_t bucket = 0; bucket < counts_.size(); ++bucket) {
    seen += counts_[bucket];
    if (seen >= rank) return absl::Nanoseconds(std::min(EndOf(bucket), max_));
  }
  return max();
}

void LatencyRecorder::Merge(const LatencyRecorder& other) {
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

}  // namespace attention::cli
