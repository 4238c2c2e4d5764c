// The SIMD instruction sets the kernel is compiled for; for tests and tools.
#ifndef ATTENTION_KERNEL_CPU_SIMD_TARGETS_H_
#define ATTENTION_KERNEL_CPU_SIMD_TARGETS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace attention {

// Highway's names of the targets that this build has and this CPU can run.
std::vector<std::string> SimdTargets();

// Makes every later computation use the named target, or the best one if the
// name is empty. False, and no change but to the best target, if SimdTargets()
// lacks it. Not thread-safe: no computation may be running.
bool SetSimdTargetForTest(absl::string_view name);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_SIMD_TARGETS_H_
