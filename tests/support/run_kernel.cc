#include "tests/support/run_kernel.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernel/cpu/simd_targets.h"
#include "tests/support/reference_request.h"

namespace attention::test {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

// Off every alignment but the element's own, and guarded on both sides.
Tensor OutputTensor(const TensorSpec& spec) {
  return Tensor(spec.type, spec.shape, Tensor::Placement{{}, 3, 64});
}

std::optional<Tensor> OutputTensor(const std::optional<TensorSpec>& spec) {
  if (!spec) return std::nullopt;
  return OutputTensor(*spec);
}

void* Data(std::optional<Tensor>& tensor) {
  return tensor ? tensor->data() : nullptr;
}

void ExpectIntact(const char* name, const std::optional<Tensor>& tensor) {
  EXPECT_TRUE(!tensor || tensor->GuardsIntact())
      << "bytes beside " << name << " were written";
}

std::string PlaceOf(int64_t index, const Shape& shape) {
  Shape place = shape;
  for (int axis = static_cast<int>(shape.size()) - 1; axis >= 0; --axis) {
    place[axis] = index % shape[axis];
    index /= shape[axis];
  }
  return ToString(place);
}

AssertionResult Named(const char* name, AssertionResult result) {
  if (result) return result;
  return AssertionFailure() << name << ": " << result.message();
}

template <typename A, typename B, typename Check>
AssertionResult Optional(const char* name, const std::optional<A>& a,
                         const std::optional<B>& b, Check check) {
  if (a.has_value() != b.has_value()) {
    return AssertionFailure()
           << name << " is " << (a ? "not wanted" : "missing");
  }
  return a ? Named(name, check(*a, *b)) : AssertionSuccess();
}

}  // namespace

KernelResult RunKernel(const AttentionInputs& inputs,
                       const AttentionOptions& options, Executor& executor) {
  KernelResult result;
  const absl::StatusOr<AttentionPlan> plan = PlanAttention(inputs, options);
  if (!plan.ok()) {
    ADD_FAILURE() << plan.status();
    return result;
  }
  result.output = OutputTensor(plan->output);
  result.log_sum_exp = OutputTensor(plan->log_sum_exp);
  result.scores = OutputTensor(plan->scores);
  result.present_key = OutputTensor(plan->present_key);
  result.present_value = OutputTensor(plan->present_value);
  AttentionOutputs outputs;
  outputs.output = result.output.data();
  outputs.log_sum_exp = Data(result.log_sum_exp);
  outputs.scores = Data(result.scores);
  outputs.present_key = Data(result.present_key);
  outputs.present_value = Data(result.present_value);
  const absl::Status status = RunAttention(*plan, outputs, executor);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(result.output.GuardsIntact())
      << "bytes beside output were written";
  ExpectIntact("log_sum_exp", result.log_sum_exp);
  ExpectIntact("scores", result.scores);
  ExpectIntact("present_key", result.present_key);
  ExpectIntact("present_value", result.present_value);
  return result;
}

KernelResult RunKernel(const AttentionCase& request, int threads) {
  Executor executor(threads - 1);
  return RunKernel(request.inputs(), request.options, executor);
}

ReferenceResult Reference(const AttentionCase& request) {
  return ComputeReference(request.inputs(), request.options);
}

AssertionResult Matches(const Tensor& actual, const Expected& expected) {
  if (actual.type() != expected.type || actual.shape() != expected.shape) {
    return AssertionFailure()
           << "got " << Name(actual.type()) << ToString(actual.shape())
           << ", expected " << Name(expected.type) << ToString(expected.shape);
  }
  int64_t wrong = 0;
  std::string first;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double a = actual.Get(i);
    if (IsExpected(a, expected, i)) continue;
    if (wrong++ > 0) continue;
    first = absl::StrCat(
        "element ", PlaceOf(i, actual.shape()), " is ",
        absl::StrFormat("%.17g, expected %.17g +- %.3g (off by %.3g)", a,
                        expected.values[i], expected.errors[i],
                        std::fabs(a - expected.values[i])));
  }
  if (wrong == 0) return AssertionSuccess();
  return AssertionFailure() << first << "; " << wrong << " of " << actual.size()
                            << " elements are wrong";
}

