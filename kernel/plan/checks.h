// The parts of PlanAttention: checks that many fields share, the mask and the
// outputs. Every error is a FieldError(). Internal.
#ifndef ATTENTION_KERNEL_PLAN_CHECKS_H_
#define ATTENTION_KERNEL_PLAN_CHECKS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/attention.h"
#include "kernel/plan/problem.h"

namespace attention {

#define ATTENTION_RETURN_IF_ERROR(expression)                               \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// "got ..., wanted ...".
std::string Got(absl::Span<const int64_t> shape, absl::string_view wanted);
std::string GotNumber(double number, absl::string_view wanted);
std::string GotNumber(int64_t number, absl::string_view wanted);

absl::Status CheckFloat(absl::string_view field, DataType type);
absl::Status CheckSameType(absl::string_view field, DataType type,
                           absl::string_view other, DataType wanted);

// That no dimension is negative and the size in bytes does not overflow.
absl::Status CheckSize(const std::string& field,
                       absl::Span<const int64_t> shape);

// That shape and strides are valid.
absl::Status CheckView(absl::string_view field, const ConstTensorView& view);

absl::Status CheckRank(absl::string_view field, const ConstTensorView& view,
                       size_t rank, absl::string_view axes);

// The view's own strides, or row-major ones. Axes of size 0 count as 1: the
// tensor is empty, its strides are never used, and so nothing overflows.
Shape Strides(const ConstTensorView& view);

// Broadcasts `mask`, whose first column is that of key `begin`, to `problem`,
// of which all but the outputs must be known.
absl::StatusOr<MaskOperand> PlanMask(const ConstTensorView& mask, int64_t begin,
                                     const Problem& problem);

// The operand that stands for `whole`, a mask without data, while keys [begin,
// end) are attended to. `columns` must be all the columns that `whole` has of
// these keys; `checked`: if they are BOOL, each byte is known to be 0 or 1.
absl::StatusOr<MaskOperand> PlanMaskColumns(
    const std::optional<ConstTensorView>& columns, bool checked,
    const MaskOperand& whole, int64_t begin, int64_t end);

// Resolves indices and sinks against `problem`, of which all but the outputs
// must be known, and checks their elements.
absl::StatusOr<IndexOperand> PlanIndices(const ConstTensorView& indices,
                                         const Problem& problem);
absl::StatusOr<Operand> PlanRowSinks(const ConstTensorView& sinks,
                                     const Problem& problem);

// Fills in the outputs and the cost in `plan`, but not plan->problem, and the
// outputs in `problem`, of which all else must be known.
absl::Status PlanOutputs(const AttentionInputs& inputs,
                         const AttentionOptions& options, Layout layout,
                         Problem* problem, AttentionPlan* plan);

}  // namespace attention

#endif  // ATTENTION_KERNEL_PLAN_CHECKS_H_
