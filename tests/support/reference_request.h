// A request by the book: which element of which tensor stands for what, and
// what is hidden from whom. For reference.cc.
#ifndef ATTENTION_TESTS_SUPPORT_REFERENCE_REQUEST_H_
#define ATTENTION_TESTS_SUPPORT_REFERENCE_REQUEST_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernel/attention.h"

namespace attention::test {

// Rows of one head.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> data;

  const double* operator[](int64_t row) const {
    return data.data() + row * columns;
  }
};

// Refers to what it was made of. Sequences b, heads h, queries i and keys j are
// counted from 0, keys with the past first.
class ReferenceRequest {
 public:
  ReferenceRequest(const AttentionInputs& inputs,
                   const AttentionOptions& options);

  const AttentionInputs& inputs() const { return inputs_; }
  const AttentionOptions& options() const { return options_; }
  Layout layout() const { return layout_; }
  bool ragged() const { return layout_ == Layout::kRagged; }
  int64_t batch() const { return batch_; }
  int64_t query_heads() const { return query_heads_; }
  int64_t kv_heads() const { return kv_heads_; }
  int64_t past() const { return past_; }
  int64_t head_size() const { return size_; }
  int64_t value_head_size() const { return value_size_; }
  double scale() const { return scale_; }
  // FLOAT32 or FLOAT64.
  DataType precision() const { return precision_; }
  // Whether FAST math may take pairs of BFLOAT16 at once.
  bool paired() const {
    return fast_bfloat_ && size_ % 2 == 0 && !inputs_.indices;
  }

  int64_t QueryStart(int64_t b) const {
    return ragged() ? inputs_.query_starts[b] : 0;
  }
  int64_t QueryLength(int64_t b) const;
  int64_t NewLength(int64_t b) const;
  int64_t TotalKeys(int64_t b) const { return past_ + NewLength(b); }
  // Of causal mask, window and ALiBi.
  int64_t Offset(int64_t b) const;

  Matrix ReadQuery(int64_t b, int64_t h) const;
  Matrix ReadKeys(int64_t b, int64_t kv_head) const;
  Matrix ReadValues(int64_t b, int64_t kv_head) const;

  // Whether causal mask, window or valid length hide key j from query i.
  bool Hidden(int64_t b, int64_t i, int64_t j) const;
  // Whether the indices, if there are any, have key j for query i.
  bool Selected(int64_t b, int64_t h, int64_t i, int64_t j) const;
  bool has_sinks() const { return inputs_.sinks || !options_.sinks.empty(); }
  // The sink's logit; -infinity where there is none.
  double Sink(int64_t b, int64_t h, int64_t i) const;
  // What the mask tensor adds: 0 or -infinity if BOOL; finite numbers stay so
  // in the precision.
  double MaskValue(int64_t b, int64_t h, int64_t i, int64_t j) const;

  // Where element d of row i of head h of sequence b stands in the output.
  Shape OutputPlace(int64_t b, int64_t h, int64_t i, int64_t d) const;

 private:
  int64_t KeyStart(int64_t b) const {
    return ragged() ? inputs_.key_starts[b] : 0;
  }
  Matrix ReadWithPast(const ConstTensorView& tensor,
                      const std::optional<ConstTensorView>& past, int64_t size,
                      int64_t b, int64_t kv_head) const;

  const AttentionInputs& inputs_;
  const AttentionOptions& options_;
  Layout layout_;
  int64_t batch_ = 1;
  int64_t query_heads_ = 1;
  int64_t kv_heads_ = 1;
  int64_t past_ = 0;
  int64_t size_ = 0;
  int64_t value_size_ = 0;
  double scale_ = 1;
  DataType precision_ = DataType::kFloat32;
  bool fast_bfloat_ = false;
};

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_REFERENCE_REQUEST_H_