AssertionResult Matches(const KernelResult& actual,
                        const ReferenceResult& expected) {
  const auto check = [](const Tensor& a, const Expected& b) {
    return Matches(a, b);
  };
  for (const AssertionResult& result :
       {Named("output", Matches(actual.output, expected.output)),
        Optional("log_sum_exp", actual.log_sum_exp, expected.log_sum_exp,
                 check),
        Optional("scores", actual.scores, expected.scores, check),
        Optional("present_key", actual.present_key, expected.present_key,
                 check),
        Optional("present_value", actual.present_value, expected.present_value,
                 check)}) {
    if (!result) return result;
  }
  return AssertionSuccess();
}

void ExpectAll(const Tensor& tensor, double value) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    ASSERT_EQ(tensor.Get(i), value) << i;
  }
}

AssertionResult SameBits(const Tensor& a, const Tensor& b) {
  if (a.type() != b.type() || a.shape() != b.shape()) {
    return AssertionFailure()
           << Name(a.type()) << ToString(a.shape()) << " against "
           << Name(b.type()) << ToString(b.shape());
  }
  const size_t size = SizeOf(a.type());
  const auto* const p = static_cast<const char*>(a.data());
  const auto* const q = static_cast<const char*>(b.data());
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(p + i * size, q + i * size, size) == 0) continue;
    return AssertionFailure()
           << "element " << PlaceOf(i, a.shape()) << " differs: "
           << absl::StrFormat("%.17g against %.17g", a.Get(i), b.Get(i));
  }
  return AssertionSuccess();
}

AssertionResult SameBits(const KernelResult& a, const KernelResult& b) {
  const auto check = [](const Tensor& x, const Tensor& y) {
    return SameBits(x, y);
  };
  for (const AssertionResult& result :
       {Named("output", SameBits(a.output, b.output)),
        Optional("log_sum_exp", a.log_sum_exp, b.log_sum_exp, check),
        Optional("scores", a.scores, b.scores, check),
        Optional("present_key", a.present_key, b.present_key, check),
        Optional("present_value", a.present_value, b.present_value, check)}) {
    if (!result) return result;
  }
  return AssertionSuccess();
}

std::vector<std::string> AllSimdTargets() {
  const std::vector<std::string> targets = SimdTargets();
  if (targets.empty()) ADD_FAILURE() << "no SIMD target";
  return targets;
}

AssertionResult IsRightOnAllTargets(const AttentionCase& request) {
  static const auto* const targets =
      new std::vector<std::string>(AllSimdTargets());
  static auto* const executor = new Executor(0);
  const ReferenceResult expected = Reference(request);
  const AttentionInputs inputs = request.inputs();
  const bool paired = ReferenceRequest(inputs, request.options).paired();
  std::optional<KernelResult> first;
  for (const std::string& target : *targets) {
    const ScopedSimdTarget scope(target);
    const KernelResult actual =
        RunKernel(request.inputs(), request.options, *executor);
    AssertionResult result = Matches(actual, expected);
    if (result && first && !paired) result = SameBits(actual, *first);
    if (!result) {
      return AssertionFailure() << result.message() << " on " << target << ": "
                                << request.ToString();
    }
    if (!first) first = actual;
  }
  return AssertionSuccess();
}

Turns RunInShortestTurns(Executor::Job* job) {
  const std::atomic<bool> over{true};
  const Turn turn(&over);
  Turns count;
  while (const int64_t tasks = job->NextStage()) {
    std::vector<int64_t> left(tasks);
    std::iota(left.begin(), left.end(), 0);
    count.tasks += tasks;
    while (!left.empty()) {
      count.turns += static_cast<int64_t>(left.size());
      std::erase_if(left,
                    [&](int64_t task) { return job->RunTask(task, turn); });
    }
  }
  job->Done(JobEnd::kDone);
  return count;
}

ScopedSimdTarget::ScopedSimdTarget(const std::string& target) {
  EXPECT_TRUE(SetSimdTargetForTest(target)) << target;
  EXPECT_EQ(SimdTarget(), target);
}

ScopedSimdTarget::~ScopedSimdTarget() { SetSimdTargetForTest(""); }

}  // namespace attention::test
