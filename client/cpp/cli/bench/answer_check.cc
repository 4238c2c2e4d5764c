#include "client/cpp/cli/bench/answer_check.h"

#include <google/protobuf/wrappers.pb.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/tensor.h"

namespace attention::cli {
namespace {

constexpr uint64_t kTimingTag = (6 << 3) | 2;

// Walks over the bytes of several slices. Lengths are believed only as far as
// there are bytes left.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices)
      : slices_(slices) {}

  // What is left of the current slice, at most `most` bytes; empty at the end.
  absl::string_view Take(uint64_t most) {
    while (slice_ < slices_.size() && offset_ == slices_[slice_].size()) {
      ++slice_;
      offset_ = 0;
    }
    if (slice_ == slices_.size()) return {};
    const grpc::Slice& slice = slices_[slice_];
    const size_t size = std::min<uint64_t>(most, slice.size() - offset_);
    const auto* begin = reinterpret_cast<const char*>(slice.begin()) + offset_;
    offset_ += size;
    return {begin, size};
  }

  // A base-128 number, its bytes appended to `bytes`; nothing at the end of
  // all slices or if it has more than 10 bytes.
  std::optional<uint64_t> Varint(std::string& bytes) {
    uint64_t number = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const absl::string_view byte = Take(1);
      if (byte.empty()) return std::nullopt;
      bytes.append(byte.data(), 1);
      number |= uint64_t{static_cast<uint8_t>(byte[0]) & 0x7fu} << shift;
      if ((byte[0] & 0x80) == 0) return number;
    }
    return std::nullopt;
  }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t offset_ = 0;
};

// Hands the message's bytes to `use` piece by piece, its timing left out;
// `use` returns false to stop. False if stopped or not a message of fields
// that have a length or are numbers, as all of the answers' are.
template <typename Use>
bool VisitWithoutTiming(const grpc::ByteBuffer& message, Use use) {
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return false;
  SliceCursor cursor(slices);
  std::string head;
  while (true) {
    head.clear();
    const std::optional<uint64_t> tag = cursor.Varint(head);
    if (!tag) return head.empty();
    const std::optional<uint64_t> number = cursor.Varint(head);
    if (!number || ((*tag & 7) != 0 && (*tag & 7) != 2)) return false;
    uint64_t left = (*tag & 7) == 2 ? *number : 0;
    const bool skipped = *tag == kTimingTag;
    if (!skipped && !use(absl::string_view(head))) return false;
    while (left > 0) {
      const absl::string_view piece = cursor.Take(left);
      if (piece.empty() || (!skipped && !use(piece))) return false;
      left -= piece.size();
    }
  }
}

// One row of the output, by the textbook, and how far an answer may be off.
struct ReferenceRow {
  std::vector<double> output;
  std::vector<double> tolerance;
};

// Unit roundoffs of what is computed in, and of the output's type.
double Roundoff(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_FLOAT16:
      return 0x1p-11;
    case v1::DATA_TYPE_BFLOAT16:
      return 0x1p-8;
    case v1::DATA_TYPE_FLOAT64:
      return 0x1p-53;
    default:
      return 0x1p-24;
  }
}

int64_t VisibleKeys(const CallShape& shape, v1::Causal causal, int64_t row) {
  switch (causal) {
    case v1::CAUSAL_TOP_LEFT:
      return std::clamp(row + 1, int64_t{0}, shape.keys);
    case v1::CAUSAL_BOTTOM_RIGHT:
      return std::clamp(row + 1 + shape.keys - shape.queries, int64_t{0},
                        shape.keys);
    default:
      return shape.keys;
  }
}

// Scores of the row's visible keys, and the largest sum of absolute products.
struct Scores {
  std::vector<double> scores;
  double largest = 0;
};

Scores ScoresOf(const CallShape& shape, const Workload& workload,
                int64_t query_row, int64_t first_key, int64_t keys) {
  const InputNumbers& numbers = workload.numbers;
  const double scale = 1 / std::sqrt(static_cast<double>(shape.head_size));
  std::vector<double> query(shape.head_size);
  for (int64_t i = 0; i < shape.head_size; ++i) {
    query[i] = numbers.At(Input::kQuery, query_row * shape.head_size + i);
  }
  Scores result;
  for (int64_t j = 0; j < keys; ++j) {
    double sum = 0;
    double absolute = 0;
    for (int64_t i = 0; i < shape.head_size; ++i) {
      const double product =
          query[i] *
          numbers.At(Input::kKey, (first_key + j) * shape.head_size + i);
      sum += product;
      absolute += std::abs(product);
    }
    result.scores.push_back(scale * sum);
    result.largest = std::max(result.largest, scale * absolute);
  }
  return result;
}

// The bound of docs/numerics.md, simpler and larger. With u the roundoff, a
// score is off by at most e = (D + 4) u times the largest scaled sum of
// absolute products, a weight relatively by e and what exp, subtraction
// (|x - M| is at most twice the largest sum) and merges add; numerator and
// denominator each count once. A block's partial sums have at most 256 terms.
double ToleranceFactor(const CallShape& shape, double largest_sum, double u) {
  const double levels =
      std::ceil(std::log2(1 + static_cast<double>(shape.keys) / 256));
  const double e =
      u * ((static_cast<double>(shape.head_size) + 6) * largest_sum + 2 +
           2 * levels);
  return 2 * std::expm1(e) + u * (256 + 20 + 4 * levels);
}

