// What this machine could do at most, measured.
#ifndef ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_
#define ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_

#include <cstdint>

#include "base/executor.h"

namespace attention::benchmarks {

enum class Limit : uint8_t {
  // Fused multiply-adds on registers, FLOAT32 and FLOAT64, in 1e9 operations a
  // second (two for each multiply-add).
  kFloat,
  kDouble,
  // The same in the CPU's fastest products of BFLOAT16: AMX or a dot product;
  // 0 where it has neither.
  kBFloat16,
  // Reading memory far larger than the caches, in 1e9 bytes a second.
  kRead,
};

// Best of several tries with every thread of `executor` at once; takes about a
// tenth of a second.
double MeasureLimit(Limit limit, Executor& executor);

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_
