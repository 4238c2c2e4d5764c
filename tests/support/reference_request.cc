#include "tests/support/reference_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double Element(const ConstTensorView& tensor, const Shape& index) {
  const Shape strides =
      tensor.strides.empty() ? RowMajorStrides(tensor.shape) : tensor.strides;
  const int64_t place = std::inner_product(index.begin(), index.end(),
                                           strides.begin(), int64_t{0});
  return Decode(tensor.type, static_cast<const char*>(tensor.data) +
                                 place * SizeOf(tensor.type));
}

Layout ResolveLayout(const AttentionInputs& inputs,
                     const AttentionOptions& options) {
  if (options.layout != Layout::kByRank) return options.layout;
  if (inputs.query.shape.size() == 2) return Layout::kMatrix;
  if (inputs.query.shape.size() == 3) return Layout::kPacked;
  return Layout::kBHSD;
}

// Where a query, key, value or output of head size `size` holds row i, column d
// of head h of sequence b, which begins at row `start` if ragged.
Shape Place(Layout layout, int64_t start, int64_t b, int64_t h, int64_t i,
            int64_t d, int64_t size) {
  switch (layout) {
    case Layout::kMatrix:
      return {i, d};
    case Layout::kPacked:
      return {b, i, h * size + d};
    case Layout::kBSHD:
      return {b, i, h, d};
    case Layout::kRagged:
      return {start + i, h, d};
    default:
      return {b, h, i, d};
  }
}

}  // namespace

ReferenceRequest::ReferenceRequest(const AttentionInputs& inputs,
                                   const AttentionOptions& options)
    : inputs_(inputs),
      options_(options),
      layout_(ResolveLayout(inputs, options)) {
  const Shape& q = inputs.query.shape;
  const Shape& k = inputs.key.shape;
  size_ = q.back();
  value_size_ = inputs.value.shape.back();
  switch (layout_) {
    case Layout::kMatrix:
      break;
    case Layout::kPacked:
      batch_ = q[0];
      query_heads_ = options.query_heads;
      kv_heads_ = options.kv_heads;
      size_ /= query_heads_;
      value_size_ /= kv_heads_;
      break;
    case Layout::kBSHD:
      batch_ = q[0];
      query_heads_ = q[2];
      kv_heads_ = k[2];
      break;
    case Layout::kRagged:
      batch_ = static_cast<int64_t>(inputs.query_starts.size()) - 1;
      query_heads_ = q[1];
      kv_heads_ = k[1];
      break;
    default:
      batch_ = q[0];
      query_heads_ = q[1];
      kv_heads_ = k[1];
      break;
  }
  if (inputs.past_key) past_ = inputs.past_key->shape[2];
  scale_ = options.scale.value_or(1 / std::sqrt(static_cast<double>(size_)));
  if (inputs.query.type == DataType::kFloat64 ||
      inputs.value.type == DataType::kFloat64 ||
      options.softmax_precision == DataType::kFloat64) {
    precision_ = DataType::kFloat64;
  }
  const auto is_bfloat = [](const ConstTensorView& tensor) {
    return tensor.type == DataType::kBFloat16;
  };
  fast_bfloat_ = options.math_mode == MathMode::kFast &&
                 precision_ == DataType::kFloat32 && is_bfloat(inputs.query) &&
                 is_bfloat(inputs.key) && is_bfloat(inputs.value);
}

int64_t ReferenceRequest::QueryLength(int64_t b) const {
  const Shape& q = inputs_.query.shape;
  switch (layout_) {
    case Layout::kMatrix:
      return q[0];
    case Layout::kRagged:
      return inputs_.query_starts[b + 1] - inputs_.query_starts[b];
    case Layout::kPacked:
    case Layout::kBSHD:
      return q[1];
    default:
      return q[2];
  }
}

int64_t ReferenceRequest::NewLength(int64_t b) const {
  const Shape& k = inputs_.key.shape;
  switch (layout_) {
    case Layout::kMatrix:
      return k[0];
    case Layout::kRagged:
      return inputs_.key_starts[b + 1] - inputs_.key_starts[b];
    case Layout::kPacked:
    case Layout::kBSHD:
      return k[1];
    default:
      return k[2];
  }
}

int64_t ReferenceRequest::Offset(int64_t b) const {
  if (!inputs_.valid_lengths.empty()) {
    return inputs_.valid_lengths[b] - QueryLength(b);
  }
  if (options_.causal == Causal::kBottomRight) {
    return TotalKeys(b) - QueryLength(b);
  }
  return past_;
}

