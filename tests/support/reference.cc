#include "tests/support/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "tests/support/reference_request.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Keys a block of the kernel.
constexpr int64_t kBlock = 256;
// A unit in the last place is at most two roundoffs; math_test shows both
// constants.
constexpr double kExpRoundoffs = 2;
constexpr double kTanhRoundoffs = 5;
// Of an exponential in FAST math, relative.
constexpr double kFastExpError = 0x1p-16;
// Of the logarithm, which the kernel takes in double: relative, or absolute
// where that is more.
constexpr double kLogError = 1e-15;
// A hundredth for terms of second order, one for the roundings of this
// reference, whose roundoff is 2^-11 of double's.
constexpr double kSlack = 1.02;

// What one key contributes to one row's softmax, with bounds on the errors.
struct Logit {
  bool masked = false;
  Wide raw = 0;
  Wide capped = 0;
  Wide biased = 0;
  Wide raw_error = 0;
  Wide capped_error = 0;
  Wide biased_error = 0;
};

// A row's softmax.
struct Softmax {
  std::vector<Wide> weights;
  Wide sink_weight = 0;
  Wide log_sum_exp = -kInfinity;
  // Bounds on the relative error of each exponential before normalization.
  std::vector<Wide> exp_errors;
  Wide sink_exp_error = 0;
  // Bounds on the errors of the rest.
  Wide sum_error = 0;  // relative
  Wide log_sum_exp_error = 0;
  // At the least, the sum as the errors of the exponentials can make it, of
  // that without errors.
  Wide shrunk = 1;
};

Wide Abs(Wide x) { return std::fabs(x); }

// The errors are those of docs/numerics.md, section "Errors".
class Reference {
 public:
  Reference(const AttentionInputs& inputs, const AttentionOptions& options)
      : request_(inputs, options),
        options_(options),
        unit_(UnitRoundoff(request_.precision())),
        tiny_(std::ldexp(Wide{1}, FormatOf(request_.precision()).min_exponent)),
        grid_(tiny_ * unit_),
        paired_(request_.paired()) {}

  ReferenceResult Compute() const;

 private:
  // One row: query i of head h of sequence b.
  struct Row {
    int64_t b;
    int64_t h;
    int64_t i;
  };

  Logit ComputeLogit(const Matrix& query, const Matrix& keys, const Row& row,
                     int64_t j) const;
  Wide CappedError(const Logit& logit) const;
  Softmax ComputeSoftmax(const std::vector<Logit>& logits, Wide sink) const;
  void BoundSum(const std::vector<Logit>& logits, Softmax* softmax) const;
  void WriteOutput(const std::vector<Logit>& logits, const Softmax& softmax,
                   const Matrix& values, const Row& row,
                   Expected* output) const;
  void WriteLogSumExp(const Softmax& softmax, const Row& row,
                      Expected* expected) const;
  void WriteScores(const std::vector<Logit>& logits, const Softmax& softmax,
                   const Row& row, Expected* expected) const;
  Expected Present(int64_t size,
                   Matrix (ReferenceRequest::*read)(int64_t, int64_t) const,
                   DataType type) const;
  Expected OutputShape() const;
  Expected LogSumExpShape() const;

  // Levels of the tree that merges the blocks of so many keys, and the sink.
  Wide MergeLevels(size_t keys) const {
    const Wide blocks = std::ceil(static_cast<Wide>(keys) / kBlock);
    return std::ceil(std::log2(std::max<Wide>(1, blocks))) +
           (request_.has_sinks() ? 1 : 0);
  }
  // Roundings of a sum of so many weights: a chain in each of 16 lanes, those
  // added in four steps, two a merge.
  Wide SumRoundings(size_t keys) const {
    const Wide chain =
        std::min(std::ceil(static_cast<Wide>(keys) / 16), Wide{kBlock} / 16);
    return std::max<Wide>(chain - 1, 0) + 4 + 2 * MergeLevels(keys);
  }

  const ReferenceRequest request_;
  const AttentionOptions& options_;
  const Wide unit_;  // the precision's unit roundoff
  const Wide tiny_;  // its smallest normal number
  const Wide grid_;  // half the distance of its subnormal numbers
  // Whether the bounds are those of FAST math: two roundings a product, that of
  // weights to BFLOAT16, subnormal numbers taken as zero.
  const bool paired_;
};

