// Attention whose keys and values come piece by piece: the state of all rows
// over the keys seen so far.
//
//   absl::StatusOr<AttentionPlan> plan = PlanAttention(inputs, options);
//   // inputs.key and inputs.value have a shape, but no data.
//   auto accumulator = Accumulator::Create(*plan, {.output = output});
//   for (...) accumulator->Add({{view}}, {}, executor);  // 256 tokens, or more
//   accumulator->Finish(executor);
//
// The bits of the answer are those of RunAttention() over all keys at once: a
// row is computed block by block in both, and the partial results of blocks
// merge along one tree. RunAttention() is the same computation without state
// between its blocks.
//
// A part of the keys: an accumulator made by CreatePart() takes only these.
// Export() gives its partial results, which another accumulator takes with
// Merge() in place of the keys.
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

// The partial results of every row over the keys of blocks [block_begin,
// block_end), one node of the tree of blocks. Row (query i, query head h) is
// number i * Hq + h, i counted through all sequences. Immutable, copied
// cheaply.
struct Partial {
  int64_t block_begin = 0;
  int64_t block_end = 0;
  int64_t rows = 0;             // B * S * Hq; ragged: sum of S, times Hq
  int64_t value_head_size = 0;  // Dv
  // FLOAT32, or FLOAT64 where the computation is in double: it is the type of
  // all three.
  DataType type = DataType::kFloat32;
  const void* max = nullptr;     // [rows]: the largest score, m
  const void* sum = nullptr;     // [rows]: of exp(score - m)
  const void* output = nullptr;  // [rows, Dv]: of exp(score - m) * value
  // What the three point into; may be null where somebody else owns it.
  std::shared_ptr<const void> memory;
};

// Keys that are added together.
struct AddedKeys {
  // Views of the sequences [first_sequence, first_sequence + views.size()).
  // Without RAGGED all B sequences must be there, with equal begin and length.
  // Each view begins where its sequence's last one ended, and ends at a
  // multiple of kKeyBlock or at the sequence's last key.
  absl::Span<const KeyValueView> views;
  int64_t first_sequence = 0;
  // Where the plan has a mask: that of these keys. Its shape is the plan's but
  // for the last axis, which is the views' length (at the most: keys past the
  // end of the plan's mask have none).
  std::optional<ConstTensorView> mask;
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

  // Of the plan's rows over all keys. The plan's key, value and mask need no
  // data; its query does, until the rows are finished, and so does memory for
  // the outputs, which are written as in RunAttention().
  //
  // Errors: InvalidArgument for plans that return scores or present keys.
  // Throws std::bad_alloc.
  static absl::StatusOr<Accumulator> Create(const AttentionPlan& plan,
                                            const AttentionOutputs& outputs);

  // The same over a part of the keys, for Export(): no row is ever finished.
  // Errors: also InvalidArgument where `keys` does not begin at a multiple of
  // kKeyBlock, or does not end at one or with the last key.
  static absl::StatusOr<Accumulator> CreatePart(const AttentionPlan& plan,
                                                Keys keys);

  // The most memory that an accumulator of all keys takes, beside the plan,
  // its query and outputs: the state of rows that are not finished, and what
  // `threads` threads work in. In bytes; saturates at the largest int64_t.
  // `sequences`: with RAGGED, how many are begun and not finished at any time;
  // by default all.
  static int64_t Bytes(const AttentionPlan& plan, int threads,
                       int64_t sequences = std::numeric_limits<int64_t>::max());

  Accumulator(Accumulator&&) noexcept;
  Accumulator& operator=(Accumulator&&) noexcept;
  ~Accumulator();

  // Takes keys and values; they and the mask are not used after it. Rows that
  // see none of the keys still to come are finished: written to the outputs,
  // their state freed. Blocks, as RunAttention() does.
  //
  // Errors: InvalidArgument for keys out of order and for a mask that is wrong
  // or missing, and then nothing has changed; Cancelled, ResourceExhausted as
  // RunAttention(), and then the accumulator is of no more use.
  absl::Status Add(const AddedKeys& keys, Executor& executor,
                   const std::atomic<bool>* cancelled = nullptr);

  // The same as a job for Executor::Submit(). `done` is called once, with what
  // Add() returns, or DeadlineExceeded; it may destroy the job. The arguments
  // must live until then. Errors: InvalidArgument, before there is a job.
  absl::StatusOr<std::unique_ptr<Executor::Job>> MakeAddJob(
      const AddedKeys& keys, int threads,
      absl::AnyInvocable<void(absl::Status)> done);

  // Takes the partial results of other keys in place of the keys: `partial`
  // must begin at the block where the keys of all sequences ended so far, be of
  // as many rows and columns, and of the same precision; else InvalidArgument,
  // and nothing has changed. Other errors as for Add().
  absl::Status Merge(const Partial& partial, Executor& executor,
                     const std::atomic<bool>* cancelled = nullptr);

  // Writes the rows that are not finished yet. FailedPrecondition if keys are
  // missing, and then nothing has changed. Other errors as for Add().
  absl::Status Finish(Executor& executor,
                      const std::atomic<bool>* cancelled = nullptr);
  absl::StatusOr<std::unique_ptr<Executor::Job>> MakeFinishJob(
      int threads, absl::AnyInvocable<void(absl::Status)> done);

  // The partial results of a part, in ascending order: as few nodes of the tree
  // of blocks as cover its keys. FailedPrecondition if keys are missing, or for
  // an accumulator of all keys. Other errors as for Add().
  absl::StatusOr<std::vector<Partial>> Export(
      Executor& executor, const std::atomic<bool>* cancelled = nullptr) &&;

  // Queries [0, this) of every sequence and head are finished; with RAGGED,
  // rows [0, this) of the query's first axis.
  int64_t finished_queries() const;

 private:
  explicit Accumulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_ACCUMULATOR_H_
