// Requests for PlanAttention without any data.
#ifndef ATTENTION_TESTS_KERNEL_PLAN_VIEWS_H_
#define ATTENTION_TESTS_KERNEL_PLAN_VIEWS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernel/attention.h"

namespace attention::test {

// A request of views alone: memory that no check may read is not there.
struct Views {
  AttentionInputs inputs;
  AttentionOptions options;
  AttentionLimits limits;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  std::vector<uint8_t> bools;
  std::vector<int64_t> indices;
  std::vector<float> sinks;

  absl::StatusOr<AttentionPlan> Plan() {
    inputs.valid_lengths = valid_lengths;
    inputs.query_starts = query_starts;
    inputs.key_starts = key_starts;
    return PlanAttention(inputs, options, limits);
  }
};

inline ConstTensorView View(DataType type, Shape shape) {
  return {type, std::move(shape), {}, nullptr};
}

inline ConstTensorView Floats(Shape shape) {
  return View(DataType::kFloat32, std::move(shape));
}

// B 2, Hq 4, Hkv 2, S 3, L 5, D 8, Dv 6.
inline Views Bhsd() {
  Views views;
  views.inputs.query = Floats({2, 4, 3, 8});
  views.inputs.key = Floats({2, 2, 5, 8});
  views.inputs.value = Floats({2, 2, 5, 6});
  return views;
}

inline Views Packed() {
  Views views;
  views.inputs.query = Floats({2, 3, 32});
  views.inputs.key = Floats({2, 5, 16});
  views.inputs.value = Floats({2, 5, 12});
  views.options.query_heads = 4;
  views.options.kv_heads = 2;
  return views;
}

inline Views Ragged() {
  Views views;
  views.options.layout = Layout::kRagged;
  views.inputs.query = Floats({3, 4, 8});
  views.inputs.key = Floats({5, 2, 8});
  views.inputs.value = Floats({5, 2, 6});
  views.query_starts = {0, 1, 3};
  views.key_starts = {0, 5, 5};
  return views;
}

inline Views WithPast() {
  Views views = Bhsd();
  views.inputs.past_key = Floats({2, 2, 7, 8});
  views.inputs.past_value = Floats({2, 2, 7, 6});
  return views;
}

inline Views WithMask(DataType type, Shape shape) {
  Views views = Bhsd();
  views.inputs.mask = View(type, std::move(shape));
  return views;
}

}  // namespace attention::test

#endif  // ATTENTION_TESTS_KERNEL_PLAN_VIEWS_H_