Logit Reference::ComputeLogit(const Matrix& query, const Matrix& keys,
                              const Row& row, int64_t j) const {
  Logit logit;
  const int64_t size = request_.head_size();
  Wide dot = 0;
  Wide partial_sums = 0;
  Wide products = 0;
  Wide factors = 0;
  for (int64_t d = 0; d < size; ++d) {
    const Wide q = query[row.i][d];
    const Wide k = keys[j][d];
    dot += q * k;
    partial_sums += Abs(dot);
    products += Abs(q * k);
    factors += Abs(q) + Abs(k);
  }
  Wide dot_error = unit_ * partial_sums + grid_ * static_cast<Wide>(size);
  if (paired_) {
    dot_error = 2 * unit_ * (partial_sums + products) +
                tiny_ * (factors + 2 * static_cast<Wide>(size));
  }
  const Wide scale = Abs(request_.scale());
  logit.raw = request_.scale() * dot;
  logit.raw_error = scale * dot_error + 2 * unit_ * Abs(logit.raw) + grid_;

  logit.capped = logit.raw;
  if (options_.softcap > 0) {
    logit.capped = options_.softcap * std::tanh(logit.raw / options_.softcap);
  }
  logit.capped_error = CappedError(logit);

  const Wide mask = request_.MaskValue(row.b, row.h, row.i, j);
  if (request_.Hidden(row.b, row.i, j) || mask == -kInfinity ||
      !request_.Selected(row.b, row.h, row.i, j)) {
    logit.masked = true;
    logit.biased = -kInfinity;
    return logit;
  }
  logit.biased = logit.capped;
  logit.biased_error = logit.capped_error;
  if (request_.inputs().mask) {
    logit.biased += mask;
    logit.biased_error += unit_ * (Abs(mask) + Abs(logit.biased)) + grid_;
  }
  if (!options_.alibi_slopes.empty()) {
    const auto distance =
        static_cast<Wide>(std::llabs(row.i + request_.Offset(row.b) - j));
    const Wide alibi = -options_.alibi_slopes[row.h] * distance;
    logit.biased += alibi;
    logit.biased_error +=
        unit_ * (3 * Abs(alibi) + Abs(logit.biased)) + grid_ * (1 + distance);
  }
  return logit;
}

Wide Reference::CappedError(const Logit& logit) const {
  if (options_.softcap <= 0) return logit.raw_error;
  // An infinite score is capped exactly.
  Wide carried = 0;
  if (!std::isinf(logit.raw)) {
    // The steepest slope within the error.
    const Wide nearest = std::max<Wide>(0, Abs(logit.raw) - logit.raw_error);
    const Wide tanh = std::tanh(nearest / options_.softcap);
    carried = logit.raw_error * (1 - tanh * tanh);
  }
  return carried + (kTanhRoundoffs + 3) * unit_ * Abs(logit.capped) + 3 * grid_;
}

Softmax Reference::ComputeSoftmax(const std::vector<Logit>& logits,
                                  Wide sink) const {
  Softmax softmax;
  softmax.weights.assign(logits.size(), 0);
  softmax.exp_errors.assign(logits.size(), 0);
  if (std::all_of(logits.begin(), logits.end(),
                  [](const Logit& logit) { return logit.masked; })) {
    softmax.log_sum_exp = sink;
    return softmax;
  }

  Wide largest = sink;
  for (const Logit& logit : logits) {
    if (logit.masked) continue;
    if (std::isnan(logit.biased)) {
      largest = std::numeric_limits<Wide>::quiet_NaN();
    }
    if (logit.biased > largest) largest = logit.biased;
  }
  const Wide exps = kExpRoundoffs * (1 + MergeLevels(logits.size()));
  const auto relative_error = [&](Wide logit, Wide logit_error) {
    return std::expm1(std::min<Wide>(logit_error +
                                         unit_ * (Abs(logit - largest) + exps) +
                                         (paired_ ? kFastExpError : 0),
                                     100));
  };
  // By blocks, so that the reference's own error stays small.
  Wide sum = 0;
  Wide block_sum = 0;
  for (size_t j = 0; j < logits.size(); ++j) {
    if (j % kBlock == 0) sum += std::exchange(block_sum, 0);
    if (logits[j].masked) continue;
    softmax.weights[j] = std::exp(logits[j].biased - largest);
    softmax.exp_errors[j] =
        relative_error(logits[j].biased, logits[j].biased_error);
    block_sum += softmax.weights[j];
  }
  sum += block_sum;
  if (sink != -kInfinity) {
    softmax.sink_weight = std::exp(sink - largest);
    softmax.sink_exp_error = relative_error(sink, unit_ * Abs(sink));
    sum += softmax.sink_weight;
  }
  softmax.sink_weight /= sum;
  for (Wide& weight : softmax.weights) weight /= sum;
  const Wide log = std::log(sum);
  softmax.log_sum_exp = largest + log;
  BoundSum(logits, &softmax);
  softmax.log_sum_exp_error =
      softmax.sum_error + kLogError * std::max<Wide>(1, Abs(log)) +
      UnitRoundoff(DataType::kFloat64) * (Abs(largest) + Abs(log));
  return softmax;
}

