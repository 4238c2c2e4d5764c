// What this machine could do at most, measured.
#ifndef ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_
#define ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_

#include "kernel/thread_pool.h"

namespace attention::benchmarks {

struct MachineLimits {
  // Fused multiply-adds on registers, FLOAT32 and FLOAT64, in 1e9 operations a
  // second (two for each multiply-add).
  double float_gflops = 0;
  double double_gflops = 0;
  // The same in the CPU's dot product of BFLOAT16; 0 where it has none.
  double bfloat16_gflops = 0;
  // Reading memory far larger than the caches, in 1e9 bytes a second.
  double read_gbytes = 0;
};

// Best of several tries with every thread of `pool` at once; takes about half a
// second.
MachineLimits MeasureLimits(ThreadPool& pool);

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_MACHINE_LIMITS_H_
