// PlanAttention: checks a request and resolves its geometry.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernel/attention.h"
#include "kernel/plan/checks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

// Plans one request. Plan() shows the order in which the members of p_ become
// known.
class Planner {
 public:
  Planner(const AttentionInputs& inputs, const AttentionOptions& options,
          const AttentionLimits& limits)
      : inputs_(inputs),
        options_(options),
        limits_(limits),
        problem_(std::make_shared<Problem>()),
        p_(*problem_) {}

  absl::StatusOr<AttentionPlan> Plan() {
    ATTENTION_RETURN_IF_ERROR(CheckTypes());
    ATTENTION_RETURN_IF_ERROR(ResolveLayout());
    ATTENTION_RETURN_IF_ERROR(ResolveShapes());
    ATTENTION_RETURN_IF_ERROR(CheckRagged());
    ATTENTION_RETURN_IF_ERROR(CheckBatch());
    ATTENTION_RETURN_IF_ERROR(ResolvePast());
    ATTENTION_RETURN_IF_ERROR(CheckValidLengths());
    ATTENTION_RETURN_IF_ERROR(ResolveNumbers());
    if (inputs_.mask) {
      absl::StatusOr<MaskOperand> mask =
          PlanMask(*inputs_.mask, inputs_.mask_begin, p_);
      ATTENTION_RETURN_IF_ERROR(mask.status());
      p_.mask = *std::move(mask);
    }
    if (inputs_.mask_begin != 0) {
      if (!inputs_.mask) {
        return FieldError("mask_begin",
                          GotNumber(inputs_.mask_begin, "0 without mask"));
      }
      if (options_.return_scores != Scores::kNone) {
        return FieldError(
            "mask_begin",
            GotNumber(inputs_.mask_begin, "0 with options.return_scores"));
      }
    }
    if (inputs_.indices) {
      absl::StatusOr<IndexOperand> indices = PlanIndices(*inputs_.indices, p_);
      ATTENTION_RETURN_IF_ERROR(indices.status());
      p_.indices = *std::move(indices);
    }
    if (inputs_.sinks) {
      if (!options_.sinks.empty()) {
        return FieldError("sinks", "not with options.sinks");
      }
      absl::StatusOr<Operand> sinks = PlanRowSinks(*inputs_.sinks, p_);
      ATTENTION_RETURN_IF_ERROR(sinks.status());
      p_.row_sinks = *std::move(sinks);
    }
    AttentionPlan plan;
    ATTENTION_RETURN_IF_ERROR(
        PlanOutputs(inputs_, options_, layout_, &p_, &plan));
    ATTENTION_RETURN_IF_ERROR(CheckWork(plan.work));
    plan.problem = std::move(problem_);
    return plan;
  }

 private:
  absl::Status CheckTypes() {
    ATTENTION_RETURN_IF_ERROR(CheckFloat("query", inputs_.query.type));
    ATTENTION_RETURN_IF_ERROR(
        CheckSameType("key", inputs_.key.type, "query", inputs_.query.type));
    ATTENTION_RETURN_IF_ERROR(CheckFloat("value", inputs_.value.type));
    if (inputs_.past_key) {
      ATTENTION_RETURN_IF_ERROR(CheckSameType(
          "past_key", inputs_.past_key->type, "key", inputs_.key.type));
    }
    if (inputs_.past_value) {
      ATTENTION_RETURN_IF_ERROR(CheckSameType(
          "past_value", inputs_.past_value->type, "value", inputs_.value.type));
    }
    const std::optional<DataType> least = options_.softmax_precision;
    if (least && !IsFloat(*least)) {
      return FieldError("options.softmax_precision",
                        absl::StrCat("got ", Name(*least),
                                     ", wanted FLOAT32, FLOAT16, BFLOAT16 or "
                                     "FLOAT64"));
    }
    p_.double_precision = inputs_.query.type == DataType::kFloat64 ||
                          inputs_.value.type == DataType::kFloat64 ||
                          least == DataType::kFloat64;
    return absl::OkStatus();
  }

