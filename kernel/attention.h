// Scaled dot-product attention on the CPU. Start here.
//
// Letters, with the same meaning throughout the project:
//   B    batch size                   S   query length (rows of the output)
//   Hq   query heads                  L   new key/value length
//   Hkv  key/value heads              P   past key/value length
//   D    head size of query and key   T   P + L, all keys
//   Dv   head size of value and output
// Query head h reads key/value head h / (Hq / Hkv).
//
// Use, in two steps, so that a caller knows every size before it allocates:
//
//   attention::AttentionInputs inputs{.query = ..., .key = ..., .value = ...};
//   attention::AttentionOptions options{.causal = attention::Causal::kTopLeft};
//   absl::StatusOr<attention::AttentionPlan> plan =
//       attention::PlanAttention(inputs, options);
//   if (!plan.ok()) return plan.status();
//   std::vector<float> output(plan->output.num_elements());
//   attention::Executor executor(3);  // and the calling thread
//   absl::Status status = attention::RunAttention(
//       *plan, {.output = output.data()}, executor);
//
// A call that fails: a key of head size 32 against a query of 64 gives
// InvalidArgumentError("key.shape: got (2, 8, 16, 32), wanted ..."), and
// ErrorField() of it gives "key.shape".
//
// What is computed is specified in proto/attention/v1/attention.proto, its
// precision in docs/numerics.md. The bits of the answer depend on the inputs
// and options alone. They do not depend on the number of threads, on the other
// rows, heads and batches of the call, nor on how keys are divided between past
// and new; nor, except with MathMode::kFast, on the CPU's SIMD instructions.
#ifndef ATTENTION_KERNEL_ATTENTION_H_
#define ATTENTION_KERNEL_ATTENTION_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "base/field_error.h"
#include "kernel/key_values.h"
#include "kernel/tensor_view.h"