void Reference::BoundSum(const std::vector<Logit>& logits,
                         Softmax* softmax) const {
  Wide errors = softmax->sink_exp_error * Abs(softmax->sink_weight);
  Wide loss = errors / (1 + softmax->sink_exp_error);
  for (size_t j = 0; j < logits.size(); ++j) {
    if (logits[j].masked) continue;
    const Wide error = softmax->exp_errors[j] * Abs(softmax->weights[j]);
    errors += error + 2 * tiny_;
    loss += error / (1 + softmax->exp_errors[j]);
  }
  softmax->sum_error = unit_ * SumRoundings(logits.size()) + errors;
  softmax->shrunk = std::max<Wide>(1 - loss, 1e-10);
}

void Reference::WriteOutput(const std::vector<Logit>& logits,
                            const Softmax& softmax, const Matrix& values,
                            const Row& row, Expected* output) const {
  const Wide levels = MergeLevels(logits.size());
  for (int64_t d = 0; d < request_.value_head_size(); ++d) {
    Wide sum = 0;
    Wide partial_sums = 0;
    Wide products = 0;
    Wide values_sum = 0;
    Wide block_sum = 0;
    Wide block_sums = 0;
    for (size_t j = 0; j < logits.size(); ++j) {
      if (j % kBlock == 0) {
        block_sums += Abs(block_sum);
        sum += std::exchange(block_sum, 0);
      }
      if (logits[j].masked) continue;
      block_sum += softmax.weights[j] * values[j][d];
      partial_sums += Abs(block_sum);
      products += Abs(softmax.weights[j] * values[j][d]);
      values_sum += Abs(values[j][d]);
    }
    block_sums += Abs(block_sum);
    sum += block_sum;

    Wide carried = Abs(softmax.sink_weight) * softmax.sink_exp_error * Abs(sum);
    for (size_t j = 0; j < logits.size(); ++j) {
      if (logits[j].masked) continue;
      carried += (Abs(softmax.weights[j]) * softmax.exp_errors[j] + 2 * tiny_) *
                 Abs(values[j][d] - sum);
    }
    if (paired_) {
      carried += UnitRoundoff(DataType::kBFloat16) * products +
                 unit_ * (partial_sums + 2 * products) +
                 tiny_ * (values_sum + 3 * static_cast<Wide>(logits.size()));
    }
    const Wide error =
        carried / softmax.shrunk +
        unit_ * (partial_sums + 2 * levels * block_sums +
                 (SumRoundings(logits.size()) + 1) * Abs(sum)) +
        grid_ * (static_cast<Wide>(logits.size()) + 2 * levels + 4);

    const Shape place = request_.OutputPlace(row.b, row.h, row.i, d);
    const Shape strides = RowMajorStrides(output->shape);
    const int64_t index = std::inner_product(place.begin(), place.end(),
                                             strides.begin(), int64_t{0});
    output->values[index] = sum;
    output->errors[index] = std::isfinite(sum) ? kSlack * error : 0;
  }
}

void Reference::WriteLogSumExp(const Softmax& softmax, const Row& row,
                               Expected* expected) const {
  int64_t index =
      (row.b * request_.query_heads() + row.h) * request_.QueryLength(row.b) +
      row.i;
  if (request_.ragged()) {
    index =
        (request_.QueryStart(row.b) + row.i) * request_.query_heads() + row.h;
  }
  expected->values[index] = softmax.log_sum_exp;
  expected->errors[index] = std::isfinite(softmax.log_sum_exp)
                                ? kSlack * softmax.log_sum_exp_error
                                : 0;
}

void Reference::WriteScores(const std::vector<Logit>& logits,
                            const Softmax& softmax, const Row& row,
                            Expected* expected) const {
  for (size_t j = 0; j < logits.size(); ++j) {
    const Logit& logit = logits[j];
    Wide value = 0;
    Wide error = 0;
    switch (options_.return_scores) {
      case Scores::kNone:
        return;
      case Scores::kRaw:
        value = logit.raw;
        error = logit.raw_error;
        break;
      case Scores::kCapped:
        value = logit.capped;
        error = logit.capped_error;
        break;
      case Scores::kBiased:
        value = logit.biased;
        error = logit.biased_error;
        break;
      case Scores::kWeights:
        value = softmax.weights[j];
        if (logit.masked) break;
        error = Abs(value) * (softmax.exp_errors[j] + softmax.sum_error) /
                    softmax.shrunk +
                unit_ * Abs(value) + 2 * tiny_;
        break;
    }
    const int64_t index = ((row.b * request_.query_heads() + row.h) *
                               request_.QueryLength(row.b) +
                           row.i) *
                              request_.TotalKeys(row.b) +
                          static_cast<int64_t>(j);
    expected->values[index] = value;
    expected->errors[index] = std::isfinite(value) ? kSlack * error : 0;
  }
}