  absl::Status ResolveLayout() {
    layout_ = options_.layout;
    const ConstTensorView& query = inputs_.query;
    if (layout_ == Layout::kByRank) {
      switch (query.shape.size()) {
        case 2:
          layout_ = Layout::kMatrix;
          break;
        case 3:
          layout_ = Layout::kPacked;
          break;
        case 4:
          layout_ = Layout::kBHSD;
          break;
        default:
          return FieldError("query.shape",
                            Got(query.shape, "2, 3 or 4 dimensions"));
      }
    }
    size_t rank = 4;
    absl::string_view axes;
    switch (layout_) {
      case Layout::kMatrix:
        rank = 2;
        axes = "(length, head size) in layout MATRIX";
        break;
      case Layout::kPacked:
        rank = 3;
        axes = "(batch, length, heads * head size) in layout PACKED";
        break;
      case Layout::kRagged:
        rank = 3;
        axes = "(sum of lengths, heads, head size) in layout RAGGED";
        break;
      case Layout::kBSHD:
        axes = "(batch, length, heads, head size) in layout BSHD";
        break;
      case Layout::kBHSD:
      case Layout::kByRank:
        axes = "(batch, heads, length, head size) in layout BHSD";
        break;
    }
    ATTENTION_RETURN_IF_ERROR(CheckRank("query", inputs_.query, rank, axes));
    ATTENTION_RETURN_IF_ERROR(CheckRank("key", inputs_.key, rank, axes));
    ATTENTION_RETURN_IF_ERROR(CheckRank("value", inputs_.value, rank, axes));
    ATTENTION_RETURN_IF_ERROR(CheckView("query", inputs_.query));
    ATTENTION_RETURN_IF_ERROR(CheckView("key", inputs_.key));
    return CheckView("value", inputs_.value);
  }

  // The four axes of one of query, key, value.
  struct Axes {
    int64_t batch, heads, length, size;
  };

  // `heads` is used where the layout has no axis of heads.
  Axes AxesOf(const ConstTensorView& view, int64_t heads, Operand* operand) {
    const Shape& d = view.shape;
    const Shape s = Strides(view);
    operand->data = view.data;
    operand->type = view.type;
    switch (layout_) {
      case Layout::kMatrix:
        operand->row_stride = s[0];
        return {1, 1, d[0], d[1]};
      case Layout::kPacked:
        operand->batch_stride = s[0];
        operand->row_stride = s[1];
        operand->head_stride = d[2] / heads;
        return {d[0], heads, d[1], d[2] / heads};
      case Layout::kBSHD:
        operand->batch_stride = s[0];
        operand->row_stride = s[1];
        operand->head_stride = s[2];
        return {d[0], d[2], d[1], d[3]};
      case Layout::kRagged:
        operand->row_stride = s[0];
        operand->head_stride = s[1];
        return {1, d[1], d[0], d[2]};
      default:
        operand->batch_stride = s[0];
        operand->head_stride = s[1];
        operand->row_stride = s[2];
        return {d[0], d[1], d[2], d[3]};
    }
  }

  absl::Status CheckPackedHeads() {
    const int64_t query_heads = options_.query_heads;
    const int64_t kv_heads = options_.kv_heads;
    const auto check = [](absl::string_view field, int64_t heads) {
      if (heads >= 1) return absl::OkStatus();
      return FieldError(absl::StrCat("options.", field),
                        GotNumber(heads, "at least 1 with layout PACKED"));
    };
    ATTENTION_RETURN_IF_ERROR(check("query_heads", query_heads));
    ATTENTION_RETURN_IF_ERROR(check("kv_heads", kv_heads));
    const auto divides = [](absl::string_view field, const Shape& shape,
                            absl::string_view name, int64_t heads) {
      if (shape[2] % heads == 0) return absl::OkStatus();
      return FieldError(
          absl::StrCat(field, ".shape"),
          Got(shape, absl::StrCat("a last dimension that options.", name, " ",
                                  heads, " divides")));
    };
    ATTENTION_RETURN_IF_ERROR(
        divides("query", inputs_.query.shape, "query_heads", query_heads));
    ATTENTION_RETURN_IF_ERROR(
        divides("key", inputs_.key.shape, "kv_heads", kv_heads));
    return divides("value", inputs_.value.shape, "kv_heads", kv_heads);
  }

