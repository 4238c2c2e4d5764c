// Compiled once per SIMD target: the functions of attention_simd.h, and the
// choice among targets.
#include "kernel/attention_simd.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/scratch.h"
#include "kernel/simd_targets.h"

// Targets without fused multiply-add differ only in how slow they are: one of
// them, Highway's baseline, is enough.
#define HWY_DISABLED_TARGETS                                               \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/attention_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernel/bf16_pairs-inl.h"
#include "kernel/bf16_tiles-inl.h"
#include "kernel/rows-inl.h"
#include "kernel/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {

// Calls work(rows), which returns whether it is done, and keeps its state if
// not.
template <class Math, class Work>
bool WithRows(const Problem& problem, const RowTask& task, TaskState* state,
              const Work& work) {
  const bool resumed = state->memory.data != nullptr;
  if (resumed) PutScratch(std::move(state->memory));
  {
    Rows<Math> rows(problem, task, *state, resumed);
    if (!work(rows, resumed)) {
      rows.Leave(state);
      return false;
    }
  }
  TrimScratch();
  return true;
}

template <class Math>
bool ComputeRows(const Problem& problem, const RowTask& task,
                 const RowStretch& then, const AttentionOutputs& outputs,
                 TaskState* state, const Turn& turn) {
  return WithRows<Math>(
      problem, task, state, [&](Rows<Math>& rows, bool /*resumed*/) {
        return rows.Attend(0, std::numeric_limits<int64_t>::max(), then,
                           turn) &&
               rows.Finish(outputs, turn);
      });
}

template <class Math, typename T = typename Math::T>
bool ComputePart(const Problem& problem, const RowTask& task,
                 const RowStretch& then, const SubtreePartial<T>& part,
                 TaskState* state, const Turn& turn) {
  return WithRows<Math>(
      problem, task, state, [&](Rows<Math>& rows, bool /*resumed*/) {
        if (!rows.Attend(part.block_begin, part.block_end, then, turn)) {
          return false;
        }
        rows.StorePart(part);
        return true;
      });
}

template <class Math, typename T = typename Math::T>
bool MergeParts(const Problem& problem, const RowTask& task,
                absl::Span<const SubtreePartial<T>> parts,
                const AttentionOutputs& outputs, TaskState* state,
                const Turn& turn) {
  return WithRows<Math>(problem, task, state,
                        [&](Rows<Math>& rows, bool resumed) {
                          if (!resumed) {
                            for (const SubtreePartial<T>& part : parts)
                              rows.Add(part);
                          }
                          return rows.Finish(outputs, turn);
                        });
}

template <class Math>
int64_t ScratchBytes(const Problem& problem, int64_t rows) {
  using T = typename Math::T;
  return Scratch<T>::Bytes(problem, rows, Math::kTileRows, kLanes<T>);
}

template <class Math>
constexpr RowFunctions<typename Math::T> kFunctions = {
    ComputeRows<Math>, ComputePart<Math>, MergeParts<Math>, ScratchBytes<Math>};

// What HWY_EXPORT takes: no templates.
RowFunctions<float> FloatFunctions([[maybe_unused]] bool fast) {
#if ATTENTION_HAVE_BF16_TILES
  if (fast && BF16Tiles::Supported()) return kFunctions<BF16Tiles>;
#endif
#if ATTENTION_HAVE_BF16_PAIRS
  if (fast) return kFunctions<BF16Pairs>;
#endif
  return kFunctions<Exact<float>>;
}
RowFunctions<double> DoubleFunctions() { return kFunctions<Exact<double>>; }
bool HasFastMathHere() {
#if ATTENTION_HAVE_BF16_TILES
  if (BF16Tiles::Supported()) return true;
#endif
#if ATTENTION_HAVE_BF16_PAIRS
  return BF16Pairs::Supported();
#else
  return false;
#endif
}
const char* TargetNameHere() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace attention
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention {

HWY_EXPORT(FloatFunctions);
HWY_EXPORT(DoubleFunctions);
HWY_EXPORT(HasFastMathHere);
HWY_EXPORT(TargetNameHere);

template <>
RowFunctions<float> FunctionsFor(const Problem& problem) {
  return HWY_DYNAMIC_DISPATCH(FloatFunctions)(problem.fast_math);
}
template <>
RowFunctions<double> FunctionsFor(const Problem& /*problem*/) {
  return HWY_DYNAMIC_DISPATCH(DoubleFunctions)();
}

bool HasFastMath() { return HWY_DYNAMIC_DISPATCH(HasFastMathHere)(); }

absl::string_view SimdTarget() {
  return HWY_DYNAMIC_DISPATCH(TargetNameHere)();
}

std::vector<std::string> SimdTargets() {
  std::vector<std::string> names;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

bool SetSimdTargetForTest(absl::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  if (name.empty()) {
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    return true;
  }
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (hwy::TargetName(target) == name) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return true;
    }
  }
  return false;
}

}  // namespace attention
#endif  // HWY_ONCE
