// Shapes of the outputs, and what computing them costs.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "kernel/attention.h"
#include "kernel/cpu/scratch.h"
#include "kernel/cpu/tasks.h"
#include "kernel/plan/checks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

absl::Status OutputSpec(DataType type, Shape shape, TensorSpec* spec,
                        const std::string& field) {
  ATTENTION_RETURN_IF_ERROR(CheckSize(field, shape));
  *spec = {type, std::move(shape)};
  return absl::OkStatus();
}

// Shape and strides of the output.
absl::Status PlanOutput(const AttentionInputs& inputs, Layout layout,
                        Problem& problem, TensorSpec* spec) {
  const int64_t b = problem.batch, h = problem.query_heads,
                s = problem.query_length, d = problem.value_head_size;
  Operand& out = problem.output;
  out.type = inputs.query.type;
  Shape shape;
  int64_t width = 0;
  if (__builtin_mul_overflow(h, d, &width)) {
    return FieldError("value.shape", Got(inputs.value.shape,
                                         "fewer than 2^60 elements of output"));
  }
  switch (layout) {
    case Layout::kMatrix:
      shape = {s, d};
      out.row_stride = d;
      break;
    case Layout::kPacked:
      shape = {b, s, width};
      break;
    case Layout::kBSHD:
      shape = {b, s, h, d};
      break;
    case Layout::kRagged:
      shape = {s, h, d};
      out.row_stride = width;
      out.head_stride = d;
      break;
    default:
      shape = {b, h, s, d};
      break;
  }
  ATTENTION_RETURN_IF_ERROR(OutputSpec(out.type, shape, spec, "value.shape"));
  if (spec->num_elements() == 0) return absl::OkStatus();
  if (layout == Layout::kPacked || layout == Layout::kBSHD) {
    out.batch_stride = s * width;
    out.row_stride = width;
    out.head_stride = d;
  } else if (layout == Layout::kBHSD) {
    out.batch_stride = h * s * d;
    out.head_stride = s * d;
    out.row_stride = d;
  }
  return absl::OkStatus();
}

// Sum of clamp(x, 0, limit) over `count` neighbouring x from `first`.
double SumClamped(double first, double count, double limit) {
  const double end = first + count;
  const double rising_begin = std::clamp(first, 0.0, limit);
  const double rising_end = std::clamp(end, rising_begin, limit);
  const double rising =
      (rising_end - rising_begin) * (rising_begin + rising_end - 1) / 2;
  return rising + limit * std::max(0.0, end - std::max(first, limit));
}

// The cost in multiply-adds of a softmax weight beside its dot product and its
// share of P·V, and of an element of key or value that a task reads. Measured
// roughly with attention_bench, at D = Dv = 1 and 64, and in decode.
constexpr double kWeightWork = 24;
constexpr double kReadWork = 8;
// The fixed cost per row, and per sequence and key/value head, about 65 and
// 700 ns.
constexpr double kRowWork = 4000;
constexpr double kTaskWork = 40000;
// Of a number of a list of indices, and of a block that a list has keys of.
constexpr double kIndexWork = 40;
constexpr double kGatherWork = 10000;

// Number of (query head, query, key) triples that causal mask, window and valid
// lengths leave; of chunks and indices as many as there are at most.
double VisiblePairs(const AttentionInputs& inputs, const Problem& problem) {
  // Without rows the batch size is not limited by memory: no loop over it.
  if (NumElements(inputs.query.shape) == 0) return 0;
  // Query i sees keys [i + offset - left, i + offset + right], each end
  // clamped to the valid keys.
  int64_t right = problem.window_right;
  if (problem.causal != Causal::kNone) right = 0;
  double most = std::numeric_limits<double>::infinity();
  if (problem.chunk_size > 0) most = static_cast<double>(problem.chunk_size);
  if (problem.indices) {
    most = std::min(most, static_cast<double>(problem.indices->count));
  }
  // Without starts and valid lengths all sequences are alike.
  const bool alike = !problem.ragged && problem.valid_lengths.empty();
  const int64_t different = alike ? 1 : problem.batch;
  double pairs = 0;
  for (int64_t b = 0; b < different; ++b) {
    const Sequence s = problem.GetSequence(b);
    const auto rows = static_cast<double>(s.query_length);
    const auto valid = static_cast<double>(s.valid_length);
    const auto offset = static_cast<double>(s.offset);
    double visible =
        right < 0
            ? rows * valid
            : SumClamped(offset + static_cast<double>(right) + 1, rows, valid);
    if (problem.window_left >= 0) {
      visible -= SumClamped(offset - static_cast<double>(problem.window_left),
                            rows, valid);
    }
    pairs += std::min(visible, rows * most);
  }
  if (alike) pairs *= static_cast<double>(problem.batch);
  return pairs * static_cast<double>(problem.query_heads);
}