  absl::Status ResolveShapes() {
    if (layout_ == Layout::kPacked) {
      ATTENTION_RETURN_IF_ERROR(CheckPackedHeads());
    }
    const Axes q = AxesOf(inputs_.query, options_.query_heads, &p_.query);
    const Axes k = AxesOf(inputs_.key, options_.kv_heads, &p_.key);
    const Axes v = AxesOf(inputs_.value, options_.kv_heads, &p_.value);
    const auto wrong = [&](absl::string_view field, absl::string_view wanted) {
      const ConstTensorView& view = field == "query" ? inputs_.query
                                    : field == "key" ? inputs_.key
                                                     : inputs_.value;
      return FieldError(absl::StrCat(field, ".shape"), Got(view.shape, wanted));
    };
    if (q.size < 1) return wrong("query", "a head size of at least 1");
    if (v.size < 1) return wrong("value", "a head size of at least 1");
    if (q.heads < 1) return wrong("query", "at least 1 head");
    if (k.heads < 1) return wrong("key", "at least 1 head");
    if (q.size > limits_.head_size) return TooLargeHead("query", inputs_.query);
    if (v.size > limits_.head_size) return TooLargeHead("value", inputs_.value);
    if (q.heads > limits_.heads) return TooManyHeads("query", q.heads);
    if (k.heads > limits_.heads) return TooManyHeads("key", k.heads);
    if (k.size != q.size) {
      return wrong("key", absl::StrCat("query's head size ", q.size));
    }
    if (k.batch != q.batch) {
      return wrong("key", absl::StrCat("query's batch size ", q.batch));
    }
    if (v.batch != q.batch) {
      return wrong("value", absl::StrCat("query's batch size ", q.batch));
    }
    if (v.heads != k.heads) {
      return wrong("value", absl::StrCat("key's ", k.heads, " heads"));
    }
    if (v.length != k.length) {
      return wrong("value", absl::StrCat("key's length ", k.length));
    }
    if (q.heads % k.heads != 0) {
      if (layout_ == Layout::kPacked) {
        return FieldError(
            "options.kv_heads",
            GotNumber(k.heads,
                      absl::StrCat("a divisor of query_heads ", q.heads)));
      }
      return wrong(
          "key",
          absl::StrCat("a number of heads that divides query's ", q.heads));
    }
    const auto agrees = [](absl::string_view field, int64_t got, int64_t is) {
      if (got == 0 || got == is) return absl::OkStatus();
      return FieldError(absl::StrCat("options.", field),
                        GotNumber(got, absl::StrCat("0 or the shape's ", is)));
    };
    ATTENTION_RETURN_IF_ERROR(
        agrees("query_heads", options_.query_heads, q.heads));
    ATTENTION_RETURN_IF_ERROR(agrees("kv_heads", options_.kv_heads, k.heads));
    p_.ragged = layout_ == Layout::kRagged;
    p_.batch = q.batch;
    p_.query_heads = q.heads;
    p_.kv_heads = k.heads;
    p_.query_length = q.length;
    p_.key_length = k.length;
    p_.head_size = q.size;
    p_.value_head_size = v.size;
    return absl::OkStatus();
  }

  absl::Status TooLargeHead(absl::string_view field,
                            const ConstTensorView& view) const {
    return LimitError(absl::StrCat(field, ".shape"),
                      Got(view.shape, absl::StrCat("a head size of at most ",
                                                   limits_.head_size)));
  }

  absl::Status TooManyHeads(absl::string_view field, int64_t heads) const {
    if (layout_ == Layout::kPacked) {
      return LimitError(
          field == "query" ? "options.query_heads" : "options.kv_heads",
          GotNumber(heads, absl::StrCat("at most ", limits_.heads)));
    }
    const ConstTensorView& view =
        field == "query" ? inputs_.query : inputs_.key;
    return LimitError(
        absl::StrCat(field, ".shape"),
        Got(view.shape, absl::StrCat("at most ", limits_.heads, " heads")));
  }

