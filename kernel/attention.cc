// Cuts a planned computation into tasks and runs them.
#include "kernel/attention.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernel/attention_simd.h"
#include "kernel/problem.h"
#include "kernel/scratch.h"
#include "kernel/task_rows.h"
#include "kernel/tasks.h"
#include "kernel/thread_pool.h"

namespace attention {
namespace {

// Work below this is done on the calling thread: waking others takes as long.
constexpr double kInlineFlops = 1e6;
// Tasks a thread should find, so that none idles long at the end.
constexpr int64_t kTasksPerThread = 4;

absl::Status Check(const std::atomic<bool>* cancelled) {
  if (cancelled && cancelled->load(std::memory_order_relaxed)) {
    return absl::CancelledError("cancelled by the caller");
  }
  return absl::OkStatus();
}

// Calls task(i) for i in [0, count) until done or cancelled. Threads draw the
// next i: after task(i) one probably gets task(i + pool.threads()).
void ForEach(double flops, int64_t count, ThreadPool& pool,
             const std::atomic<bool>* cancelled,
             absl::FunctionRef<void(int64_t)> task) {
  const auto run = [&](int64_t i) {
    if (Check(cancelled).ok()) task(i);
  };
  if (flops < kInlineFlops) {
    for (int64_t i = 0; i < count; ++i) run(i);
  } else {
    pool.ParallelFor(count, run);
  }
}

// The longest sequence's keys.
int64_t LongestKeys(const Problem& p) {
  if (!p.ragged) return p.total_keys();
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    longest = std::max(longest, p.GetSequence(b).key_length);
  }
  return longest;
}

int64_t Blocks(int64_t keys) { return (keys + kKeyBlock - 1) / kKeyBlock; }

// Memory of a SubtreePartial.
template <typename T>
class PartBuffer {
 public:
  PartBuffer(const Problem& p, int64_t block_begin, int64_t block_end)
      : memory_(new T[NumRows(p) * (2 + p.value_head_size)]) {
    const int64_t rows = NumRows(p);
    part_.max = memory_.get();
    part_.sum = part_.max + rows;
    part_.output = part_.sum + rows;
    part_.block_begin = block_begin;
    part_.block_end = block_end;
  }
  const SubtreePartial<T>& part() const { return part_; }

