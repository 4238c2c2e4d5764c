// Compiled once per SIMD target: the functions of dispatch.h, and the
// choice among targets.
#include "kernel/cpu/dispatch.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/cpu/row_state.h"
#include "kernel/cpu/scratch.h"
#include "kernel/cpu/simd_targets.h"

// Targets without fused multiply-add differ only in how slow they are. One of
// them is enough: Highway's baseline.
#define HWY_DISABLED_TARGETS                                               \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernel/cpu/dispatch.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernel/cpu/bf16_pairs-inl.h"
#include "kernel/cpu/bf16_tiles-inl.h"
#include "kernel/cpu/rows-inl.h"
#include "kernel/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention {
namespace HWY_NAMESPACE {

// Calls work(rows), which returns where the task then stands. Keeps the task's
// state in `state` unless the task is finished.
template <TileArithmetic Arithmetic, class Work>
TaskEnd WithRows(const Problem& problem, const RowTask& task, TaskState* state,
                 const Work& work) {
  using T = typename Arithmetic::T;
  const bool own = state->memory.data != nullptr;
  char* memory = own ? state->memory.data.get()
                     : ReserveState(RowState<T>::Bytes(
                           problem, task.row_end - task.row_begin, kLanes<T>));
  TaskEnd end;
  {
    Rows<Arithmetic> rows(problem, task, memory, state->begun);
    end = work(rows);
  }
  if (end == TaskEnd::kFinished) {
    *state = {};
    TrimTaskMemory();
    return end;
  }
  if (!own) state->memory = TakeState();
  state->begun = true;
  return end;
}

template <TileArithmetic Arithmetic>
TaskEnd Finish(Rows<Arithmetic>& rows, const AttentionOutputs& outputs,
               const Turn& turn) {
  return rows.Finish(outputs, turn) ? TaskEnd::kFinished : TaskEnd::kSuspended;
}

template <TileArithmetic Arithmetic>
TaskEnd Attend(const Problem& problem, const RowTask& task,
               const BlockRange& blocks, const StridedRows& next_keys,
               const AttentionOutputs* outputs, TaskState* state,
               const Turn& turn) {
  return WithRows<Arithmetic>(
      problem, task, state, [&](Rows<Arithmetic>& rows) {
        if (!rows.Attend(blocks.begin, blocks.end, next_keys, turn)) {
          return TaskEnd::kSuspended;
        }
        if (outputs == nullptr || !rows.SeesNoneFrom(blocks.end)) {
          return TaskEnd::kWaiting;
        }
        return Finish(rows, *outputs, turn);
      });
}

template <TileArithmetic Arithmetic, typename T = typename Arithmetic::T>
TaskEnd AttendSubtree(const Problem& problem, const RowTask& task,
                      const StridedRows& next_keys,
                      const SubtreePartial<T>& subtree, TaskState* state,
                      const Turn& turn) {
  return WithRows<Arithmetic>(
      problem, task, state, [&](Rows<Arithmetic>& rows) {
        if (!rows.Attend(subtree.block_begin, subtree.block_end, next_keys,
                         turn)) {
          return TaskEnd::kSuspended;
        }
        rows.PopSubtree(subtree);
        return TaskEnd::kFinished;
      });
}

template <TileArithmetic Arithmetic, typename T = typename Arithmetic::T>
TaskEnd MergeSubtrees(const Problem& problem, const RowTask& task,
                      absl::Span<const SubtreePartial<T>> subtrees,
                      const AttentionOutputs* outputs, TaskState* state,
                      const Turn& turn) {
  return WithRows<Arithmetic>(
      problem, task, state, [&](Rows<Arithmetic>& rows) {
        // Rows suspended while they were being finished have merged already.
        if (outputs == nullptr || !state->begun) {
          for (const SubtreePartial<T>& subtree : subtrees)
            rows.PushSubtree(subtree);
        }
        if (outputs == nullptr) return TaskEnd::kWaiting;
        return Finish(rows, *outputs, turn);
      });
}

template <TileArithmetic Arithmetic, typename T = typename Arithmetic::T>
TaskEnd StoreSubtrees(const Problem& problem, const RowTask& task,
                      absl::Span<const SubtreePartial<T>> subtrees,
                      TaskState* state) {
  return WithRows<Arithmetic>(problem, task, state,
                              [&](Rows<Arithmetic>& rows) {
                                // The last partial is on top of the stack.
                                for (size_t i = subtrees.size(); i-- > 0;)
                                  rows.PopSubtree(subtrees[i]);
                                return TaskEnd::kFinished;
                              });
}

template <TileArithmetic Arithmetic>
int64_t StateBytes(const Problem& problem, int64_t rows) {
  using T = typename Arithmetic::T;
  return RowState<T>::Bytes(problem, rows, kLanes<T>);
}

template <TileArithmetic Arithmetic>
int64_t ScratchBytes(const Problem& problem) {
  using T = typename Arithmetic::T;
  return Scratch<T>::Bytes(problem, Arithmetic::kTileRows, kLanes<T>);
}

template <TileArithmetic Arithmetic>
constexpr RowFunctions<typename Arithmetic::T> kFunctions = {
    Attend<Arithmetic>,        AttendSubtree<Arithmetic>,
    MergeSubtrees<Arithmetic>, StoreSubtrees<Arithmetic>,
    StateBytes<Arithmetic>,    ScratchBytes<Arithmetic>};

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
