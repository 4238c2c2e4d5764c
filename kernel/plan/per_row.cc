// The tensors that have something for each row of the output: indices and
// sinks.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernel/attention.h"
#include "kernel/cpu/convert.h"
#include "kernel/plan/checks.h"
#include "kernel/plan/problem.h"

namespace attention {
namespace {

// Calls check(row, sequence) for each row of `operand`, [B, heads, S] or, with
// the heads inside, [sum of S, heads], in row-major order, until it fails.
// `row` points to the row's first element.
template <typename Check>
absl::Status ForEachRow(const Operand& operand, int64_t heads,
                        const Problem& problem, const Check& check) {
  const bool heads_are_inner = problem.ragged;
  for (int64_t b = 0; b < problem.batch; ++b) {
    const Sequence s = problem.GetSequence(b);
    const int64_t outer = heads_are_inner ? s.query_length : heads;
    const int64_t inner = heads_are_inner ? heads : s.query_length;
    for (int64_t x = 0; x < outer; ++x) {
      for (int64_t y = 0; y < inner; ++y) {
        const int64_t h = heads_are_inner ? y : x;
        const int64_t i = heads_are_inner ? x : y;
        ATTENTION_RETURN_IF_ERROR(
            check(operand.Row(s.batch, h, s.query_begin + i), s));
      }
    }
  }
  return absl::OkStatus();
}

// That the numbers of a list are -1 or keys of a sequence of `keys`. `first` is
// the place of the first one among the tensor's elements.
template <typename Number>
absl::Status CheckList(const void* list, int64_t count, int64_t keys,
                       int64_t first) {
  const auto* const numbers = static_cast<const Number*>(list);
  // Compilers vectorize this loop.
  Number least = 0, most = -1;
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, numbers[i]);
    most = std::max(most, numbers[i]);
  }
  if (least >= -1 && most < keys) return absl::OkStatus();
  for (int64_t i = 0; i < count; ++i) {
    if (numbers[i] >= -1 && numbers[i] < keys) continue;
    return FieldError("indices.data",
                      absl::StrCat("got ", numbers[i], " at element ",
                                   first + i, ", wanted -1, for none, to ",
                                   keys - 1, ", the sequence's last key"));
  }
  return absl::OkStatus();
}

absl::Status CheckIndices(const IndexOperand& operand, const Problem& problem) {
  if (operand.data == nullptr || operand.count == 0) return absl::OkStatus();
  int64_t first = 0;
  return ForEachRow(
      operand, operand.per_head ? problem.query_heads : 1, problem,
      [&](const void* row, const Sequence& s) {
        absl::Status status =
            operand.type == DataType::kInt32
                ? CheckList<int32_t>(row, operand.count, s.key_length, first)
                : CheckList<int64_t>(row, operand.count, s.key_length, first);
        first += operand.count;
        return status;
      });
}

absl::Status CheckSinks(const Operand& operand, const Problem& problem) {
  if (operand.data == nullptr) return absl::OkStatus();
  int64_t element = 0;
  return ForEachRow(
      operand, problem.query_heads, problem,
      [&](const void* row, const Sequence& /*s*/) -> absl::Status {
        const double sink = LoadElement<double>(row, operand.type, 0);
        const bool good =
            sink == -std::numeric_limits<double>::infinity() ||
            std::isfinite(problem.double_precision
                              ? sink
                              : static_cast<double>(static_cast<float>(sink)));
        if (!good) {
          return FieldError(
              "sinks.data",
              absl::StrCat("got ", sink, " at element ", element, ", wanted ",
                           problem.double_precision ? "a finite FLOAT64"
                                                    : "a finite FLOAT32",
                           " or -inf"));
        }
        ++element;
        return absl::OkStatus();
      });
}

}  // namespace

absl::StatusOr<IndexOperand> PlanIndices(const ConstTensorView& indices,
                                         const Problem& problem) {
  if (indices.type != DataType::kInt32 && indices.type != DataType::kInt64) {
    return FieldError(
        "indices.data_type",
        absl::StrCat("got ", Name(indices.type), ", wanted INT32 or INT64"));
  }
  ATTENTION_RETURN_IF_ERROR(CheckView("indices", indices));
  const Shape& shape = indices.shape;
  const Shape strides = Strides(indices);
  const int64_t b = problem.batch, h = problem.query_heads,
                s = problem.query_length;
  IndexOperand operand;
  operand.data = indices.data;
  operand.type = indices.type;
  operand.count = shape.empty() ? 0 : shape.back();
  const int64_t k = operand.count;
  if (shape == Shape{s, k} && (problem.ragged || b == 1)) {
    operand.row_stride = strides[0];
  } else if (problem.ragged && shape == Shape{s, h, k}) {
    operand.per_head = true;
    operand.row_stride = strides[0];
    operand.head_stride = strides[1];
  } else if (!problem.ragged && shape == Shape{b, s, k}) {
    operand.batch_stride = strides[0];
    operand.row_stride = strides[1];
  } else if (!problem.ragged && shape == Shape{b, h, s, k}) {
    operand.per_head = true;
    operand.batch_stride = strides[0];
    operand.head_stride = strides[1];
    operand.row_stride = strides[2];
  } else {
    const std::string wanted =
        problem.ragged
            ? absl::StrCat("(", s, ", k), or (", s, ", ", h, ", k) per head")
            : absl::StrCat("(", b, ", ", s, ", k), or (", b, ", ", h, ", ", s,
                           ", k) per head");
    return FieldError("indices.shape", Got(shape, wanted));
  }
  // Empty lists lie nowhere, and there is nothing between them.
  if (k == 0) {
    operand.batch_stride = operand.head_stride = operand.row_stride = 0;
  }
  ATTENTION_RETURN_IF_ERROR(CheckIndices(operand, problem));
  return operand;
}

absl::StatusOr<Operand> PlanRowSinks(const ConstTensorView& sinks,
                                     const Problem& problem) {
  ATTENTION_RETURN_IF_ERROR(CheckFloat("sinks", sinks.type));
  ATTENTION_RETURN_IF_ERROR(CheckView("sinks", sinks));
  const Shape strides = Strides(sinks);
  const int64_t b = problem.batch, h = problem.query_heads,
                s = problem.query_length;
  Operand operand;
  operand.data = sinks.data;
  operand.type = sinks.type;
  if (problem.ragged && sinks.shape == Shape{s, h}) {
    operand.row_stride = strides[0];
    operand.head_stride = strides[1];
  } else if (!problem.ragged && b == 1 && h == 1 && sinks.shape == Shape{s}) {
    operand.row_stride = strides[0];
  } else if (!problem.ragged && sinks.shape == Shape{b, h, s}) {
    operand.batch_stride = strides[0];
    operand.head_stride = strides[1];
    operand.row_stride = strides[2];
  } else {
    return FieldError(
        "sinks.shape",
        Got(sinks.shape,
            ToString(problem.ragged ? Shape{s, h} : Shape{b, h, s})));
  }
  ATTENTION_RETURN_IF_ERROR(CheckSinks(operand, problem));
  return operand;
}

}  // namespace attention
