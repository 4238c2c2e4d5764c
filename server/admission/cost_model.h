// How long work takes, learnt from the work done.
#ifndef ATTENTION_SERVER_ADMISSION_COST_MODEL_H_
#define ATTENTION_SERVER_ADMISSION_COST_MODEL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace attention::server {

// What a multiply-add costs depends on what it is made of.
enum class WorkClass : uint8_t { kFloat, kDouble, kFast };
inline constexpr size_t kWorkClasses = 3;

// Two kinds of rates, both measured while the server runs: seconds of a thread
// per unit of AttentionPlan::work, for each class; and seconds of CPU time per
// byte that comes or goes, for everything else that a call costs. Thread-safe;
// nothing blocks.
class CostModel {
 public:
  CostModel();

  // Thread-seconds of a computation.
  double ComputeSeconds(WorkClass work_class, double work) const;
  // CPU seconds to receive, decode, encode and send so many bytes in all.
  double TransferSeconds(int64_t bytes) const;
  // Thread-seconds of a call of which only the size of its message is known, or
  // nothing: the mean of the recent calls of about that size, or of all, in
  // which a few very large ones count little.
  double CallSeconds(std::optional<int64_t> bytes) const;

  // A computation took so long; how much work it was.
  void RecordCompute(WorkClass work_class, double work, double seconds);
  // A call ended whose message had so many bytes, and that was foretold to take
  // so long.
  void RecordCall(int64_t bytes, double seconds);
  // CPU seconds of the process, thread-seconds of all computations and bytes
  // transferred, each since the start. Call about every 100 ms.
  void RecordTotals(double cpu_seconds, double compute_seconds, int64_t bytes);

  // For metrics: multiply-adds per second of a thread in FLOAT32, and bytes per
  // second of CPU time.
  double multiply_adds_per_second() const;
  double bytes_per_second() const;

  // Thread-seconds of all computations that were recorded.
  double compute_seconds() const;

 private:
  // With the mutex held.
  double SecondsOfBytes(int64_t bytes) const;

  mutable std::mutex mutex_;
  // All guarded by mutex_.
  std::array<double, kWorkClasses> seconds_per_work_;
  double seconds_per_byte_;
  double typical_seconds_;
  // The same by the power of two of the message's bytes; 0 where there was
  // none.
  std::array<double, 64> seconds_by_size_{};
  double compute_seconds_ = 0;
  // The totals at the last update of seconds_per_byte_.
  double last_cpu_ = 0;
  double last_compute_ = 0;
  int64_t last_bytes_ = 0;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_COST_MODEL_H_
