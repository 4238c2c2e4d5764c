#include "attention/internal/answer_rows.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attention/internal/key_chunks.h"
#include "base/buffer_pool.h"
#include "wire/memory_meter.h"
#include "wire/stream_response.h"

namespace attention::internal {
namespace {

absl::Status Malformed(const std::string& what) {
  return absl::InternalError(absl::StrCat("malformed answer: ", what));
}

// The output's shape, and that of log_sum_exp.
std::vector<int64_t> OutputShape(const ComputeRequest& request,
                                 const LayoutAxes& axes) {
  std::vector<int64_t> shape = request.query.shape;
  if (axes.layout == v1::LAYOUT_PACKED) {
    const int64_t kv_heads = request.options.kv_heads();
    const int64_t value_size =
        kv_heads > 0 ? request.value.shape.back() / kv_heads : 0;
    shape.back() = request.options.query_heads() * value_size;
  } else {
    shape.back() = request.value.shape.back();
  }
  return shape;
}

std::vector<int64_t> LogSumExpShape(const ComputeRequest& request,
                                    const LayoutAxes& axes, size_t* axis) {
  const std::vector<int64_t>& q = request.query.shape;
  *axis = 0;
  if (axes.layout == v1::LAYOUT_MATRIX) return {q[0]};
  if (axes.layout == v1::LAYOUT_RAGGED) return {q[0], q[1]};
  *axis = 2;
  if (axes.layout == v1::LAYOUT_BHSD) return {q[0], q[1], q[2]};
  if (axes.layout == v1::LAYOUT_BSHD) return {q[0], q[2], q[1]};
  return {q[0], request.options.query_heads(), q[1]};
}

}  // namespace

AnswerRows::AnswerRows(const ComputeRequest& request, int64_t max_bytes)
    : max_bytes_(max_bytes) {
  const LayoutAxes axes = *AxesOf(request);
  output_.shape = OutputShape(request, axes);
  output_.axis = axes.length_axis;
  output_.lent = request.outputs.output;
  output_.type = request.query.type;
  if (request.options.return_log_sum_exp()) {
    TensorRows& rows = log_sum_exp_.emplace();
    rows.shape = LogSumExpShape(request, axes, &rows.axis);
    rows.lent = request.outputs.log_sum_exp;
  }
}

absl::Status AnswerRows::Add(const std::string& name,
                             const wire::TensorFields& tensor,
                             TensorRows* rows) {
  const auto type = static_cast<v1::DataType>(tensor.data_type);
  std::vector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
  const size_t size = tensor.data.remaining();
  const bool shaped =
      tensor.rank == rows->shape.size() && BytesFit(type, shape, size);
  const int64_t count = shaped ? shape[rows->axis] : 0;
  if (shaped) shape[rows->axis] = rows->shape[rows->axis];
  if (!shaped || shape != rows->shape ||
      count > rows->shape[rows->axis] - rows->filled) {
    return Malformed(absl::StrCat(
        name, " has ", size, " bytes of type ", TypeName(type), " and shape (",
        absl::StrJoin(tensor.shape, ", "), ") after ", rows->filled,
        " rows of (", absl::StrJoin(rows->shape, ", "), ")"));
  }
  if (rows->type == v1::DATA_TYPE_UNSPECIFIED) rows->type = type;
  if (type != rows->type) {
    return Malformed(absl::StrCat(name, " has type ", TypeName(type),
                                  ", wanted ", TypeName(rows->type)));
  }
  if (rows->filled == 0 && rows->elements == nullptr) {
    const std::optional<int64_t> elements = ElementCount(rows->shape);
    if (!elements) return Malformed(absl::StrCat(name, " is too large"));
    rows->bytes = static_cast<size_t>(*elements) * ElementSize(type);
    if (rows->lent.data() == nullptr) {
      // Not a vector: its bytes would be written twice.
      const std::shared_ptr<std::byte[]> memory(new std::byte[rows->bytes]);
      rows->elements = {memory, memory.get()};
    } else if (rows->lent.size() < rows->bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "outputs.", name, ": got ", rows->lent.size(), " bytes, wanted ",
          rows->bytes, " for shape (", absl::StrJoin(rows->shape, ", "),
          ") of ", TypeName(type)));
    } else {
      rows->elements = {std::shared_ptr<void>(), rows->lent.data()};
    }
  }
  if (size > 0) {
    int64_t outer = 1;
    auto inner = static_cast<int64_t>(ElementSize(type));
    for (size_t i = 0; i < shape.size(); ++i) {
      if (i < rows->axis) outer *= shape[i];
      if (i > rows->axis) inner *= shape[i];
    }
    wire::SliceReader data = tensor.data;
    std::byte* to = rows->elements.get() + rows->filled * inner;
    for (int64_t o = 0; o < outer; ++o) {
      data.ReadBytes(to, static_cast<size_t>(count * inner));
      to += rows->shape[rows->axis] * inner;
    }
  }
  rows->filled += count;
  return absl::OkStatus();
}

