// The fixed list of computations that are measured.
#ifndef ATTENTION_BENCHMARKS_KERNEL_CASES_H_
#define ATTENTION_BENCHMARKS_KERNEL_CASES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/kernel/huge_page_allocator.h"
#include "benchmarks/kernel/machine_limits.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"

namespace attention::benchmarks {

enum class Mask : uint8_t { kNone, kBool, kAdditive };

// Letters as in kernel/attention.h.
struct Case {
  std::string name;
  DataType type = DataType::kFloat32;
  MathMode math = MathMode::kReproducible;
  int64_t batch = 1;
  int64_t query_heads = 8;
  int64_t kv_heads = 8;
  int64_t query_length = 1024;
  int64_t key_length = 1024;
  int64_t head_size = 64;
  int64_t value_head_size = 64;
  Causal causal = Causal::kNone;
  int64_t window_left = -1;
  Mask mask = Mask::kNone;
  // Not 0: each query has indices of so many keys, shared by its heads.
  int64_t selected = 0;
  // Whether it is listed for others (serve.h).
  bool for_peers = true;
  // Not empty: sequences of these lengths, ragged; batch and lengths are not
  // used.
  std::vector<int64_t> ragged = {};
  // Bound by reading keys and values, not by arithmetic.
  bool decode = false;
  // Keys and values are scaled rows of this type (kernel/scaled.h).
  std::optional<DataType> scaled = {};
};

std::vector<Case> AllCases();

// What bounds a case on this machine.
Limit LimitOf(const Case& c);

// A case's tensors, filled with unit-normal numbers, and its plan.
class Workload {
 public:
  explicit Workload(const Case& c);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  const AttentionPlan& plan() const { return *plan_; }
  void Run(Executor& executor);
  // Bytes of keys and values.
  double key_value_bytes() const { return key_value_bytes_; }
  // Writes the elements of each tensor, and of the last run's output, to
  // DIRECTORY/query.bin, key.bin, value.bin, mask.bin (if any) and output.bin.
  void Save(const std::string& directory) const;

 private:
  using Bytes = std::vector<char, HugePageAllocator<char>>;

  ConstTensorView Fill(DataType type, const Shape& shape, unsigned seed);
  // Indices of keys drawn at random, none twice.
  ConstTensorView Select(const Case& c);
  // Scaled rows in place of the keys and values of the plan, whose head sizes
  // are equal.
  void Scale(const Case& c);

  std::vector<Bytes> tensors_;
  std::vector<KeyValueView::Block> blocks_;
  KeyValueView view_;
  std::vector<int64_t> starts_;
  std::optional<AttentionPlan> plan_;
  Bytes output_;
  double key_value_bytes_ = 0;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_CASES_H_