ReferenceRow ComputeRow(const CallShape& shape, const Workload& workload,
                        int64_t batch, int64_t head, int64_t row) {
  const int64_t kv_head =
      batch * shape.kv_heads + head / (shape.query_heads / shape.kv_heads);
  const int64_t query_row =
      (batch * shape.query_heads + head) * shape.queries + row;
  const int64_t first_key = kv_head * shape.keys;
  const int64_t keys = VisibleKeys(shape, workload.causal, row);
  Scores scores = ScoresOf(shape, workload, query_row, first_key, keys);

  double top = -INFINITY;
  for (const double score : scores.scores) top = std::max(top, score);
  double sum = 0;
  std::vector<double> absolute(shape.value_head_size);
  ReferenceRow result{std::vector<double>(shape.value_head_size), {}};
  for (int64_t j = 0; j < keys; ++j) {
    const double weight = std::exp(scores.scores[j] - top);
    sum += weight;
    for (int64_t i = 0; i < shape.value_head_size; ++i) {
      const double value = workload.numbers.At(
          Input::kValue, (first_key + j) * shape.value_head_size + i);
      result.output[i] += weight * value;
      absolute[i] += weight * std::abs(value);
    }
  }
  const v1::DataType type = workload.numbers.type();
  const double u = type == v1::DATA_TYPE_FLOAT64 ? 0x1p-53 : 0x1p-24;
  const double factor = ToleranceFactor(shape, scores.largest, u);
  for (int64_t i = 0; i < shape.value_head_size; ++i) {
    if (sum > 0) {
      result.output[i] /= sum;
      absolute[i] /= sum;
    }
    // The last part: rounding to the output's type, subnormal FLOAT16 too.
    result.tolerance.push_back(factor * absolute[i] +
                               Roundoff(type) * std::abs(result.output[i]) +
                               (type == v1::DATA_TYPE_FLOAT16 ? 0x1p-25 : 0));
  }
  return result;
}

// One row of an answer against the reference.
absl::Status CheckRow(const CallShape& shape, const Workload& workload,
                      const v1::Tensor& output, int64_t flat_row) {
  const int64_t row = flat_row % shape.queries;
  const int64_t head = flat_row / shape.queries % shape.query_heads;
  const int64_t batch = flat_row / shape.queries / shape.query_heads;
  const ReferenceRow wanted = ComputeRow(shape, workload, batch, head, row);
  const size_t row_bytes =
      shape.value_head_size * ElementSize(output.data_type());
  const auto* begin = reinterpret_cast<const std::byte*>(output.data().data()) +
                      flat_row * row_bytes;
  const std::optional<Tensor> got = Tensor::FromBytes(
      output.data_type(), {begin, begin + row_bytes}, {shape.value_head_size});
  const std::vector<double> numbers = got->ToDoubles();
  for (int64_t i = 0; i < shape.value_head_size; ++i) {
    // Written so that NaN fails.
    if (std::abs(numbers[i] - wanted.output[i]) <= wanted.tolerance[i]) {
      continue;
    }
    return absl::InternalError(absl::StrCat(
        "output[", batch, "][", head, "][", row, "][", i, "]: got ", numbers[i],
        ", wanted ", wanted.output[i], " within ", wanted.tolerance[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckOutput(const CallShape& shape, const Workload& workload,
                         const v1::Tensor& output) {
  const std::vector<int64_t> wanted = {shape.batch, shape.query_heads,
                                       shape.queries, shape.value_head_size};
  const v1::DataType type = workload.numbers.type();
  const int64_t rows = shape.batch * shape.query_heads * shape.queries;
  const bool fits =
      output.data_type() == type &&
      std::equal(output.shape().begin(), output.shape().end(), wanted.begin(),
                 wanted.end()) &&
      output.data().size() == rows * shape.value_head_size * ElementSize(type);
  if (!fits) {
    return absl::InternalError(
        absl::StrCat("output: wrong type, shape or number of bytes (",
                     output.data().size(), ")"));
  }
  constexpr int64_t kChecked = 8;
  for (int64_t i = 0; i < std::min(rows, kChecked); ++i) {
    const int64_t row = rows <= kChecked ? i : i * (rows - 1) / (kChecked - 1);
    absl::Status status = CheckRow(shape, workload, output, row);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

bool AnswerCheck::SameAsFirst(const grpc::ByteBuffer& answer) {
  if (!has_first_) {
    has_first_ = VisitWithoutTiming(answer, [&](absl::string_view piece) {
      first_.append(piece.data(), piece.size());
      return true;
    });
    if (!has_first_) first_.clear();
    return has_first_;
  }
  size_t offset = 0;
  const bool same = VisitWithoutTiming(answer, [&](absl::string_view piece) {
    if (piece.size() > first_.size() - offset) return false;
    const bool equal =
        std::memcmp(piece.data(), first_.data() + offset, piece.size()) == 0;
    offset += piece.size();
    return equal;
  });
  return same && offset == first_.size();
}

absl::Status CheckAnswer(const CallKind& kind, const Workload& workload,
                         const std::string& answer) {
  if (!kind.computes()) {
    // On the wire grpc.health.v1.HealthCheckResponse is an Int32Value.
    google::protobuf::Int32Value status;
    if (status.ParseFromString(answer) && status.value() == 1) {
      return absl::OkStatus();
    }
    return absl::InternalError("health: got not SERVING, wanted SERVING");
  }
  v1::ComputeAttentionResponse response;
  if (!response.ParseFromString(answer)) {
    return absl::InternalError("the answer is no ComputeAttentionResponse");
  }
  return CheckOutput(kind.shape, workload, response.output());
}

}  // namespace attention::cli