 private:
  std::unique_ptr<T[]> memory_;
  SubtreePartial<T> part_;
};

template <typename T>
using PartBuffers = std::vector<PartBuffer<T>>;

// [begin, end) cut into the largest subtrees of at most `most` blocks, a power
// of two. `blocks` is the number of all blocks.
template <typename T>
PartBuffers<T> CutBlocks(const Problem& p, int64_t begin, int64_t end,
                         int64_t most, int64_t blocks) {
  PartBuffers<T> parts;
  // Only the last subtree may stick out, over the last block of all: what is
  // missing there is the identity. Elsewhere it is another part's.
  const int64_t limit =
      end < blocks ? end : std::numeric_limits<int64_t>::max();
  while (begin < end) {
    int64_t size = most;
    while (begin % size != 0 || begin + size / 2 >= end ||
           begin + size > limit) {
      size /= 2;
    }
    const int64_t stop = std::min(begin + size, end);
    parts.emplace_back(p, begin, stop);
    begin = stop;
  }
  return parts;
}

template <typename T>
void ComputeParts(const AttentionPlan& plan, const std::vector<RowTask>& tasks,
                  const PartBuffers<T>& parts, ThreadPool& pool,
                  const std::atomic<bool>* cancelled) {
  const int64_t count = static_cast<int64_t>(tasks.size() * parts.size());
  const RowFunctions<T> functions = FunctionsFor<T>(*plan.problem);
  const auto task = [&](int64_t i) -> const RowTask& {
    return tasks[i / parts.size()];
  };
  const auto part = [&](int64_t i) -> const SubtreePartial<T>& {
    return parts[i % parts.size()].part();
  };
  ForEach(plan.flops, count, pool, cancelled, [&](int64_t i) {
    RowStretch then;
    if (const int64_t next = i + pool.threads(); next < count) {
      then = FirstKeys(*plan.problem, task(next), part(next).block_begin);
    }
    functions.compute_part(*plan.problem, task(i), then, part(i), cancelled);
  });
}

template <typename T>
void MergeAll(const AttentionPlan& plan, const std::vector<RowTask>& tasks,
              const std::vector<SubtreePartial<T>>& parts,
              const AttentionOutputs& outputs, ThreadPool& pool,
              const std::atomic<bool>* cancelled) {
  const RowFunctions<T> functions = FunctionsFor<T>(*plan.problem);
  ForEach(plan.flops, static_cast<int64_t>(tasks.size()), pool, cancelled,
          [&](int64_t i) {
            functions.merge_parts(*plan.problem, tasks[i], parts, outputs,
                                  cancelled);
          });
}

// Few rows over many keys: cuts the keys too, so that every thread has work.
template <typename T>
void RunSplit(const AttentionPlan& plan, const std::vector<RowTask>& tasks,
              int64_t blocks, const AttentionOutputs& outputs, ThreadPool& pool,
              const std::atomic<bool>* cancelled) {
  const int64_t wanted =
      kTasksPerThread * pool.threads() / static_cast<int64_t>(tasks.size()) + 1;
  int64_t most = 1;
  while (most * wanted < blocks) most *= 2;
  const PartBuffers<T> buffers =
      CutBlocks<T>(*plan.problem, 0, blocks, most, blocks);
  ComputeParts(plan, tasks, buffers, pool, cancelled);
  std::vector<SubtreePartial<T>> parts;
  for (const PartBuffer<T>& buffer : buffers) parts.push_back(buffer.part());
  MergeAll(plan, tasks, parts, outputs, pool, cancelled);
}

template <typename T>
void Run(const AttentionPlan& plan, const AttentionOutputs& outputs,
         ThreadPool& pool, const std::atomic<bool>* cancelled) {
  const Problem& p = *plan.problem;
  const std::vector<RowTask> tasks = CutRows(p, pool.threads());
  if (tasks.empty()) return;
  const int64_t blocks = Blocks(LongestKeys(p));
  const bool idle =
      static_cast<int64_t>(tasks.size()) < kTasksPerThread * pool.threads() / 2;
  if (idle && blocks > 1 && pool.threads() > 1 && plan.flops > kInlineFlops) {
    RunSplit<T>(plan, tasks, blocks, outputs, pool, cancelled);
    return;
  }
  const RowFunctions<T> functions = FunctionsFor<T>(p);
  const auto count = static_cast<int64_t>(tasks.size());
  ForEach(plan.flops, count, pool, cancelled, [&](int64_t i) {
    RowStretch then;
    if (const int64_t next = i + pool.threads(); next < count) {
      then = FirstKeys(p, tasks[next], 0);
    }
    functions.compute_rows(p, tasks[i], then, outputs, cancelled);
  });
}

void CopyRows(const Operand& from, int64_t b, int64_t h, int64_t rows,
              int64_t columns, void* to, int64_t to_row) {
  const int64_t bytes = columns * static_cast<int64_t>(SizeOf(from.type));
  char* target = static_cast<char*>(to) + to_row * bytes;
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(target + row * bytes, from.Row(b, h, row), bytes);
  }
}

// Past and current keys or values joined as (B, Hkv, T, columns).
void WritePresent(const Problem& p, const Operand& past, const Operand& current,
                  int64_t columns, void* present, ThreadPool& pool,
                  const std::atomic<bool>* cancelled) {
  if (p.total_keys() == 0) return;
  ForEach(kInlineFlops, p.batch * p.kv_heads, pool, cancelled, [&](int64_t i) {
    const int64_t b = i / p.kv_heads, h = i % p.kv_heads;
    const int64_t row = i * p.total_keys();
    if (p.past_length > 0) {
      CopyRows(past, b, h, p.past_length, columns, present, row);
    }
    CopyRows(current, b, h, p.key_length, columns, present,
             row + p.past_length);
  });
}

template <typename T>
const PartBuffers<T>& BuffersOf(const AttentionPart::Impl& part);

}  // namespace

struct AttentionPart::Impl {
  int64_t rows = 0;
  int64_t value_head_size = 0;
  int64_t block_begin = 0;
  int64_t block_end = 0;
  // One of them, by the precision of the computation.
  PartBuffers<float> floats;
  PartBuffers<double> doubles;
};

