#include "tests/support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/reference_request.h"

namespace attention::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

absl::string_view Name(Layout layout) {
  switch (layout) {
    case Layout::kByRank:
      return "by rank";
    case Layout::kMatrix:
      return "MATRIX";
    case Layout::kPacked:
      return "PACKED";
    case Layout::kBHSD:
      return "BHSD";
    case Layout::kBSHD:
      return "BSHD";
    case Layout::kRagged:
      return "RAGGED";
  }
  return "?";
}

std::string Describe(const Tensor& tensor) {
  std::string text = absl::StrCat(attention::Name(tensor.type()),
                                  attention::ToString(tensor.shape()));
  const Shape strides = tensor.view().strides;
  if (!strides.empty()) {
    absl::StrAppend(&text, " strides ", attention::ToString(strides));
  }
  return text;
}

int64_t Sum(const std::vector<int64_t>& numbers) {
  int64_t sum = 0;
  for (int64_t n : numbers) sum += n;
  return sum;
}

std::vector<int64_t> Starts(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> starts = {0};
  for (int64_t length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

// `tensor` with gaps between its rows and off its alignment.
Tensor Scattered(Random& random, const Tensor& tensor) {
  Shape strides = RowMajorStrides(tensor.shape());
  for (int axis = static_cast<int>(strides.size()) - 2; axis >= 0; --axis) {
    const int64_t inner = std::max<int64_t>(tensor.shape()[axis + 1], 1);
    strides[axis] = strides[axis + 1] * inner + random.Integer(0, 3);
  }
  return tensor.PlacedAs({strides, random.Integer(0, 3), 0});
}

void Scatter(Random& random, Tensor* tensor) {
  if (random.Chance(0.25)) *tensor = Scattered(random, *tensor);
}

void DrawOptions(Random& random, const Sizes& sizes, int64_t keys,
                 AttentionOptions* options) {
  if (random.Chance(0.3)) {
    options->scale = random.Pick<double>({0.0, 1.0, -0.7, 0.05, 1.3});
  }
  if (random.Chance(0.25)) {
    options->softcap = random.Pick<double>({0.3, 2.0, 30.0});
  }
  options->causal = random.Pick<Causal>(
      {Causal::kNone, Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
  if (random.Chance(0.3)) {
    options->window_left = random.Integer(-1, keys + 1);
    options->window_right = random.Integer(-1, keys + 1);
  }
  if (random.Chance(0.2)) options->chunk_size = random.Integer(1, keys + 2);
  if (random.Chance(0.25)) {
    for (int64_t h = 0; h < sizes.query_heads; ++h) {
      options->alibi_slopes.push_back(std::exp2(-1 - h % 8) *
                                      (random.Chance(0.1) ? -0.1 : 1.0));
    }
  }
  if (random.Chance(0.25)) {
    for (int64_t h = 0; h < sizes.query_heads; ++h) {
      options->sinks.push_back(random.Chance(0.2) ? -kInfinity
                                                  : 2 * random.Normal());
    }
  }
  if (random.Chance(0.15)) {
    options->softmax_precision =
        random.Pick<DataType>({DataType::kFloat64, DataType::kFloat32,
                               DataType::kFloat16, DataType::kBFloat16});
  }
  options->return_log_sum_exp = random.Chance(0.5);
}

void DrawRagged(Random& random, const RandomLimits& limits, const Sizes& sizes,
                AttentionCase* result) {
  std::vector<int64_t> query_lengths;
  std::vector<int64_t> key_lengths;
  for (int64_t b = 0; b < sizes.batch; ++b) {
    query_lengths.push_back(
        random.Chance(0.1) ? 0 : random.Pick(limits.query_lengths));
    key_lengths.push_back(random.Integer(0, sizes.key_length));
  }
  result->query_starts = Starts(query_lengths);
  result->key_starts = Starts(key_lengths);
  const int64_t rows = Sum(query_lengths);
  const int64_t keys = Sum(key_lengths);
  const DataType type = result->query.type();
  result->query =
      random.NormalTensor(type, {rows, sizes.query_heads, sizes.head_size});
  result->key =
      random.NormalTensor(type, {keys, sizes.kv_heads, sizes.head_size});
  result->value = random.NormalTensor(
      result->value.type(), {keys, sizes.kv_heads, sizes.value_head_size});
}

void DrawPast(Random& random, const Sizes& sizes, int64_t past,
              AttentionCase* result) {
  result->past_key = random.NormalTensor(
      result->key.type(), {sizes.batch, sizes.kv_heads, past, sizes.head_size});
  result->past_value = random.NormalTensor(
      result->value.type(),
      {sizes.batch, sizes.kv_heads, past, sizes.value_head_size});
}

Sizes DrawSizes(Random& random, const RandomLimits& limits, Layout layout) {
  while (true) {
    Sizes sizes;
    sizes.query_length = random.Pick(limits.query_lengths);
    sizes.key_length = random.Pick(limits.key_lengths);
    sizes.head_size = random.Pick(limits.head_sizes);
    sizes.value_head_size =
        random.Chance(0.5) ? sizes.head_size : random.Pick(limits.head_sizes);
    if (layout != Layout::kMatrix) {
      sizes.batch = random.Integer(1, 3);
      sizes.kv_heads = random.Integer(1, 3);
      sizes.query_heads = sizes.kv_heads * random.Pick<int64_t>({1, 1, 2, 4});
    }
    const int64_t work = sizes.batch * sizes.query_heads * sizes.query_length *
                         sizes.key_length *
                         (sizes.head_size + sizes.value_head_size);
    if (work <= limits.max_work) return sizes;
  }
}

// Makes indices drawn for the longest sequence good for every one.
void FitToSequences(const AttentionCase& request, Tensor* indices) {
  for (size_t b = 0; b + 1 < request.key_starts.size(); ++b) {
    const int64_t keys = request.key_starts[b + 1] - request.key_starts[b];
    const int64_t per_row =
        indices->size() / std::max<int64_t>(1, indices->shape()[0]);
    for (int64_t i = request.query_starts[b] * per_row;
         i < request.query_starts[b + 1] * per_row; ++i) {
      const auto key = static_cast<int64_t>(indices->Get(i));
      if (key >= keys) {
        indices->Set(i, keys == 0 ? -1 : static_cast<double>(key % keys));
      }
    }
  }
}

void DrawPerRow(Random& random, const Sizes& sizes, bool strided,
                AttentionCase* result) {
  const bool ragged = result->options.layout == Layout::kRagged;
  const int64_t rows =
      ragged ? result->query_starts.back() : sizes.query_length;
  if (random.Chance(0.4)) {
    Shape axes = {sizes.batch, rows};
    if (ragged) axes = {rows};
    if (random.Chance(0.4)) {
      axes.insert(axes.begin() + 1, sizes.query_heads);
    } else if (!ragged && sizes.batch == 1 && random.Chance(0.5)) {
      axes = {rows};
    }
    result->indices = RandomIndices(random, axes, sizes.key_length);
    if (ragged) FitToSequences(*result, &*result->indices);
    if (strided) Scatter(random, &*result->indices);
  }
  if (result->options.sinks.empty() && random.Chance(0.3)) {
    Shape shape = {sizes.batch, sizes.query_heads, rows};
    if (ragged) shape = {rows, sizes.query_heads};
    result->sinks = random.NormalTensor(
        random.Pick<DataType>({DataType::kFloat32, DataType::kFloat16,
                               DataType::kBFloat16, DataType::kFloat64}),
        shape);
    for (int64_t i = 0; i < result->sinks->size(); ++i) {
      if (random.Chance(0.2)) result->sinks->Set(i, -kInfinity);
    }
    if (strided) Scatter(random, &*result->sinks);
  }
}

}  // namespace

int64_t Random::Integer(int64_t low, int64_t high) {
  const uint64_t range = static_cast<uint64_t>(high - low) + 1;
  return low + static_cast<int64_t>(engine_() % range);
}

double Random::Real() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

double Random::Normal() {
  const double radius = std::sqrt(-2 * std::log(1 - Real()));
  return radius * std::cos(2 * std::numbers::pi * Real());
}

Tensor Random::NormalTensor(DataType type, Shape shape) {
  Tensor tensor(type, std::move(shape));
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (type == DataType::kBool) {
      tensor.Set(i, Chance(0.5));
    } else if (IsFloat(type)) {
      tensor.Set(i, Normal());
    } else {
      tensor.Set(i, static_cast<double>(Integer(-3, 3)));
    }
  }
  return tensor;
}

Shape ShapeIn(Layout layout, int64_t batch, int64_t heads, int64_t length,
              int64_t size) {
  switch (layout) {
    case Layout::kMatrix:
      return {length, size};
    case Layout::kPacked:
      return {batch, length, heads * size};
    case Layout::kBSHD:
      return {batch, length, heads, size};
    default:
      return {batch, heads, length, size};
  }
}

std::string Name(const Kind& kind) {
  return absl::StrCat(attention::Name(kind.type),
                      kind.math == MathMode::kFast ? "_FAST" : "");
}

AttentionInputs AttentionCase::inputs() const {
  AttentionInputs inputs;
  inputs.query = query.view();
  inputs.key = key.view();
  inputs.value = value.view();
  if (mask) inputs.mask = mask->view();
  if (past_key) inputs.past_key = past_key->view();
  if (past_value) inputs.past_value = past_value->view();
  if (indices) inputs.indices = indices->view();
  if (sinks) inputs.sinks = sinks->view();
  inputs.valid_lengths = valid_lengths;
  inputs.query_starts = query_starts;
  inputs.key_starts = key_starts;
  return inputs;
}

std::string AttentionCase::ToString() const {
  std::string text =
      absl::StrCat("query ", Describe(query), " key ", Describe(key), " value ",
                   Describe(value), " layout ", Name(options.layout), " heads ",
                   options.query_heads, "/", options.kv_heads);
  if (mask) absl::StrAppend(&text, " mask ", Describe(*mask));
  if (past_key) absl::StrAppend(&text, " past_key ", Describe(*past_key));
  if (past_value) absl::StrAppend(&text, " past_value ", Describe(*past_value));
  if (indices) absl::StrAppend(&text, " indices ", Describe(*indices));
  if (sinks) absl::StrAppend(&text, " row sinks ", Describe(*sinks));
  if (!valid_lengths.empty()) {
    absl::StrAppend(&text, " valid ", absl::StrJoin(valid_lengths, ","));
  }
  if (!query_starts.empty()) {
    absl::StrAppend(&text, " query_starts ", absl::StrJoin(query_starts, ","),
                    " key_starts ", absl::StrJoin(key_starts, ","));
  }
  if (options.scale) absl::StrAppend(&text, " scale ", *options.scale);
  absl::StrAppend(&text, " softcap ", options.softcap, " causal ",
                  static_cast<int>(options.causal), " window ",
                  options.window_left, ",", options.window_right, " chunk ",
                  options.chunk_size, " alibi ",
                  absl::StrJoin(options.alibi_slopes, ","), " sinks ",
                  absl::StrJoin(options.sinks, ","), " scores ",
                  static_cast<int>(options.return_scores));
  if (options.math_mode == MathMode::kFast) absl::StrAppend(&text, " FAST");
  if (options.softmax_precision) {
    absl::StrAppend(&text, " precision ",
                    attention::Name(*options.softmax_precision));
  }
  return text;
}

AttentionCase NormalCase(Random& random, const Sizes& sizes, DataType type) {
  AttentionCase result;
  result.query = random.NormalTensor(
      type,
      {sizes.batch, sizes.query_heads, sizes.query_length, sizes.head_size});
  result.key = random.NormalTensor(
      type, {sizes.batch, sizes.kv_heads, sizes.key_length, sizes.head_size});
  result.value = random.NormalTensor(
      type,
      {sizes.batch, sizes.kv_heads, sizes.key_length, sizes.value_head_size});
  return result;
}

AttentionCase NormalCase(Random& random, const Sizes& sizes, const Kind& kind) {
  AttentionCase result = NormalCase(random, sizes, kind.type);
  result.options.math_mode = kind.math;
  return result;
}

Tensor RandomMask(Random& random, Shape full) {
  const DataType type = random.Pick<DataType>(
      {DataType::kBool, DataType::kBool, DataType::kFloat32, DataType::kFloat32,
       DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64,
       DataType::kInt8, DataType::kInt32, DataType::kInt64});
  const int64_t keys = full.back();
  if (keys > 2 && random.Chance(0.25))
    full.back() = random.Integer(2, keys - 1);
  Shape shape(full.begin() + random.Integer(0, 3), full.end());
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (random.Chance(0.3)) shape[axis] = 1;
  }
  Tensor mask = random.NormalTensor(type, shape);
  if (type == DataType::kBool) {
    const double density = random.Pick<double>({0.1, 0.5, 0.9});
    for (int64_t i = 0; i < mask.size(); ++i) {
      mask.Set(i, random.Chance(density));
    }
  } else if (IsFloat(type)) {
    const double masked = random.Pick<double>({0.0, 0.3, 0.9});
    for (int64_t i = 0; i < mask.size(); ++i) {
      if (random.Chance(masked)) mask.Set(i, -kInfinity);
    }
  }
  // Now and then a whole row is masked.
  if ((type == DataType::kBool || IsFloat(type)) && shape.size() > 1 &&
      mask.size() > 0 && random.Chance(0.3)) {
    const int64_t length = shape.back();
    const int64_t row = random.Integer(0, mask.size() / length - 1);
    for (int64_t j = 0; j < length; ++j) {
      mask.Set(row * length + j, type == DataType::kBool ? 0 : -kInfinity);
    }
  }
  return mask;
}

Tensor RandomIndices(Random& random, Shape axes, int64_t keys) {
  const int64_t most = keys + 3;
  axes.push_back(random.Pick<int64_t>(
      {0, 1, 2, std::min<int64_t>(17, most), most / 2, most}));
  Tensor indices(random.Pick<DataType>({DataType::kInt32, DataType::kInt64}),
                 axes);
  for (int64_t i = 0; i < indices.size(); ++i) {
    indices.Set(i, keys == 0 || random.Chance(0.1)
                       ? -1
                       : static_cast<double>(random.Integer(0, keys - 1)));
  }
  return indices;
}

AttentionCase WithMaskForIndices(const AttentionCase& request) {
  AttentionCase masked = request;
  masked.indices.reset();
  const bool adds = request.mask && request.mask->type() != DataType::kBool;
  const AttentionInputs inputs = request.inputs();
  const ReferenceRequest whole(inputs, request.options);
  const int64_t heads = whole.query_heads();
  const int64_t rows = whole.QueryLength(0);
  const int64_t keys = whole.TotalKeys(0);
  masked.mask = Tensor(adds ? DataType::kFloat64 : DataType::kBool,
                       {whole.batch(), heads, rows, keys});
  for (int64_t b = 0; b < whole.batch(); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < keys; ++j) {
          const double bias = whole.Selected(b, h, i, j)
                                  ? whole.MaskValue(b, h, i, j)
                                  : -kInfinity;
          masked.mask->Set({b, h, i, j}, adds ? bias : bias == 0);
        }
      }
    }
  }
  return masked;
}