// What indices cost beside the pairs that they leave: reading the lists, and
// the blocks that their keys fall into.
double IndexWork(const Problem& problem) {
  const double lists = static_cast<double>(NumRows(problem)) /
                       static_cast<double>(problem.rows_per_list());
  const auto count = static_cast<double>(problem.indices->count);
  const double blocks =
      std::min(count, static_cast<double>(problem.longest_keys) /
                              static_cast<double>(kKeyBlock) +
                          1);
  return lists * (count * kIndexWork + blocks * kGatherWork + kTaskWork);
}

}  // namespace

absl::Status PlanOutputs(const AttentionInputs& inputs,
                         const AttentionOptions& options, Layout layout,
                         Problem* problem_out, AttentionPlan* plan) {
  Problem& problem = *problem_out;
  ATTENTION_RETURN_IF_ERROR(PlanOutput(inputs, layout, problem, &plan->output));
  problem.return_log_sum_exp = options.return_log_sum_exp;
  if (options.return_log_sum_exp) {
    Shape shape = {problem.batch, problem.query_heads, problem.query_length};
    if (layout == Layout::kMatrix) shape = {problem.query_length};
    if (problem.ragged) shape = {problem.query_length, problem.query_heads};
    ATTENTION_RETURN_IF_ERROR(OutputSpec(
        problem.double_precision ? DataType::kFloat64 : DataType::kFloat32,
        shape, &plan->log_sum_exp.emplace(), "options.return_log_sum_exp"));
  }
  problem.scores = options.return_scores;
  if (options.return_scores != Scores::kNone) {
    ATTENTION_RETURN_IF_ERROR(
        OutputSpec(inputs.query.type,
                   {problem.batch, problem.query_heads, problem.query_length,
                    problem.total_keys()},
                   &plan->scores.emplace(), "options.return_scores"));
  }
  problem.return_present = options.return_present;
  if (options.return_present) {
    ATTENTION_RETURN_IF_ERROR(
        OutputSpec(inputs.key.type,
                   {problem.batch, problem.kv_heads, problem.total_keys(),
                    problem.head_size},
                   &plan->present_key.emplace(), "options.return_present"));
    ATTENTION_RETURN_IF_ERROR(
        OutputSpec(inputs.value.type,
                   {problem.batch, problem.kv_heads, problem.total_keys(),
                    problem.value_head_size},
                   &plan->present_value.emplace(), "options.return_present"));
  }
  plan->double_precision = problem.double_precision;
  plan->fast_math = problem.fast_math;
  const double pairs = VisiblePairs(inputs, problem);
  const auto sizes =
      static_cast<double>(problem.head_size + problem.value_head_size);
  plan->flops = 2.0 * pairs * sizes;
  // A task reads its keys once for all its rows, at most kTaskRows.
  double rows_per_task =
      static_cast<double>(problem.query_length) *
      static_cast<double>(problem.group()) /
      std::max(1.0, static_cast<double>(problem.ragged ? problem.batch : 1));
  if (problem.indices) {
    rows_per_task = static_cast<double>(problem.rows_per_list());
  }
  const double rows_per_read =
      std::clamp(rows_per_task, 1.0, static_cast<double>(kTaskRows));
  plan->work =
      pairs * (sizes + kWeightWork) + pairs / rows_per_read * sizes * kReadWork;
  // Returned scores are computed a second time, masked ones too.
  if (plan->scores) {
    plan->work += static_cast<double>(plan->scores->num_elements()) *
                  (static_cast<double>(problem.head_size) + kWeightWork);
  }
  if (NumRows(problem) > 0) {
    plan->work += static_cast<double>(NumRows(problem)) * kRowWork +
                  static_cast<double>(problem.batch) *
                      static_cast<double>(problem.kv_heads) * kTaskWork;
  }
  plan->work += static_cast<double>(plan->output.num_elements()) * kReadWork;
  if (problem.indices) plan->work += IndexWork(problem);
  return absl::OkStatus();
}

}  // namespace attention
