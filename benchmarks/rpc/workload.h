// A case's tensors, read from files, and its call in every form.
#ifndef ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_
#define ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "kernel/attention.h"

namespace attention::benchmarks {

// FLOAT32, layout BHSD, B = 1. Letters as in kernel/attention.h.
struct Case {
  int64_t query_heads, kv_heads, queries, keys, head_size;
  bool causal;
};

// A file's numbers, mapped: however many processes read it, memory holds it
// once.
class MappedNumbers {
 public:
  // `count` numbers; fails if the file has another length.
  static absl::StatusOr<std::unique_ptr<MappedNumbers>> Open(
      const std::string& path, size_t count);
  ~MappedNumbers();
  MappedNumbers(const MappedNumbers&) = delete;
  MappedNumbers& operator=(const MappedNumbers&) = delete;

  std::span<const float> numbers() const { return numbers_; }

 private:
  explicit MappedNumbers(std::span<const float> numbers) : numbers_(numbers) {}
  const std::span<const float> numbers_;
};

class Workload {
 public:
  // Reads files "query", "key" and "value" of the folder.
  static absl::StatusOr<std::unique_ptr<Workload>> Open(
      const std::string& folder, const Case& shape);

  const ComputeRequest& request() const { return request_; }
  const AttentionPlan& plan() const { return plan_; }
  // What the answer's elements take.
  size_t output_bytes() const { return request_.query.bytes.size(); }

 private:
  Workload(const Case& shape, std::unique_ptr<MappedNumbers> query,
           std::unique_ptr<MappedNumbers> key,
           std::unique_ptr<MappedNumbers> value);

  const std::unique_ptr<MappedNumbers> query_, key_, value_;
  ComputeRequest request_;
  AttentionPlan plan_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_WORKLOAD_H_
