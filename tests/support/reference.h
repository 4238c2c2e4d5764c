// Attention by the book, in long double: every step of the specification in
// proto/attention/v1/attention.proto written out, one row at a time, with no
// thought of speed. Shares no code with the kernel.
#ifndef ATTENTION_TESTS_SUPPORT_REFERENCE_H_
#define ATTENTION_TESTS_SUPPORT_REFERENCE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "kernel/attention.h"

namespace attention::test {

// Eleven bits longer than double at least, where the kernel's doubles are
// tested.
using Wide = long double;

// What a tensor of the answer should hold.
struct Expected {
  DataType type = DataType::kFloat32;
  Shape shape;
  // Row-major, not rounded to `type`.
  std::vector<Wide> values;
  // Largest distance of a sound computation in the request's precision from
  // `values`, before it rounds to `type`. docs/numerics.md derives it. Zero
  // where a value is not finite.
  std::vector<Wide> errors;
};

// Whether `actual` is element `index` of `expected` within its error and half a
// unit in the last place for rounding to the type. NaN matches NaN, infinity
// itself.
bool IsExpected(double actual, const Expected& expected, int64_t index);

struct ReferenceResult {
  Expected output;
  // Each as asked for in the options.
  std::optional<Expected> log_sum_exp;
  std::optional<Expected> scores;
  std::optional<Expected> present_key;
  std::optional<Expected> present_value;
};

// Precondition: PlanAttention accepts the request.
ReferenceResult ComputeReference(const AttentionInputs& inputs,
                                 const AttentionOptions& options);

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_REFERENCE_H_