namespace {

template <>
const PartBuffers<float>& BuffersOf(const AttentionPart::Impl& part) {
  return part.floats;
}
template <>
const PartBuffers<double>& BuffersOf(const AttentionPart::Impl& part) {
  return part.doubles;
}

template <typename T>
PartBuffers<T> RunPart(const AttentionPlan& plan, int64_t begin, int64_t end,
                       ThreadPool& pool, const std::atomic<bool>* cancelled) {
  // A power of two above any number of blocks: as few subtrees as there can be.
  PartBuffers<T> buffers =
      CutBlocks<T>(*plan.problem, begin, end, int64_t{1} << 54,
                   Blocks(LongestKeys(*plan.problem)));
  ComputeParts(plan, CutRows(*plan.problem, pool.threads()), buffers, pool,
               cancelled);
  return buffers;
}

template <typename T>
void RunMerge(const AttentionPlan& plan, absl::Span<const AttentionPart> parts,
              const AttentionOutputs& outputs, ThreadPool& pool,
              const std::atomic<bool>* cancelled) {
  std::vector<SubtreePartial<T>> subtrees;
  for (const AttentionPart& part : parts) {
    for (const PartBuffer<T>& buffer : BuffersOf<T>(part.impl())) {
      subtrees.push_back(buffer.part());
    }
  }
  MergeAll<T>(plan, CutRows(*plan.problem, pool.threads()), subtrees, outputs,
              pool, cancelled);
}

void WritePresents(const AttentionPlan& plan, const AttentionOutputs& outputs,
                   ThreadPool& pool, const std::atomic<bool>* cancelled) {
  const Problem& p = *plan.problem;
  if (!p.return_present) return;
  WritePresent(p, p.past_key, p.key, p.head_size, outputs.present_key, pool,
               cancelled);
  WritePresent(p, p.past_value, p.value, p.value_head_size,
               outputs.present_value, pool, cancelled);
}

}  // namespace

absl::Status RunAttention(const AttentionPlan& plan,
                          const AttentionOutputs& outputs, ThreadPool& pool,
                          const std::atomic<bool>* cancelled) {
  WritePresents(plan, outputs, pool, cancelled);
  if (plan.problem->double_precision) {
    Run<double>(plan, outputs, pool, cancelled);
  } else {
    Run<float>(plan, outputs, pool, cancelled);
  }
  return Check(cancelled);
}

absl::StatusOr<AttentionPart> RunAttentionPart(
    const AttentionPlan& plan, int64_t key_begin, int64_t key_end,
    ThreadPool& pool, const std::atomic<bool>* cancelled) {
  const Problem& p = *plan.problem;
  const int64_t keys = LongestKeys(p);
  if (key_begin < 0 || key_begin > key_end || key_end > keys ||
      key_begin % kKeyBlock != 0 ||
      (key_end % kKeyBlock != 0 && key_end != keys)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "part [", key_begin, ", ", key_end, "): wanted multiples of ",
        kKeyBlock, " in ascending order up to the number of keys, ", keys));
  }
  auto impl = std::make_shared<AttentionPart::Impl>();
  impl->rows = NumRows(p);
  impl->value_head_size = p.value_head_size;
  impl->block_begin = key_begin / kKeyBlock;
  impl->block_end = Blocks(key_end);
  if (p.double_precision) {
    impl->doubles = RunPart<double>(plan, impl->block_begin, impl->block_end,
                                    pool, cancelled);
  } else {
    impl->floats = RunPart<float>(plan, impl->block_begin, impl->block_end,
                                  pool, cancelled);
  }
  if (absl::Status status = Check(cancelled); !status.ok()) return status;
  return AttentionPart(std::move(impl));
}

absl::Status MergeAttentionParts(const AttentionPlan& plan,
                                 absl::Span<const AttentionPart> parts,
                                 const AttentionOutputs& outputs,
                                 ThreadPool& pool,
                                 const std::atomic<bool>* cancelled) {
  const Problem& p = *plan.problem;
  int64_t next = 0;
  for (const AttentionPart& part : parts) {
    const AttentionPart::Impl& impl = part.impl();
    if (impl.rows != NumRows(p) || impl.value_head_size != p.value_head_size ||
        (p.double_precision ? !impl.floats.empty() : !impl.doubles.empty())) {
      return absl::InvalidArgumentError("part: computed by another plan");
    }
    if (impl.block_begin != next) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parts: got one that begins at key ", impl.block_begin * kKeyBlock,
          ", wanted ", next * kKeyBlock));
    }
    next = impl.block_end;
  }
  if (const int64_t blocks = Blocks(LongestKeys(p)); next != blocks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parts: got keys up to block ", next, ", wanted ", blocks));
  }
  WritePresents(plan, outputs, pool, cancelled);
  if (p.double_precision) {
    RunMerge<double>(plan, parts, outputs, pool, cancelled);
  } else {
    RunMerge<float>(plan, parts, outputs, pool, cancelled);
  }
  return Check(cancelled);
}

}  // namespace attention
