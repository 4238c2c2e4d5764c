#include "tests/support/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Rows of one head.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> data;

  const double* operator[](int64_t row) const {
    return data.data() + row * columns;
  }
};

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

// What one key contributes to one row's softmax.
struct Logit {
  bool masked = false;
  double raw = 0;
  double capped = 0;
  double biased = 0;
  // Bounds on the errors of the three, as multiples of the unit roundoff.
  double raw_error = 0;
  double capped_error = 0;
  double biased_error = 0;
};

// A row's softmax.
struct Softmax {
  std::vector<double> weights;
  double sink_weight = 0;
  double log_sum_exp = -kInfinity;
  // Bounds on the relative error of each exponential before normalization.
  std::vector<double> exp_errors;
  double sink_exp_error = 0;
  // Bounds on the errors of the rest.
  double sum_error = 0;  // relative
  double log_sum_exp_error = 0;
};

// One request, its geometry worked out.
class Request {
 public:
  Request(const AttentionInputs& inputs, const AttentionOptions& options);

  ReferenceResult Compute() const;

 private:
  // Keys a block of the kernel, and levels of the tree that merges them.
  static constexpr int64_t kBlock = 256;
  static double MergeLevels(int64_t keys) {
    return std::ceil(std::log2(
        std::max<double>(1, std::ceil(static_cast<double>(keys) / kBlock))));
  }

  int64_t QueryStart(int64_t b) const {
    return ragged() ? inputs_.query_starts[b] : 0;
  }
  int64_t KeyStart(int64_t b) const {
    return ragged() ? inputs_.key_starts[b] : 0;
  }
  bool ragged() const { return layout_ == Layout::kRagged; }
  int64_t QueryLength(int64_t b) const;
  int64_t NewLength(int64_t b) const;
  int64_t TotalKeys(int64_t b) const { return past_ + NewLength(b); }
  int64_t Offset(int64_t b) const;

  Matrix ReadQuery(int64_t b, int64_t h) const;
  Matrix ReadWithPast(const ConstTensorView& tensor,
                      const std::optional<ConstTensorView>& past, int64_t size,
                      int64_t b, int64_t kv_head) const;

  bool Hidden(int64_t b, int64_t i, int64_t j) const;
  double MaskValue(int64_t b, int64_t h, int64_t i, int64_t j) const;
  Logit ComputeLogit(const Matrix& query, const Matrix& keys, int64_t b,
                     int64_t h, int64_t i, int64_t j) const;
  Softmax ComputeSoftmax(const std::vector<Logit>& row, int64_t h) const;
  void WriteOutput(const std::vector<Logit>& row, const Softmax& softmax,
                   const Matrix& values, int64_t b, int64_t h, int64_t i,
                   Expected* output) const;
  void WriteLogSumExp(const Softmax& softmax, int64_t b, int64_t h, int64_t i,
                      Expected* expected) const;
  void WriteScores(const std::vector<Logit>& row, const Softmax& softmax,
                   int64_t b, int64_t h, int64_t i, Expected* expected) const;
  Expected Present(const ConstTensorView& tensor,
                   const std::optional<ConstTensorView>& past,
                   int64_t size) const;
  Expected OutputShape() const;
  Expected LogSumExpShape() const;

  const AttentionInputs& inputs_;
  const AttentionOptions& options_;
  Layout layout_;
  int64_t batch_ = 1;
  int64_t query_heads_ = 1;
  int64_t kv_heads_ = 1;
  int64_t past_ = 0;
  int64_t size_ = 0;        // D
  int64_t value_size_ = 0;  // Dv
  double scale_ = 1;
  DataType precision_ = DataType::kFloat32;
  double unit_;     // the precision's unit roundoff
  double tiny_;     // its smallest normal number
  double largest_;  // and its largest number
};

Request::Request(const AttentionInputs& inputs, const AttentionOptions& options)
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
  // Against a computation in double, the reference errs as much as the kernel.
  unit_ =
      UnitRoundoff(precision_) * (precision_ == DataType::kFloat64 ? 2.0 : 1.0);
  const FloatFormat format = FormatOf(precision_);
  tiny_ = std::ldexp(1.0, format.min_exponent);
  largest_ =
      std::ldexp(2.0 - 2 * UnitRoundoff(precision_), format.max_exponent);
}