namespace attention {

// Axes of the tensors; shapes are given in attention.proto's Layout.
enum class Layout : uint8_t {
  kByRank,
  kMatrix,
  kPacked,
  kBHSD,
  kBSHD,
  kRagged
};

// Query i sees keys j <= i + offset; offsets are given in attention.proto.
enum class Causal : uint8_t { kNone, kTopLeft, kBottomRight };

enum class MathMode : uint8_t { kReproducible, kFast };

// Which scores to return: none, or those after the stage named.
enum class Scores : uint8_t {
  kNone,
  kRaw,      // scale * Q·K
  kCapped,   // then soft cap
  kBiased,   // then mask, ALiBi, causal mask, window and chunk
  kWeights,  // then softmax
};

struct AttentionOptions {
  Layout layout = Layout::kByRank;
  // Hq and Hkv. Needed with kPacked; elsewhere 0 or what the shapes say.
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  // Finite; default 1 / sqrt(D).
  std::optional<double> scale;
  // Finite, >= 0; 0 is none.
  double softcap = 0;
  Causal causal = Causal::kNone;
  // Keys before and after the query's own position; >= -1, -1 is unbounded.
  int64_t window_left = -1;
  int64_t window_right = -1;
  // A query sees the keys of its own chunk of so many positions; >= 0, 0 is all
  // keys.
  int64_t chunk_size = 0;
  // Empty or Hq finite values.
  std::vector<double> alibi_slopes;
  // Empty or Hq values, neither NaN nor +infinity. Not with
  // AttentionInputs::sinks.
  std::vector<double> sinks;
  MathMode math_mode = MathMode::kReproducible;
  // A float type: computes in at least this precision. The inputs may require
  // more.
  std::optional<DataType> softmax_precision;
  bool return_log_sum_exp = false;
  Scores return_scores = Scores::kNone;
  bool return_present = false;
};

// The most that one computation may ask for, inclusive. Shapes of few bytes can
// be expensive: these limits bound working memory, the lists of tasks, and how
// long a thread computes between two looks at the clock.
struct AttentionLimits {
  // D and Dv. A thread's working memory and its time per block of keys grow
  // with them.
  int64_t head_size = 4096;
  // Hq and Hkv.
  int64_t heads = 65536;
  // B, or the number of ragged sequences.
  int64_t batch = 131072;
  // B * Hkv: each pair is at least one task.
  int64_t batch_heads = 1048576;
  // AttentionPlan::work. Unlimited by default.
  double work = std::numeric_limits<double>::infinity();
};

// What attention reads. Nothing here is owned.
struct AttentionInputs {
  // In layout kBHSD (B, Hq, S, D), (B, Hkv, L, D) and (B, Hkv, L, Dv).
  ConstTensorView query;
  ConstTensorView key;
  ConstTensorView value;
  // Broadcasts to (B, Hq, S, T - mask_begin). Keys past its last axis are
  // masked.
  std::optional<ConstTensorView> mask;
  // The key of the mask's first column: a multiple of kKeyBlock in [0, T]. No
  // query may see an earlier key.
  int64_t mask_begin = 0;
  // Both or neither; (B, Hkv, P, D) and (B, Hkv, P, Dv) in every layout.
  std::optional<ConstTensorView> past_key;
  std::optional<ConstTensorView> past_value;
  // Which keys a query sees, beside all that hides keys otherwise: INT32 or
  // INT64, (B, S, k), or (B, Hq, S, k) per query head; kRagged: (sum of S, k)
  // or (sum of S, Hq, k); without a batch axis also where B is 1 and heads
  // share them, (S, k). Keys are counted from 0 in their sequence, the past
  // first; -1 is none. In any order; a key that comes twice counts once. Only
  // these keys are read: the time grows with k, not T.
  std::optional<ConstTensorView> indices;
  // A sink's logit of each row, in place of AttentionOptions::sinks, of a float
  // type: (B, Hq, S); kMatrix: also (S); kRagged: (sum of S, Hq).
  std::optional<ConstTensorView> sinks;
  // Empty or B numbers in [0, T].
  absl::Span<const int64_t> valid_lengths;
  // Layout::kRagged only: B + 1 ascending numbers, from 0 to the size of
  // query's, or key's, first axis.
  absl::Span<const int64_t> query_starts;
  absl::Span<const int64_t> key_starts;
};

// Where attention writes: each of the type and shape that the plan's member of
// the same name has, row-major, aligned to the element's size, not overlapping
// any input. A pointer may be null where the plan has no such tensor or the
// tensor has no elements.
struct AttentionOutputs {
  void* output = nullptr;         // kBHSD: [B, Hq, S, Dv]
  void* log_sum_exp = nullptr;    // [B, Hq, S]; kRagged: [S, Hq]
  void* scores = nullptr;         // [B, Hq, S, T]
  void* present_key = nullptr;    // [B, Hkv, T, D]
  void* present_value = nullptr;  // [B, Hkv, T, Dv]
};

// The checked geometry of one computation; internal (kernel/plan/problem.h).
struct Problem;

// A valid request, and what it will write. Refers to the memory of the inputs,
// which must live and stay unchanged until the last run has ended.
struct AttentionPlan {
  TensorSpec output;
  std::optional<TensorSpec> log_sum_exp;
  std::optional<TensorSpec> scores;
  std::optional<TensorSpec> present_key;
  std::optional<TensorSpec> present_value;
  // 2 * pairs * (D + Dv), where pairs counts the (query, key) pairs of every
  // query head that causal mask, window and valid lengths leave, at most k for
  // each row that has indices. The mask tensor is not counted.
  double flops = 0;
  // The whole cost, in multiply-adds: flops / 2, and what softmax, reading keys
  // and values, rows and sequences cost beside them. On one CPU and in one
  // precision proportional to the time taken, within about a factor of 2.
  double work = 0;
  // Computed in double rather than float; with kFast arithmetic.
  bool double_precision = false;
  bool fast_math = false;
  // Shared so that a plan can be copied.
  std::shared_ptr<const Problem> problem;
};

// Checks inputs and options completely: shapes, types, lengths, ranges,
// overflow, the bytes of a bool mask, indices and sinks. Reads no other tensor
// element and computes no attention. Copies ragged starts and valid lengths;
// allocates nothing else that grows with the inputs.
//
// Errors: InvalidArgument, naming the field, what it got and what it wanted;
// ErrorField() gives the field's path as in attention.proto. Throws
// std::bad_alloc.
absl::StatusOr<AttentionPlan> PlanAttention(const AttentionInputs& inputs,
                                            const AttentionOptions& options,
                                            const AttentionLimits& limits = {});

// The first key of sequence `sequence`, in [0, B), that any query sees: by
// causal mask, window and valid length, not the mask tensor. T if none sees a
// key.
int64_t FirstVisibleKey(const AttentionPlan& plan, int64_t sequence = 0);

// `plan`, which was made without the data of keys and values, over keys and
// values that lie in blocks: views[b] has those of sequence b, to its last one.
// It may leave out the first ones that no query sees. The views' blocks, and
// `views`, must live as long as the plan is used. With `scaled`, INT8 or
// FLOAT8_E4M3, the blocks have scaled rows of this type, of keys and values
// that are FLOAT32 for the plan (kernel/scaled.h).
//
// Errors: InvalidArgument for plans that have past keys or return present ones,
// where a view lacks a key that is seen or ends elsewhere than its sequence,
// where scores are to be returned and a view does not have all keys, and where
// rows are scaled whose plan has another type. Throws std::bad_alloc.
absl::StatusOr<AttentionPlan> WithKeys(
    AttentionPlan plan, absl::Span<const KeyValueView> views,
    std::optional<DataType> scaled = std::nullopt);

// `plan`, which was made without the data of keys and values, for an
// Accumulator whose views have scaled rows of this type; errors likewise.
absl::StatusOr<AttentionPlan> WithScaledKeys(AttentionPlan plan,
                                             DataType scaled);

// The most memory, in bytes, that computing on `threads` threads takes beside
// inputs and outputs. Saturates at the largest int64_t.
int64_t WorkingBytes(const AttentionPlan& plan, int threads);
// The same for several that are computed at the same time on these threads
// (JobGroup).
int64_t WorkingBytes(absl::Span<const AttentionPlan* const> plans, int threads);

// Computes what `plan` describes. Blocks until done; uses `executor`'s threads
// and the calling one. Thread-safe: any number of calls may share a plan or an
// executor.
//
// `cancelled`, if given, is read between blocks of work; once it is true the
// call returns Cancelled soon and the outputs are unspecified.
//
// Errors: Cancelled; ResourceExhausted if memory could not be allocated.
absl::Status RunAttention(const AttentionPlan& plan,
                          const AttentionOutputs& outputs, Executor& executor,
                          const std::atomic<bool>* cancelled = nullptr);

// RunAttention() as a job for Executor::Submit(), for up to `threads` threads.
// `done` is called once, at the end, with the status that RunAttention() would
// return, or with DeadlineExceeded; it may destroy the job. MakeAttentionJob()
// throws std::bad_alloc, the job's functions do not.
std::unique_ptr<Executor::Job> MakeAttentionJob(
    const AttentionPlan& plan, const AttentionOutputs& outputs, int threads,
    absl::AnyInvocable<void(absl::Status)> done);

// The SIMD target in use, by Google Highway's name ("AVX3", "AVX2", "NEON").
absl::string_view SimdTarget();

// Whether MathMode::kFast differs from kReproducible on this CPU.
bool HasFastMath();

}  // namespace attention

#endif  // ATTENTION_KERNEL_ATTENTION_H_
