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

// Whether no size in bytes that the tensor implies overflows.
absl::Status CheckSize(const std::string& field,
                       absl::Span<const int64_t> shape);

// Shape and strides.
absl::Status CheckView(absl::string_view field, const ConstTensorView& view);

absl::Status CheckRank(absl::string_view field, const ConstTensorView& view,
                       size_t rank, absl::string_view axes);

// Row-major strides unless the view brings its own. Axes of size 0 make an
// empty tensor, whose strides are never used: they count as 1 here, so that
// nothing overflows.
Shape Strides(const ConstTensorView& view);

// How `mask` broadcasts to the problem, whose shapes are known.
absl::StatusOr<MaskOperand> PlanMask(const ConstTensorView& mask,
                                     const Problem& problem);

// The columns of `whole`, a mask without data, for keys [begin, end): all that
// it has of them. As an operand in its place while those keys are attended to.
absl::StatusOr<MaskOperand> PlanMaskColumns(
    const std::optional<ConstTensorView>& columns, const MaskOperand& whole,
    int64_t begin, int64_t end);

// The outputs asked for and the cost, once all else in `problem` is known;
// also fills in what `problem` says of outputs. Leaves plan.problem alone.
absl::Status PlanOutputs(const AttentionInputs& inputs,
                         const AttentionOptions& options, Layout layout,
                         Problem* problem, AttentionPlan* plan);

}  // namespace attention

#endif  // ATTENTION_KERNEL_PLAN_CHECKS_H_