Matrix ReferenceRequest::ReadQuery(int64_t b, int64_t h) const {
  Matrix result{QueryLength(b), size_, {}};
  for (int64_t i = 0; i < result.rows; ++i) {
    for (int64_t d = 0; d < size_; ++d) {
      result.data.push_back(Element(
          inputs_.query, Place(layout_, QueryStart(b), b, h, i, d, size_)));
    }
  }
  return result;
}

Matrix ReferenceRequest::ReadKeys(int64_t b, int64_t kv_head) const {
  return ReadWithPast(inputs_.key, inputs_.past_key, size_, b, kv_head);
}

Matrix ReferenceRequest::ReadValues(int64_t b, int64_t kv_head) const {
  return ReadWithPast(inputs_.value, inputs_.past_value, value_size_, b,
                      kv_head);
}

Matrix ReferenceRequest::ReadWithPast(
    const ConstTensorView& tensor, const std::optional<ConstTensorView>& past,
    int64_t size, int64_t b, int64_t kv_head) const {
  Matrix result{TotalKeys(b), size, {}};
  for (int64_t j = 0; j < result.rows; ++j) {
    for (int64_t d = 0; d < size; ++d) {
      result.data.push_back(
          j < past_ ? Element(*past, {b, kv_head, j, d})
                    : Element(tensor, Place(layout_, KeyStart(b), b, kv_head,
                                            j - past_, d, size)));
    }
  }
  return result;
}

bool ReferenceRequest::Hidden(int64_t b, int64_t i, int64_t j) const {
  const int64_t position = i + Offset(b);
  if (!inputs_.valid_lengths.empty() && j >= inputs_.valid_lengths[b]) {
    return true;
  }
  if (options_.causal != Causal::kNone && j > position) return true;
  if (options_.window_left >= 0 && position - j > options_.window_left) {
    return true;
  }
  if (options_.window_right >= 0 && j - position > options_.window_right) {
    return true;
  }
  if (options_.chunk_size == 0) return false;
  const auto chunk_of = [&](int64_t at) {
    return std::floor(static_cast<double>(at) /
                      static_cast<double>(options_.chunk_size));
  };
  return chunk_of(position) != chunk_of(j);
}

bool ReferenceRequest::Selected(int64_t b, int64_t h, int64_t i,
                                int64_t j) const {
  if (!inputs_.indices) return true;
  const ConstTensorView& indices = *inputs_.indices;
  const size_t rank = indices.shape.size();
  for (int64_t n = 0; n < indices.shape.back(); ++n) {
    Shape place;
    if (ragged()) {
      place = rank == 2 ? Shape{QueryStart(b) + i, n}
                        : Shape{QueryStart(b) + i, h, n};
    } else if (rank == 2) {
      place = {i, n};
    } else {
      place = rank == 3 ? Shape{b, i, n} : Shape{b, h, i, n};
    }
    if (Element(indices, place) == static_cast<double>(j)) return true;
  }
  return false;
}

double ReferenceRequest::Sink(int64_t b, int64_t h, int64_t i) const {
  if (!inputs_.sinks) {
    return options_.sinks.empty() ? -kInfinity : options_.sinks[h];
  }
  if (ragged()) return Element(*inputs_.sinks, {QueryStart(b) + i, h});
  if (inputs_.sinks->shape.size() == 1) return Element(*inputs_.sinks, {i});
  return Element(*inputs_.sinks, {b, h, i});
}

double ReferenceRequest::MaskValue(int64_t b, int64_t h, int64_t i,
                                   int64_t j) const {
  if (!inputs_.mask) return 0;
  const ConstTensorView& mask = *inputs_.mask;
  if (j >= mask.shape.back()) return -kInfinity;
  const Shape full = {b, h, i, j};
  Shape index(full.end() - mask.shape.size(), full.end());
  for (size_t axis = 0; axis < index.size(); ++axis) {
    if (mask.shape[axis] == 1) index[axis] = 0;
  }
  const double value = Element(mask, index);
  if (mask.type == DataType::kBool) return value != 0 ? 0 : -kInfinity;
  if (std::isinf(value)) return value;
  const double largest = std::ldexp(2 - 2 * UnitRoundoff(precision_),
                                    FormatOf(precision_).max_exponent);
  return std::clamp(value, -largest, largest);
}

Shape ReferenceRequest::OutputPlace(int64_t b, int64_t h, int64_t i,
                                    int64_t d) const {
  return Place(layout_, QueryStart(b), b, h, i, d, value_size_);
}

}  // namespace attention::test