int64_t Request::QueryLength(int64_t b) const {
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

int64_t Request::NewLength(int64_t b) const {
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

int64_t Request::Offset(int64_t b) const {
  if (!inputs_.valid_lengths.empty()) {
    return inputs_.valid_lengths[b] - QueryLength(b);
  }
  if (options_.causal == Causal::kBottomRight) {
    return TotalKeys(b) - QueryLength(b);
  }
  return past_;
}

Matrix Request::ReadQuery(int64_t b, int64_t h) const {
  Matrix result{QueryLength(b), size_, {}};
  for (int64_t i = 0; i < result.rows; ++i) {
    for (int64_t d = 0; d < size_; ++d) {
      result.data.push_back(Element(
          inputs_.query, Place(layout_, QueryStart(b), b, h, i, d, size_)));
    }
  }
  return result;
}

Matrix Request::ReadWithPast(const ConstTensorView& tensor,
                             const std::optional<ConstTensorView>& past,
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

// Whether causal mask, window or valid length hide key j from query i.
bool Request::Hidden(int64_t b, int64_t i, int64_t j) const {
  const int64_t position = i + Offset(b);
  if (!inputs_.valid_lengths.empty() && j >= inputs_.valid_lengths[b]) {
    return true;
  }
  if (options_.causal != Causal::kNone && j > position) return true;
  if (options_.window_left >= 0 && position - j > options_.window_left) {
    return true;
  }
  return options_.window_right >= 0 && j - position > options_.window_right;
}

// What the mask tensor adds: 0 or -infinity if BOOL; finite numbers stay so in
// the precision.
double Request::MaskValue(int64_t b, int64_t h, int64_t i, int64_t j) const {
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
  return std::clamp(value, -largest_, largest_);
}

// Errors, in units of the roundoff u and to first order in it. The products are
// summed by fused multiply-adds in order, so each partial sum is rounded once;
// scale and product with it are rounded too. x -> softcap * tanh(x / softcap)
// multiplies an error by its derivative and adds the roundings of quotient,
// tanh (four) and product. Bias terms are rounded to the precision, once more
// each for the product of ALiBi, the sums, and log2(e) if exp2 is used; so are
// the scores for log2(e).
Logit Request::ComputeLogit(const Matrix& query, const Matrix& keys, int64_t b,
                            int64_t h, int64_t i, int64_t j) const {
  Logit logit;
  double dot = 0;
  double partial_sums = 0;
  for (int64_t d = 0; d < size_; ++d) {
    dot = std::fma(query[i][d], keys[j][d], dot);
    partial_sums += std::fabs(dot);
  }
  logit.raw = scale_ * dot;
  logit.raw_error = std::fabs(scale_) * partial_sums + 2 * std::fabs(logit.raw);

  logit.capped = logit.raw;
  logit.capped_error = logit.raw_error;
  if (options_.softcap > 0) {
    const double tanh = std::tanh(logit.raw / options_.softcap);
    logit.capped = options_.softcap * tanh;
    // An infinite score is capped exactly.
    const double carried =
        std::isinf(logit.raw) ? 0 : logit.raw_error * (1 - tanh * tanh);
    logit.capped_error = carried + 6 * std::fabs(logit.capped);
  }

  const double mask = MaskValue(b, h, i, j);
  if (Hidden(b, i, j) || mask == -kInfinity) {
    logit.masked = true;
    logit.biased = -kInfinity;
    return logit;
  }
  double alibi = 0;
  if (!options_.alibi_slopes.empty()) {
    const int64_t distance = std::llabs(i + Offset(b) - j);
    alibi = -options_.alibi_slopes[h] * static_cast<double>(distance);
  }
  logit.biased = logit.capped + (mask + alibi);
  logit.biased_error = logit.capped_error + 3 * std::fabs(logit.capped) +
                       4 * (std::fabs(mask) + std::fabs(alibi));
  return logit;
}

// Errors: that of the logit carries over to the exponential, whose argument is
// the distance to a running maximum, rounded, of the block and then, through
// the merges, of ever more blocks: together the distance to the largest. Each
// exp2 (three) and the product with it (one) are rounded. The sum is taken in
// 16 lanes. tiny: an exponential that is flushed to zero.
Softmax Request::ComputeSoftmax(const std::vector<Logit>& row,
                                int64_t h) const {
  Softmax softmax;
  softmax.weights.assign(row.size(), 0);
  softmax.exp_errors.assign(row.size(), 0);
  const double sink = options_.sinks.empty() ? -kInfinity : options_.sinks[h];
  const bool all_masked = std::all_of(
      row.begin(), row.end(), [](const Logit& logit) { return logit.masked; });
  if (all_masked) {
    softmax.log_sum_exp = sink;
    softmax.log_sum_exp_error = unit_ * std::fabs(sink);
    return softmax;
  }

  double largest = sink;
  for (const Logit& logit : row) {
    if (logit.masked) continue;
    if (std::isnan(logit.biased)) largest = kNan;
    if (logit.biased > largest) largest = logit.biased;
  }
  const double levels = MergeLevels(static_cast<int64_t>(row.size()));
  const auto relative_error = [&](double logit, double logit_error) {
    const double rounding =
        logit_error + 2 * std::fabs(logit - largest) + 4 * (1 + levels);
    return std::expm1(std::min(rounding * unit_, 100.0));
  };
  double sum = 0;
  for (size_t j = 0; j < row.size(); ++j) {
    if (row[j].masked) continue;
    softmax.weights[j] = std::exp(row[j].biased - largest);
    softmax.exp_errors[j] = relative_error(row[j].biased, row[j].biased_error);
    sum += softmax.weights[j];
  }
  if (sink != -kInfinity) {
    softmax.sink_weight = std::exp(sink - largest);
    softmax.sink_exp_error = relative_error(sink, 3 * std::fabs(sink));
    sum += softmax.sink_weight;
  }
  softmax.sink_weight /= sum;
  for (double& weight : softmax.weights) weight /= sum;
  softmax.log_sum_exp = largest + std::log(sum);

  const double sum_rounding =
      std::min<double>(static_cast<double>(row.size()) / 16, kBlock / 16) + 6 +
      2 * levels;
  softmax.sum_error = sum_rounding * unit_;
  for (size_t j = 0; j < row.size(); ++j) {
    if (row[j].masked) continue;
    softmax.sum_error += softmax.weights[j] * softmax.exp_errors[j] + 2 * tiny_;
  }
  softmax.sum_error += softmax.sink_weight * softmax.sink_exp_error;
  softmax.log_sum_exp_error =
      softmax.sum_error +
      4 * unit_ * (std::fabs(largest) + std::fabs(std::log(sum)));
  return softmax;
}

// Errors: a relative error e of the exponential of key j moves the output by
// p e (v - out), as it also counts in the denominator. Sums over the keys of a
// block are chains of fused multiply-adds, each partial sum rounded once;
// merges round each block's sum twice a level; then comes the division. The
// grid is that of subnormal numbers, to which each of these may round.
void Request::WriteOutput(const std::vector<Logit>& row, const Softmax& softmax,
                          const Matrix& values, int64_t b, int64_t h, int64_t i,
                          Expected* output) const {
  const double levels = MergeLevels(static_cast<int64_t>(row.size()));
  const double sum_rounding =
      std::min<double>(static_cast<double>(row.size()) / 16, kBlock / 16) + 6 +
      2 * levels;
  const double grid =
      tiny_ * unit_ * (static_cast<double>(row.size()) + 2 * levels + 4);
  for (int64_t d = 0; d < value_size_; ++d) {
    double sum = 0;
    double partial_sums = 0;
    double block_sum = 0;
    double block_sums = 0;
    for (size_t j = 0; j < row.size(); ++j) {
      if (j % kBlock == 0) {
        block_sums += std::fabs(block_sum);
        block_sum = 0;
      }
      if (row[j].masked) continue;
      sum = std::fma(softmax.weights[j], values[j][d], sum);
      block_sum = std::fma(softmax.weights[j], values[j][d], block_sum);
      partial_sums += std::fabs(block_sum);
    }
    block_sums += std::fabs(block_sum);

    double error = unit_ * (partial_sums + 2 * levels * block_sums +
                            (sum_rounding + 2) * std::fabs(sum));
    for (size_t j = 0; j < row.size(); ++j) {
      if (row[j].masked) continue;
      error += softmax.weights[j] * softmax.exp_errors[j] *
                   std::fabs(values[j][d] - sum) +
               2 * tiny_ * std::fabs(values[j][d]);
    }
    error += softmax.sink_weight * softmax.sink_exp_error * std::fabs(sum);

    const Shape place = Place(layout_, QueryStart(b), b, h, i, d, value_size_);
    const Shape strides = RowMajorStrides(output->shape);
    const int64_t index = std::inner_product(place.begin(), place.end(),
                                             strides.begin(), int64_t{0});
    output->values[index] = sum;
    output->errors[index] = std::isfinite(sum) ? error + grid : 0;
  }
}

void Request::WriteLogSumExp(const Softmax& softmax, int64_t b, int64_t h,
                             int64_t i, Expected* expected) const {
  int64_t index = (b * query_heads_ + h) * QueryLength(b) + i;
  if (ragged()) index = (QueryStart(b) + i) * query_heads_ + h;
  expected->values[index] = softmax.log_sum_exp;
  expected->errors[index] =
      std::isfinite(softmax.log_sum_exp) ? softmax.log_sum_exp_error : 0;
}

void Request::WriteScores(const std::vector<Logit>& row, const Softmax& softmax,
                          int64_t b, int64_t h, int64_t i,
                          Expected* expected) const {
  // Partial sums may be subnormal and are then rounded to an absolute grid.
  const double grid = tiny_ * unit_ * static_cast<double>(size_ + 4) *
                      std::max(1.0, std::fabs(scale_));
  for (size_t j = 0; j < row.size(); ++j) {
    double value = 0;
    double error = 0;
    switch (options_.return_scores) {
      case Scores::kNone:
        return;
      case Scores::kRaw:
        value = row[j].raw;
        error = row[j].raw_error * unit_ + grid;
        break;
      case Scores::kCapped:
        value = row[j].capped;
        error = row[j].capped_error * unit_ + grid;
        break;
      case Scores::kBiased:
        value = row[j].biased;
        error = row[j].biased_error * unit_ + grid;
        break;
      case Scores::kWeights:
        value = softmax.weights[j];
        error =
            value * (softmax.exp_errors[j] + softmax.sum_error + 2 * unit_) +
            2 * tiny_;
        if (row[j].masked) error = 0;
        break;
    }
    const int64_t index =
        ((b * query_heads_ + h) * QueryLength(b) + i) * TotalKeys(b) + j;
    expected->values[index] = value;
    expected->errors[index] = std::isfinite(value) ? error : 0;
  }
}

Expected Zeros(DataType type, Shape shape) {
  const int64_t count = NumElements(shape).value();
  return {type, std::move(shape), std::vector<double>(count),
          std::vector<double>(count)};
}

Expected Request::Present(const ConstTensorView& tensor,
                          const std::optional<ConstTensorView>& past,
                          int64_t size) const {
  const int64_t keys = batch_ == 0 ? past_ + NewLength(0) : TotalKeys(0);
  Expected result = Zeros(tensor.type, {batch_, kv_heads_, keys, size});
  auto to = result.values.begin();
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const Matrix rows = ReadWithPast(tensor, past, size, b, h);
      to = std::copy(rows.data.begin(), rows.data.end(), to);
    }
  }
  return result;
}

Expected Request::OutputShape() const {
  Shape shape = inputs_.query.shape;
  shape.back() = value_size_;
  if (layout_ == Layout::kPacked) shape.back() *= query_heads_;
  return Zeros(inputs_.query.type, shape);
}

Expected Request::LogSumExpShape() const {
  const Shape& q = inputs_.query.shape;
  Shape shape = {batch_, query_heads_, 0};
  if (layout_ == Layout::kMatrix) {
    shape = {q[0]};
  } else if (ragged()) {
    shape = {q[0], query_heads_};
  } else {
    shape[2] = QueryLength(0);
  }
  return Zeros(precision_, shape);
}

ReferenceResult Request::Compute() const {
  ReferenceResult result;
  result.output = OutputShape();
  if (options_.return_log_sum_exp) result.log_sum_exp = LogSumExpShape();
  if (options_.return_scores != Scores::kNone) {
    result.scores =
        Zeros(inputs_.query.type,
              {batch_, query_heads_, QueryLength(0), past_ + NewLength(0)});
  }
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t h = 0; h < query_heads_; ++h) {
      const int64_t kv_head = h / (query_heads_ / kv_heads_);
      const Matrix query = ReadQuery(b, h);
      const Matrix keys =
          ReadWithPast(inputs_.key, inputs_.past_key, size_, b, kv_head);
      const Matrix values = ReadWithPast(inputs_.value, inputs_.past_value,
                                         value_size_, b, kv_head);
      for (int64_t i = 0; i < query.rows; ++i) {
        std::vector<Logit> row;
        for (int64_t j = 0; j < keys.rows; ++j) {
          row.push_back(ComputeLogit(query, keys, b, h, i, j));
        }
        const Softmax softmax = ComputeSoftmax(row, h);
        WriteOutput(row, softmax, values, b, h, i, &result.output);
        if (result.log_sum_exp) {
          WriteLogSumExp(softmax, b, h, i, &*result.log_sum_exp);
        }
        if (result.scores) {
          WriteScores(row, softmax, b, h, i, &*result.scores);
        }
      }
    }
  }
  if (options_.return_present) {
    result.present_key = Present(inputs_.key, inputs_.past_key, size_);
    result.present_value =
        Present(inputs_.value, inputs_.past_value, value_size_);
  }
  return result;
}

}  // namespace

ReferenceResult ComputeReference(const AttentionInputs& inputs,
                                 const AttentionOptions& options) {
  return Request(inputs, options).Compute();
}

bool IsExpected(double actual, const Expected& expected, int64_t index) {
  const DataType type = expected.type;
  double wanted = expected.values[index];
  if (std::isnan(wanted)) return std::isnan(actual);
  if (std::isinf(wanted)) return actual == wanted;
  if (std::isnan(actual)) return false;
  // Infinity stands for the first number that is too large.
  const double limit = std::ldexp(1.0, FormatOf(type).max_exponent) * 2;
  if (std::isfinite(limit)) {
    actual = std::clamp(actual, -limit, limit);
    wanted = std::clamp(wanted, -limit, limit);
  }
  const double rounding =
      0.5 * std::max(UlpAt(actual, type), UlpAt(wanted, type));
  return std::fabs(actual - wanted) <= expected.errors[index] + rounding;
}

}  // namespace attention::test
