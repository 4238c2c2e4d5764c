// The fixed list of calls that are measured.
#ifndef ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_
#define ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/client.h"
#include "kernel/attention.h"

namespace attention::benchmarks {

// FLOAT32, layout BHSD, B = 1. Letters as in kernel/attention.h.
struct Shape4 {
  std::string name;
  int64_t query_heads, kv_heads, query_length, key_length, head_size;
  bool causal = false;
};

// Nothing for a name that no case has.
std::optional<Shape4> FindCase(const std::string& name);

// A case's tensors, and its call in every form.
class Workload {
 public:
  explicit Workload(Shape4 shape);
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  const ComputeRequest& request() const { return request_; }
  const AttentionPlan& plan() const { return *plan_; }
  // What the answer's elements take.
  size_t output_bytes() const { return output_.size() * sizeof(float); }
  // For who computes here.
  float* output() { return output_.data(); }

 private:
  std::vector<float> query_, key_, value_, output_;
  ComputeRequest request_;
  std::optional<AttentionPlan> plan_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_
