// The kernel called on owned tensors, and what a test says about the answer.
#ifndef ATTENTION_TESTS_SUPPORT_RUN_KERNEL_H_
#define ATTENTION_TESTS_SUPPORT_RUN_KERNEL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/executor.h"
#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/tensor.h"

namespace attention::test {

struct KernelResult {
  Tensor output;
  std::optional<Tensor> log_sum_exp;
  std::optional<Tensor> scores;
  std::optional<Tensor> present_key;
  std::optional<Tensor> present_value;
};

// PlanAttention and RunAttention. Fails the test if either fails, or if a byte
// beside an output is written.
KernelResult RunKernel(const AttentionInputs& inputs,
                       const AttentionOptions& options, Executor& executor);
KernelResult RunKernel(const AttentionCase& request, int threads = 1);

// What the answer should be.
ReferenceResult Reference(const AttentionCase& request);

// Whether `actual` has the expected type and shape, and each element is within
// its error, and half a unit in the last place for rounding to the type, of the
// expected one. NaN matches NaN, infinity itself.
::testing::AssertionResult Matches(const Tensor& actual,
                                   const Expected& expected);
// The same of each tensor of the answer.
::testing::AssertionResult Matches(const KernelResult& actual,
                                   const ReferenceResult& expected);

// Fails the test unless every element is `value`.
void ExpectAll(const Tensor& tensor, double value);

// Whether types, shapes and bits agree.
::testing::AssertionResult SameBits(const Tensor& a, const Tensor& b);
::testing::AssertionResult SameBits(const KernelResult& a,
                                    const KernelResult& b);

// The names of all SIMD targets of this machine.
std::vector<std::string> AllSimdTargets();

// Whether the kernel's answer matches the reference, with the same bits on all
// SIMD targets unless FAST math may take pairs.
::testing::AssertionResult IsRightOnAllTargets(const AttentionCase& request);

// How many tasks a job had, and how often they were worked on.
struct Turns {
  int64_t tasks = 0;
  int64_t turns = 0;
};

// Works on the tasks of each stage in turn, and each time tells them at once
// that the turn is over.
Turns RunInShortestTurns(Executor::Job* job);

// Makes the kernel run on `target` until destroyed.
class ScopedSimdTarget {
 public:
  explicit ScopedSimdTarget(const std::string& target);
  ~ScopedSimdTarget();
  ScopedSimdTarget(const ScopedSimdTarget&) = delete;
  ScopedSimdTarget& operator=(const ScopedSimdTarget&) = delete;
};

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_RUN_KERNEL_H_
