// Attention over keys and values that arrive in blocks: the state of all rows
// over the keys added so far.
//
//   absl::StatusOr<AttentionPlan> plan = PlanAttention(inputs, options);
//   // inputs.key and inputs.value have a shape, but no data.
//   auto accumulator = Accumulator::Create(*plan, {.output = output});
//   for (...) accumulator->Add({.views = {view}}, executor);
//   accumulator->Finish(executor);
//
// The bits of the answer are those of RunAttention() over all keys at once.
// Both compute a row block by block, and merge the blocks' partials along the
// same tree (kernel/key_values.h).
//
// An accumulator may take a part of the keys only (CreatePart). Export() gives
// its partials; Merge() adds them to another accumulator, in place of the keys.
#ifndef ATTENTION_KERNEL_ACCUMULATOR_H_
#define ATTENTION_KERNEL_ACCUMULATOR_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "kernel/tensor_view.h"

namespace attention {

// What softmax over some of the keys gives for every row of a plan. Immutable,
// cheap to copy.
//
// Invariants:
//   1. Blocks [block_begin, block_end) are one subtree of the tree of blocks.
//   2. Row i * Hq + h is query i and query head h; i counts through all
//      sequences.
//   3. A row that sees none of the keys has max = -inf, sum = 0 and output = 0.
struct Partial {
  int64_t block_begin = 0;
  int64_t block_end = 0;
  int64_t rows = 0;             // B * S * Hq; ragged: sum of S, times Hq
  int64_t value_head_size = 0;  // Dv
  // Of max, sum and output: FLOAT64 if the plan computes in double, else
  // FLOAT32.
  DataType type = DataType::kFloat32;
  const void* max = nullptr;     // [rows]: largest score m
  const void* sum = nullptr;     // [rows]: sum of exp(score - m)
  const void* output = nullptr;  // [rows, Dv], row-major: exp(score - m)·V
  // Owns what the three point into; null if somebody else does.
  std::shared_ptr<const void> memory;
};

// Keys that are added together.
struct AddedKeys {
  // One per sequence, of sequences [first_sequence, first_sequence +
  // views.size()). Without RAGGED these are all B sequences, with equal begin
  // and length. A view begins where the sequence's previous one ended, and ends
  // at a multiple of kKeyBlock or with the sequence.
  absl::Span<const KeyValueView> views;
  int64_t first_sequence = 0;
  // Where the plan has a mask: its columns of these keys. The shape is that of
  // the plan's mask, except for the last axis: as many of the views' keys as
  // the plan's mask covers.
  std::optional<ConstTensorView> mask;
  // The caller has seen that each byte of a BOOL mask is 0 or 1: it is not read
  // through for that again. Where that is untrue, whether such a byte hides its
  // key is unspecified, and nothing else.
  bool mask_is_checked = false;
};

// Thread-compatible: one function or job at a time.
class Accumulator {
 public:
  // Internal.
  class Impl;

  // Keys [begin, end) of each sequence.
  struct Keys {
    int64_t begin = 0;
    int64_t end = std::numeric_limits<int64_t>::max();  // its last key
  };

  // For all keys. The plan's key, value and mask need no data. Its query's data
  // and the outputs' memory must live until all rows are finished. Outputs are
  // written as by RunAttention().
  //
  // Errors: InvalidArgument for plans that return scores or present keys, or
  // have a mask_begin.
  // Throws std::bad_alloc.
  static absl::StatusOr<Accumulator> Create(const AttentionPlan& plan,
                                            const AttentionOutputs& outputs);

  // For a part of the keys, to be exported: finishes no row. Also
  // InvalidArgument unless keys.begin is a multiple of kKeyBlock, and keys.end
  // is one or the number of keys.
  static absl::StatusOr<Accumulator> CreatePart(const AttentionPlan& plan,
                                                Keys keys);

  // The most memory, in bytes, that an accumulator of all keys takes beside the
  // plan, its query and the outputs: the state of unfinished rows, and the
  // scratch of `threads` threads. Saturates at the largest int64_t.
  // `sequences`: with RAGGED, the most that are begun and unfinished at a time;
  // all by default.
  static int64_t Bytes(const AttentionPlan& plan, int threads,
                       int64_t sequences = std::numeric_limits<int64_t>::max());

  Accumulator(Accumulator&&) noexcept;
  Accumulator& operator=(Accumulator&&) noexcept;
  ~Accumulator();

  // Attends to keys and values; does not refer to them or the mask afterwards.
  // Finishes rows that see no later key: writes their outputs and frees their
  // state. Returns when done, as RunAttention() does.
  //
  // Errors: InvalidArgument for keys out of order and for a mask that is wrong
  // or missing; nothing has changed then. Cancelled and ResourceExhausted as in
  // RunAttention(); every later call then fails with FailedPrecondition.
  absl::Status Add(const AddedKeys& keys, Executor& executor,
                   const std::atomic<bool>* cancelled = nullptr);

  // Add() as a job for Executor::Submit(). `done` is called once, with the
  // status that Add() would return, or with DeadlineExceeded; it may destroy
  // the job. What `keys` refers to must live until then. InvalidArgument is
  // returned at once, without a job. Throws std::bad_alloc; nothing has changed
  // then.
  absl::StatusOr<std::unique_ptr<Executor::Job>> MakeAddJob(
      const AddedKeys& keys, int threads,
      absl::AnyInvocable<void(absl::Status)> done);

  // Takes a partial in place of its keys. It must begin at the block where the
  // keys of all sequences have ended so far, and have the plan's rows, Dv and
  // precision; else InvalidArgument, and nothing has changed. Other errors as
  // for Add().
  absl::Status Merge(const Partial& partial, Executor& executor,
                     const std::atomic<bool>* cancelled = nullptr);

  // Writes the outputs of all unfinished rows. FailedPrecondition if keys are
  // missing; nothing has changed then. Other errors as for Add().
  absl::Status Finish(Executor& executor,
                      const std::atomic<bool>* cancelled = nullptr);
  // Likewise.
  absl::StatusOr<std::unique_ptr<Executor::Job>> MakeFinishJob(
      int threads, absl::AnyInvocable<void(absl::Status)> done);

  // The partials of a part in ascending order, one for each of the fewest
  // subtrees that cover its keys. FailedPrecondition if keys are missing, or
  // for an accumulator of all keys. Other errors as for Add().
  absl::StatusOr<std::vector<Partial>> Export(
      Executor& executor, const std::atomic<bool>* cancelled = nullptr) &&;
  // Likewise; `partials`, which must be empty, has them if `done` gets OK.
  absl::StatusOr<std::unique_ptr<Executor::Job>> MakeExportJob(
      std::vector<Partial>* partials, int threads,
      absl::AnyInvocable<void(absl::Status)> done);

  // Queries [0, finished_queries()) of every sequence and head are finished.
  // With RAGGED they are counted along the query's first axis.
  int64_t finished_queries() const;

 private:
  explicit Accumulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_ACCUMULATOR_H_
