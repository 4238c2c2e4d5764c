// Options of a message as those of the kernel.
#ifndef ATTENTION_WIRE_KERNEL_OPTIONS_H_
#define ATTENTION_WIRE_KERNEL_OPTIONS_H_

#include "absl/status/statusor.h"
#include "attention/v1/attention.pb.h"
#include "kernel/attention.h"

namespace attention::wire {

// Errors: InvalidArgument with ErrorField() for numbers that an enum does not
// have. All else is PlanAttention's to check.
absl::StatusOr<AttentionOptions> ToKernelOptions(
    const v1::AttentionOptions& from);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_KERNEL_OPTIONS_H_