absl::Status AnswerRows::CheckLimit(int64_t bytes) const {
  if (max_bytes_ < 0 || bytes <= max_bytes_) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("CLIENT: Received message larger than max (", bytes, " vs. ",
                   max_bytes_, ")"));
}

absl::Status AnswerRows::CheckLimit() const {
  const std::optional<int64_t> elements = ElementCount(output_.shape);
  if (!elements) return absl::OkStatus();
  // A message is more than its elements.
  return CheckLimit(
      *elements * static_cast<int64_t>(ElementSize(output_.type)) + 1);
}

absl::Status AnswerRows::Add(const grpc::ByteBuffer& message) {
  bytes_ += static_cast<int64_t>(message.Length());
  if (absl::Status limit = CheckLimit(bytes_); !limit.ok()) return limit;
  std::vector<grpc::Slice> slices;
  static_cast<void>(message.Dump(&slices));
  wire::MemoryMeter meter;
  absl::StatusOr<wire::StreamResponseFields> fields =
      wire::DecodeStreamResponse(slices, *BufferPool::Create(0), meter);
  if (!fields.ok()) return Malformed(std::string(fields.status().message()));
  if (timing_) return Malformed("a message after the last");
  if (fields->output.present) {
    absl::Status status = Add("output", fields->output, &output_);
    if (!status.ok()) return status;
  }
  if (fields->log_sum_exp.present) {
    if (!log_sum_exp_) return Malformed("log_sum_exp was not asked for");
    absl::Status status =
        Add("log_sum_exp", fields->log_sum_exp, &*log_sum_exp_);
    if (!status.ok()) return status;
  }
  timing_ = std::move(fields->timing);
  return absl::OkStatus();
}

absl::StatusOr<Tensor> AnswerRows::Take(const std::string& name,
                                        TensorRows rows) {
  const int64_t wanted = rows.shape[rows.axis];
  if (rows.elements == nullptr || rows.filled != wanted) {
    return Malformed(
        absl::StrCat(name, " has ", rows.filled, " rows of ", wanted));
  }
  return Tensor::FromShared(rows.type, std::move(rows.elements), rows.bytes,
                            std::move(rows.shape))
      .value();
}

absl::StatusOr<ComputeResult> AnswerRows::Finish() && {
  if (!timing_) return Malformed("the last message is missing");
  ComputeResult result;
  absl::StatusOr<Tensor> output = Take("output", std::move(output_));
  if (!output.ok()) return output.status();
  result.output = *std::move(output);
  if (log_sum_exp_) {
    absl::StatusOr<Tensor> lse = Take("log_sum_exp", *std::move(log_sum_exp_));
    if (!lse.ok()) return lse.status();
    result.log_sum_exp = *std::move(lse);
  }
  result.timing = *std::move(timing_);
  return result;
}

}  // namespace attention::internal