AttentionCase RandomCase(Random& random, const RandomLimits& limits) {
  AttentionCase result;
  const Layout layout =
      random.Pick<Layout>({Layout::kMatrix, Layout::kPacked, Layout::kBHSD,
                           Layout::kBHSD, Layout::kBSHD, Layout::kRagged});
  const Sizes sizes = DrawSizes(random, limits, layout);
  const DataType type = random.Pick(limits.types);
  const DataType value_type =
      random.Chance(0.7) ? type : random.Pick(limits.types);
  result.query = Tensor(type, {0});
  result.value = Tensor(value_type, {0});
  AttentionOptions& options = result.options;
  options.layout = layout;
  if (layout == Layout::kPacked || random.Chance(0.2)) {
    options.query_heads = sizes.query_heads;
    options.kv_heads = sizes.kv_heads;
  }
  if (layout == Layout::kRagged) {
    DrawRagged(random, limits, sizes, &result);
    DrawOptions(random, sizes, sizes.key_length, &options);
  } else {
    if (layout != Layout::kBSHD && random.Chance(0.3)) {
      options.layout = Layout::kByRank;
    }
    const auto draw = [&](DataType of, int64_t heads, int64_t length,
                          int64_t size) {
      return random.NormalTensor(
          of, ShapeIn(layout, sizes.batch, heads, length, size));
    };
    // The keys drawn are shared out between past and new.
    const int64_t past =
        random.Chance(0.25) ? random.Integer(0, sizes.key_length) : -1;
    const int64_t length = sizes.key_length - std::max<int64_t>(past, 0);
    result.query =
        draw(type, sizes.query_heads, sizes.query_length, sizes.head_size);
    result.key = draw(type, sizes.kv_heads, length, sizes.head_size);
    result.value =
        draw(value_type, sizes.kv_heads, length, sizes.value_head_size);
    if (past >= 0) {
      DrawPast(random, sizes, past, &result);
    } else if (random.Chance(0.25)) {
      for (int64_t b = 0; b < sizes.batch; ++b) {
        result.valid_lengths.push_back(random.Integer(0, sizes.key_length));
      }
    }
    if (random.Chance(0.4)) {
      result.mask = RandomMask(random, {sizes.batch, sizes.query_heads,
                                        sizes.query_length, sizes.key_length});
    }
    DrawOptions(random, sizes, sizes.key_length, &options);
    if (random.Chance(0.4)) {
      options.return_scores = random.Pick<Scores>(
          {Scores::kRaw, Scores::kCapped, Scores::kBiased, Scores::kWeights});
    }
    options.return_present = random.Chance(0.2);
  }
  if (limits.strided) {
    Scatter(random, &result.query);
    Scatter(random, &result.key);
    Scatter(random, &result.value);
    if (result.mask) Scatter(random, &*result.mask);
    if (result.past_key) Scatter(random, &*result.past_key);
    if (result.past_value) Scatter(random, &*result.past_value);
  }
  if (random.Chance(0.3)) options.math_mode = MathMode::kFast;
  if (limits.per_row) DrawPerRow(random, sizes, limits.strided, &result);
  return result;
}

}  // namespace attention::test