Expected Zeros(DataType type, Shape shape) {
  const int64_t count = NumElements(shape).value();
  return {type, std::move(shape), std::vector<Wide>(count),
          std::vector<Wide>(count)};
}

Expected Reference::Present(int64_t size,
                            Matrix (ReferenceRequest::*read)(int64_t, int64_t)
                                const,
                            DataType type) const {
  const int64_t keys = request_.past() + request_.NewLength(0);
  Expected result =
      Zeros(type, {request_.batch(), request_.kv_heads(), keys, size});
  auto to = result.values.begin();
  for (int64_t b = 0; b < request_.batch(); ++b) {
    for (int64_t h = 0; h < request_.kv_heads(); ++h) {
      const Matrix rows = (request_.*read)(b, h);
      to = std::copy(rows.data.begin(), rows.data.end(), to);
    }
  }
  return result;
}

Expected Reference::OutputShape() const {
  Shape shape = request_.inputs().query.shape;
  shape.back() = request_.value_head_size();
  if (request_.layout() == Layout::kPacked) {
    shape.back() *= request_.query_heads();
  }
  return Zeros(request_.inputs().query.type, shape);
}

Expected Reference::LogSumExpShape() const {
  const Shape& q = request_.inputs().query.shape;
  Shape shape = {request_.batch(), request_.query_heads(), 0};
  if (request_.layout() == Layout::kMatrix) {
    shape = {q[0]};
  } else if (request_.ragged()) {
    shape = {q[0], request_.query_heads()};
  } else {
    shape[2] = request_.QueryLength(0);
  }
  return Zeros(request_.precision(), shape);
}

ReferenceResult Reference::Compute() const {
  ReferenceResult result;
  const AttentionInputs& inputs = request_.inputs();
  result.output = OutputShape();
  if (options_.return_log_sum_exp) result.log_sum_exp = LogSumExpShape();
  if (options_.return_scores != Scores::kNone) {
    result.scores =
        Zeros(inputs.query.type, {request_.batch(), request_.query_heads(),
                                  request_.QueryLength(0),
                                  request_.past() + request_.NewLength(0)});
  }
  for (int64_t b = 0; b < request_.batch(); ++b) {
    for (int64_t h = 0; h < request_.query_heads(); ++h) {
      const int64_t kv_head =
          h / (request_.query_heads() / request_.kv_heads());
      const Matrix query = request_.ReadQuery(b, h);
      const Matrix keys = request_.ReadKeys(b, kv_head);
      const Matrix values = request_.ReadValues(b, kv_head);
      for (int64_t i = 0; i < query.rows; ++i) {
        const Row row = {b, h, i};
        std::vector<Logit> logits;
        logits.reserve(keys.rows);
        for (int64_t j = 0; j < keys.rows; ++j) {
          logits.push_back(ComputeLogit(query, keys, row, j));
        }
        const Softmax softmax = ComputeSoftmax(logits, request_.Sink(b, h, i));
        WriteOutput(logits, softmax, values, row, &result.output);
        if (result.log_sum_exp) {
          WriteLogSumExp(softmax, row, &*result.log_sum_exp);
        }
        if (result.scores) WriteScores(logits, softmax, row, &*result.scores);
      }
    }
  }
  if (options_.return_present) {
    result.present_key = Present(request_.head_size(),
                                 &ReferenceRequest::ReadKeys, inputs.key.type);
    result.present_value =
        Present(request_.value_head_size(), &ReferenceRequest::ReadValues,
                inputs.value.type);
  }
  return result;
}

}  // namespace

ReferenceResult ComputeReference(const AttentionInputs& inputs,
                                 const AttentionOptions& options) {
  return Reference(inputs, options).Compute();
}

bool IsExpected(double actual, const Expected& expected, int64_t index) {
  const DataType type = expected.type;
  Wide wanted = expected.values[index];
  if (std::isnan(wanted)) return std::isnan(actual);
  if (std::isinf(wanted)) return actual == wanted;
  if (std::isnan(actual)) return false;
  // Infinity stands for the first number that is too large.
  const double limit = std::ldexp(1.0, FormatOf(type).max_exponent) * 2;
  if (std::isfinite(limit)) {
    actual = std::clamp(actual, -limit, limit);
    wanted = std::clamp<Wide>(wanted, -limit, limit);
  }
  const double rounding =
      0.5 *
      std::max(UlpAt(actual, type), UlpAt(static_cast<double>(wanted), type));
  return std::fabs(actual - wanted) <= expected.errors[index] + rounding;
}

}  // namespace attention::test