  // After CheckRagged(), which counts the sequences.
  absl::Status CheckBatch() const {
    if (p_.batch > limits_.batch) {
      return LimitError(
          "query.shape",
          Got(inputs_.query.shape,
              absl::StrCat("a batch size of at most ", limits_.batch)));
    }
    if (p_.batch > limits_.batch_heads / p_.kv_heads) {
      return LimitError(
          "key.shape", Got(inputs_.key.shape,
                           absl::StrCat("batch size times heads of at most ",
                                        limits_.batch_heads, ", not ", p_.batch,
                                        " * ", p_.kv_heads)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckWork(double work) const {
    if (work <= limits_.work) return absl::OkStatus();
    return LimitError(
        "query.shape",
        Got(inputs_.query.shape, absl::StrCat("work of at most ", limits_.work,
                                              " multiply-adds, not ", work)));
  }

  absl::Status CheckStarts(absl::string_view field,
                           absl::Span<const int64_t> starts, int64_t last,
                           int64_t* longest) {
    if (starts.empty()) {
      return FieldError(field, "missing, wanted with layout RAGGED");
    }
    if (static_cast<int64_t>(starts.size()) - 1 > limits_.batch) {
      return LimitError(
          field, absl::StrCat("got ", starts.size(),
                              " numbers, wanted at most ", limits_.batch + 1,
                              ", for ", limits_.batch, " sequences"));
    }
    if (starts.front() != 0) {
      return FieldError(absl::StrCat(field, "[0]"),
                        GotNumber(starts.front(), "0"));
    }
    *longest = 0;
    for (size_t b = 1; b < starts.size(); ++b) {
      if (starts[b] < starts[b - 1]) {
        return FieldError(
            absl::StrCat(field, "[", b, "]"),
            GotNumber(starts[b], absl::StrCat("at least the number before it, ",
                                              starts[b - 1])));
      }
      *longest = std::max(*longest, starts[b] - starts[b - 1]);
    }
    if (starts.back() != last) {
      return FieldError(
          absl::StrCat(field, "[", starts.size() - 1, "]"),
          GotNumber(starts.back(),
                    absl::StrCat("the sum of all lengths, ", last)));
    }
    return absl::OkStatus();
  }

  absl::Status CheckRagged() {
    if (!p_.ragged) {
      if (!inputs_.query_starts.empty()) {
        return FieldError("query_starts", "only with layout RAGGED");
      }
      if (!inputs_.key_starts.empty()) {
        return FieldError("key_starts", "only with layout RAGGED");
      }
      return absl::OkStatus();
    }
    const auto refuse = [](absl::string_view field) {
      return FieldError(field, "not with layout RAGGED");
    };
    if (inputs_.mask) return refuse("mask");
    if (inputs_.past_key) return refuse("past_key");
    if (inputs_.past_value) return refuse("past_value");
    if (!inputs_.valid_lengths.empty()) return refuse("valid_lengths");
    if (options_.return_scores != Scores::kNone) {
      return refuse("options.return_scores");
    }
    if (options_.return_present) return refuse("options.return_present");
    ATTENTION_RETURN_IF_ERROR(CheckStarts("query_starts", inputs_.query_starts,
                                          p_.query_length, &p_.longest_query));
    ATTENTION_RETURN_IF_ERROR(CheckStarts("key_starts", inputs_.key_starts,
                                          p_.key_length, &p_.longest_keys));
    if (inputs_.key_starts.size() != inputs_.query_starts.size()) {
      return FieldError(
          "key_starts",
          absl::StrCat("got ", inputs_.key_starts.size(),
                       " numbers, wanted as many as query_starts, ",
                       inputs_.query_starts.size()));
    }
    p_.query_starts.assign(inputs_.query_starts.begin(),
                           inputs_.query_starts.end());
    p_.key_starts.assign(inputs_.key_starts.begin(), inputs_.key_starts.end());
    p_.batch = static_cast<int64_t>(p_.query_starts.size()) - 1;
    return absl::OkStatus();
  }

  absl::Status ResolvePastOperand(absl::string_view field,
                                  const ConstTensorView& view, int64_t size,
                                  Operand* operand) {
    ATTENTION_RETURN_IF_ERROR(
        CheckRank(field, view, 4, "(batch, kv heads, past length, head size)"));
    ATTENTION_RETURN_IF_ERROR(CheckView(field, view));
    const Shape wanted = {p_.batch, p_.kv_heads, view.shape[2], size};
    if (view.shape != wanted) {
      return FieldError(absl::StrCat(field, ".shape"),
                        Got(view.shape, ToString(wanted)));
    }
    const Shape strides = Strides(view);
    *operand = {view.data, view.type, strides[0], strides[1], strides[2]};
    return absl::OkStatus();
  }

  absl::Status ResolvePast() {
    if (!inputs_.past_key && !inputs_.past_value) return CheckTotalKeys();
    if (!inputs_.past_key) {
      return FieldError("past_key", "missing, wanted with past_value");
    }
    if (!inputs_.past_value) {
      return FieldError("past_value", "missing, wanted with past_key");
    }
    ATTENTION_RETURN_IF_ERROR(ResolvePastOperand("past_key", *inputs_.past_key,
                                                 p_.head_size, &p_.past_key));
    ATTENTION_RETURN_IF_ERROR(ResolvePastOperand(
        "past_value", *inputs_.past_value, p_.value_head_size, &p_.past_value));
    p_.past_length = inputs_.past_key->shape[2];
    if (inputs_.past_value->shape[2] != p_.past_length) {
      return FieldError(
          "past_value.shape",
          Got(inputs_.past_value->shape,
              absl::StrCat("past_key's length ", p_.past_length)));
    }
    return CheckTotalKeys();
  }

  // Bounds lengths so that positions and their sums cannot overflow.
  absl::Status CheckTotalKeys() {
    constexpr int64_t kMaxLength = int64_t{1} << 60;
    if (p_.query_length > kMaxLength) {
      return FieldError("query.shape",
                        Got(inputs_.query.shape, "a length of at most 2^60"));
    }
    if (p_.key_length > kMaxLength) {
      return FieldError("key.shape",
                        Got(inputs_.key.shape, "a length of at most 2^60"));
    }
    if (p_.past_length > kMaxLength) {
      return FieldError("past_key.shape", Got(inputs_.past_key->shape,
                                              "a length of at most 2^60"));
    }
    if (!p_.ragged) {
      p_.longest_query = p_.query_length;
      p_.longest_keys = p_.total_keys();
    }
    return absl::OkStatus();
  }

  absl::Status CheckValidLengths() {
    const absl::Span<const int64_t> lengths = inputs_.valid_lengths;
    if (lengths.empty()) return absl::OkStatus();
    if (inputs_.past_key) {
      return FieldError("valid_lengths", "not with past_key and past_value");
    }
    if (static_cast<int64_t>(lengths.size()) != p_.batch) {
      return FieldError(
          "valid_lengths",
          absl::StrCat("got ", lengths.size(),
                       " numbers, wanted one per batch entry, ", p_.batch));
    }
    for (size_t b = 0; b < lengths.size(); ++b) {
      if (lengths[b] < 0 || lengths[b] > p_.total_keys()) {
        return FieldError(
            absl::StrCat("valid_lengths[", b, "]"),
            GotNumber(lengths[b], absl::StrCat("0 to the number of keys, ",
                                               p_.total_keys())));
      }
    }
    p_.valid_lengths.assign(lengths.begin(), lengths.end());
    return absl::OkStatus();
  }

  // Whether `number` stays finite in the precision of the computation.
  bool IsFinite(double number) const {
    return std::isfinite(p_.double_precision
                             ? number
                             : static_cast<double>(static_cast<float>(number)));
  }

  absl::Status ResolveNumbers() {
    const absl::string_view kFinite =
        p_.double_precision ? "a finite FLOAT64" : "a finite FLOAT32";
    p_.scale = options_.scale.value_or(
        1 / std::sqrt(static_cast<double>(p_.head_size)));
    if (!IsFinite(p_.scale)) {
      return FieldError("options.scale", GotNumber(p_.scale, kFinite));
    }
    p_.softcap = options_.softcap;
    if (!IsFinite(p_.softcap) || p_.softcap < 0) {
      return FieldError(
          "options.softcap",
          GotNumber(p_.softcap, absl::StrCat(kFinite, " of at least 0")));
    }
    p_.causal = options_.causal;
    ATTENTION_RETURN_IF_ERROR(
        ResolveWindow("left", options_.window_left, &p_.window_left));
    ATTENTION_RETURN_IF_ERROR(
        ResolveWindow("right", options_.window_right, &p_.window_right));
    if (options_.chunk_size < 0) {
      return FieldError("options.chunk_size",
                        GotNumber(options_.chunk_size, "at least 0"));
    }
    // One chunk of all positions hides as little as a larger one.
    p_.chunk_size =
        std::min(options_.chunk_size, p_.query_length + p_.total_keys() + 1);
    ATTENTION_RETURN_IF_ERROR(
        CheckPerHead("alibi_slopes", options_.alibi_slopes));
    for (size_t h = 0; h < options_.alibi_slopes.size(); ++h) {
      if (!IsFinite(options_.alibi_slopes[h])) {
        return FieldError(absl::StrCat("options.alibi_slopes[", h, "]"),
                          GotNumber(options_.alibi_slopes[h], kFinite));
      }
    }
    ATTENTION_RETURN_IF_ERROR(CheckPerHead("sinks", options_.sinks));
    for (size_t h = 0; h < options_.sinks.size(); ++h) {
      const double sink = options_.sinks[h];
      if (!IsFinite(sink) && sink != -std::numeric_limits<double>::infinity()) {
        return FieldError(absl::StrCat("options.sinks[", h, "]"),
                          GotNumber(sink, absl::StrCat(kFinite, " or -inf")));
      }
    }
    p_.alibi_slopes = options_.alibi_slopes;
    p_.sinks = options_.sinks;
    const auto is_bfloat16 = [](const ConstTensorView& view) {
      return view.type == DataType::kBFloat16;
    };
    p_.fast_math = options_.math_mode == MathMode::kFast && HasFastMath() &&
                   !p_.double_precision && is_bfloat16(inputs_.query) &&
                   is_bfloat16(inputs_.key) && is_bfloat16(inputs_.value) &&
                   p_.head_size % 2 == 0 && !inputs_.indices;
    return absl::OkStatus();
  }

  absl::Status ResolveWindow(absl::string_view side, int64_t got,
                             int64_t* window) {
    if (got < -1) {
      return FieldError(absl::StrCat("options.window.", side),
                        GotNumber(got, "at least -1"));
    }
    // At most the largest distance of a key and a query, so that sums cannot
    // overflow.
    *window = std::min(got, p_.query_length + p_.total_keys());
    return absl::OkStatus();
  }

  absl::Status CheckPerHead(absl::string_view field,
                            const std::vector<double>& numbers) {
    if (numbers.empty() ||
        static_cast<int64_t>(numbers.size()) == p_.query_heads) {
      return absl::OkStatus();
    }
    return FieldError(
        absl::StrCat("options.", field),
        absl::StrCat("got ", numbers.size(),
                     " numbers, wanted one per query head, ", p_.query_heads));
  }

  const AttentionInputs& inputs_;
  const AttentionOptions& options_;
  const AttentionLimits& limits_;
  Layout layout_ = Layout::kByRank;
  std::shared_ptr<Problem> problem_;
  Problem& p_;
};

}  // namespace

absl::StatusOr<AttentionPlan> PlanAttention(const AttentionInputs& inputs,
                                            const AttentionOptions& options,
                                            const AttentionLimits& limits) {
  return Planner(inputs, options, limits).Plan();
}

}  // namespace attention
