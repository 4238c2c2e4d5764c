#include "server/admission/cost_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace attention::server {
namespace {

// First guesses, of one core of a server CPU.
constexpr std::array<double, kWorkClasses> kSecondsPerWork = {
    1 / 60e9, 1 / 30e9, 1 / 150e9};
constexpr double kSecondsPerByte = 1 / 1e9;
constexpr double kTypicalSeconds = 1e-3;
// What a call costs beside its bytes: about what as many bytes cost.
constexpr int64_t kBytesPerCall = int64_t{64} << 10;

// A measurement counts by how long it took, a long one half.
constexpr double kLongSeconds = 20e-3;
double Weight(double seconds) {
  return 0.5 * std::min(1.0, seconds / kLongSeconds);
}

// Below this the seconds that calls took are noise.
constexpr int64_t kLeastBytes = int64_t{8} << 20;
// However odd a measurement is, the rate moves by this factor at the most.
constexpr double kMostChange = 2;

// One call moves the mean by this part, and as if it took 8 times the mean at
// the most.
constexpr double kCallWeight = 0.05;
constexpr double kMostTypical = 8;

size_t SizeClass(int64_t bytes) {
  return static_cast<size_t>(
      std::bit_width(static_cast<uint64_t>(std::max<int64_t>(bytes, 0))));
}

void MoveTowards(double measured, double weight, double* rate) {
  measured = std::clamp(measured, *rate / kMostChange, *rate * kMostChange);
  *rate += weight * (measured - *rate);
}

}  // namespace

CostModel::CostModel()
    : seconds_per_work_(kSecondsPerWork),
      seconds_per_byte_(kSecondsPerByte),
      typical_seconds_(kTypicalSeconds) {}

double CostModel::ComputeSeconds(WorkClass work_class, double work) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return work * seconds_per_work_[static_cast<size_t>(work_class)];
}

double CostModel::TransferSeconds(int64_t bytes) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return SecondsOfBytes(bytes);
}

double CostModel::CallSeconds(std::optional<int64_t> bytes) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!bytes) return typical_seconds_;
  const double seen = seconds_by_size_[SizeClass(*bytes)];
  return seen > 0 ? seen : SecondsOfBytes(*bytes);
}

double CostModel::SecondsOfBytes(int64_t bytes) const {
  return static_cast<double>(bytes + kBytesPerCall) * seconds_per_byte_;
}

void CostModel::RecordCompute(WorkClass work_class, double work,
                              double seconds) {
  if (!(work > 0) || !(seconds > 0)) return;
  std::lock_guard<std::mutex> lock(mutex_);
  compute_seconds_ += seconds;
  MoveTowards(seconds / work, Weight(seconds),
              &seconds_per_work_[static_cast<size_t>(work_class)]);
}

void CostModel::RecordCall(int64_t bytes, double seconds) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto count = [&](double* mean) {
    const double counted = std::min(seconds, kMostTypical * *mean);
    *mean += kCallWeight * (counted - *mean);
  };
  count(&typical_seconds_);
  double& of_this_size = seconds_by_size_[SizeClass(bytes)];
  if (of_this_size > 0) {
    count(&of_this_size);
  } else {
    of_this_size = seconds;
  }
}

void CostModel::RecordTotals(double cpu_seconds, double compute_seconds,
                             int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int64_t moved = bytes - last_bytes_;
  if (moved < kLeastBytes) return;
  const double seconds =
      (cpu_seconds - last_cpu_) - (compute_seconds - last_compute_);
  last_bytes_ = bytes;
  last_cpu_ = cpu_seconds;
  last_compute_ = compute_seconds;
  if (seconds <= 0) return;
  MoveTowards(seconds / static_cast<double>(moved), 0.3, &seconds_per_byte_);
}

double CostModel::multiply_adds_per_second() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return 1 / seconds_per_work_[static_cast<size_t>(WorkClass::kFloat)];
}

double CostModel::bytes_per_second() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return 1 / seconds_per_byte_;
}

double CostModel::compute_seconds() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return compute_seconds_;
}

}  // namespace attention::server
