// Fuzzes PlanAttention and RunAttention against the reference, and the SIMD
// targets against each other.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/cpu/simd_targets.h"
#include "tests/support/attention_case.h"
#include "tests/support/reference.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

// Sizes are capped so that an input takes well below a millisecond; key lengths
// reach over two blocks where little else is large.
constexpr int64_t kMaxLength = 8;
constexpr int64_t kMaxKeys = 530;
constexpr int64_t kMaxWork = 20000;

void Check(bool condition, const char* what, const AttentionCase& request) {
  if (condition) return;
  std::fprintf(stderr, "%s: %s\n", what, request.ToString().c_str());
  std::abort();
}

class Source {
 public:
  Source(const uint8_t* data, size_t size) : data_(data, size) {}

  int64_t Integer(int64_t low, int64_t high) {
    return data_.ConsumeIntegralInRange<int64_t>(low, high);
  }
  bool Coin() { return data_.ConsumeBool(); }
  template <typename T>
  T Enum(int last) {
    return static_cast<T>(Integer(0, last));
  }

  // Mostly sizes that fit together, now and then any.
  int64_t Size(int64_t usual) {
    if (Integer(0, 63) != 0) return usual;
    return Coin() ? Integer(-1, 5) : data_.ConsumeIntegral<int64_t>();
  }

  // Numbers of moderate size, so that float32 neither overflows nor loses what
  // double keeps; `special` allows NaN and infinities too.
  double Number(bool special) {
    const int64_t byte = Integer(0, 255);
    if (special && byte < 3) {
      constexpr double kSpecial[] = {std::numeric_limits<double>::quiet_NaN(),
                                     std::numeric_limits<double>::infinity(),
                                     -std::numeric_limits<double>::infinity()};
      return kSpecial[byte];
    }
    return static_cast<double>(byte - 128) / 32;
  }

  // `shape` has no more elements than the caps allow, or is invalid, and then
  // has no elements at all behind it.
  Tensor Elements(DataType type, const Shape& shape, bool special) {
    Tensor tensor(type, shape);
    for (int64_t i = 0; i < tensor.size(); ++i) {
      const double number = Number(special && IsFloat(type));
      tensor.Set(i, type == DataType::kBool ? number > 0
                    : IsFloat(type)         ? number
                                            : std::round(number));
    }
    return tensor;
  }

 private:
  FuzzedDataProvider data_;
};

struct Request {
  AttentionCase tensors;
  // Where NaN or infinity stand, float32 and double may differ in which of them
  // comes out.
  bool special = false;
};

void DrawOptions(Source& source, const Sizes& sizes,
                 AttentionOptions* options) {
  if (source.Coin()) options->scale = source.Number(false);
  if (source.Coin()) options->softcap = source.Number(false);
  options->causal = source.Enum<Causal>(2);
  if (source.Coin()) {
    options->window_left = source.Size(source.Integer(-1, 9));
    options->window_right = source.Size(source.Integer(-1, 9));
    options->chunk_size = source.Size(source.Integer(-1, 9));
  }
  if (source.Coin()) {
    options->alibi_slopes.assign(sizes.query_heads, source.Number(false));
  }
  if (source.Coin()) {
    options->sinks.assign(sizes.query_heads, source.Number(false));
  }
  if (source.Coin()) {
    options->softmax_precision = source.Enum<DataType>(3);
  }
  options->return_log_sum_exp = source.Coin();
  options->return_scores = source.Enum<Scores>(4);
  options->return_present = source.Coin();
}

Request Draw(Source& source) {
  Request result;
  result.special = source.Coin();
  AttentionCase& request = result.tensors;
  Layout layout = source.Enum<Layout>(5);
  request.options.layout = layout;
  if (layout == Layout::kByRank) layout = Layout::kBHSD;
  Sizes sizes;
  if (layout != Layout::kMatrix) {
    sizes.batch = source.Integer(0, 2);
    sizes.kv_heads = source.Integer(1, 2);
    sizes.query_heads = sizes.kv_heads * source.Integer(1, 3);
  }
  sizes.head_size = source.Integer(1, 20);
  sizes.value_head_size = source.Integer(1, 20);
  sizes.query_length = source.Integer(0, kMaxLength);
  const int64_t work = (sizes.batch + 1) * sizes.query_heads *
                       (sizes.query_length + 1) *
                       (sizes.head_size + sizes.value_head_size);
  sizes.key_length = source.Integer(0, std::min(kMaxKeys, kMaxWork / work));
  if (layout == Layout::kPacked || source.Coin()) {
    request.options.query_heads = sizes.query_heads;
    request.options.kv_heads = sizes.kv_heads;
  }
  const auto type = source.Enum<DataType>(3);
  const auto value_type = source.Coin() ? type : source.Enum<DataType>(3);
  const auto tensor = [&](DataType of, int64_t heads, int64_t length,
                          int64_t size) {
    Shape shape = ShapeIn(layout, sizes.batch, heads, length, size);
    if (layout == Layout::kRagged) shape = {length, heads, size};
    return source.Elements(of, shape, result.special);
  };
  request.query =
      tensor(type, sizes.query_heads, sizes.query_length, sizes.head_size);
  request.key = tensor(type, sizes.kv_heads, sizes.key_length, sizes.head_size);
  request.value = tensor(value_type, sizes.kv_heads, sizes.key_length,
                         sizes.value_head_size);
  DrawOptions(source, sizes, &request.options);
  if (layout == Layout::kRagged) {
    request.options.return_scores = Scores::kNone;
    request.options.return_present = false;
    const auto starts = [&](int64_t length) {
      const int64_t cut = source.Integer(0, length);
      return std::vector<int64_t>{0, source.Size(cut), length};
    };
    request.query_starts = starts(sizes.query_length);
    request.key_starts = starts(sizes.key_length);
    return result;
  }
  int64_t keys = sizes.key_length;
  if (source.Coin()) {
    const int64_t past = source.Integer(0, 9);
    keys += past;
    const auto cache = [&](DataType of, int64_t size) {
      return source.Elements(of, {sizes.batch, sizes.kv_heads, past, size},
                             result.special);
    };
    request.past_key = cache(type, sizes.head_size);
    request.past_value = cache(value_type, sizes.value_head_size);
  } else if (source.Coin()) {
    for (int64_t b = 0; b < sizes.batch; ++b) {
      request.valid_lengths.push_back(source.Size(source.Integer(0, keys)));
    }
  }
  if (source.Coin()) {
    const Shape full = {sizes.batch, sizes.query_heads, sizes.query_length,
                        source.Coin() ? keys : source.Integer(0, keys)};
    Shape shape(full.begin() + source.Integer(0, 3), full.end());
    for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
      if (source.Coin()) shape[axis] = 1;
    }
    request.mask =
        source.Elements(source.Enum<DataType>(7), shape, result.special);
  }
  if (source.Coin()) {
    Shape shape = {sizes.batch, sizes.query_length, source.Integer(0, 5)};
    if (source.Coin()) shape.insert(shape.begin() + 1, sizes.query_heads);
    Tensor indices(source.Coin() ? DataType::kInt32 : DataType::kInt64, shape);
    for (int64_t i = 0; i < indices.size(); ++i) {
      indices.Set(i, static_cast<double>(source.Integer(-1, keys - 1)));
    }
    request.indices = std::move(indices);
  }
  if (request.options.sinks.empty() && source.Coin()) {
    request.sinks = source.Elements(
        DataType::kFloat32,
        {sizes.batch, sizes.query_heads, sizes.query_length}, false);
  }
  return result;
}

// Damages shapes in the views, which then must not be read: no plan may accept
// them unless they mean the same memory.
AttentionInputs MaybeDamaged(Source& source, const AttentionCase& request,
                             bool* damaged) {
  AttentionInputs inputs = request.inputs();
  *damaged = source.Integer(0, 7) == 0;
  if (!*damaged) return inputs;
  std::vector<ConstTensorView*> views = {&inputs.query, &inputs.key,
                                         &inputs.value};
  if (inputs.past_key) views.push_back(&*inputs.past_key);
  if (inputs.past_value) views.push_back(&*inputs.past_value);
  // Not indices and sinks, whose elements a plan looks at.
  ConstTensorView* const view =
      views[source.Integer(0, static_cast<int64_t>(views.size()) - 1)];
  for (int64_t& dim : view->shape) dim = source.Size(dim);
  view->type = source.Enum<DataType>(7);
  if (source.Coin()) {
    for (int64_t& dim : view->shape) view->strides.push_back(source.Size(dim));
  }
  return inputs;
}

bool IsRight(const void* data, const Expected& expected, bool special) {
  const size_t size = SizeOf(expected.type);
  for (size_t i = 0; i < expected.values.size(); ++i) {
    const double actual =
        Decode(expected.type, static_cast<const char*>(data) + i * size);
    const auto index = static_cast<int64_t>(i);
    if (IsExpected(actual, expected, index)) continue;
    if (special && !std::isfinite(actual) &&
        !std::isfinite(expected.values[i])) {
      continue;
    }
    std::fprintf(stderr, "element %zu: got %.17g, expected %.17Lg +- %.3Lg\n",
                 i, actual, expected.values[i], expected.errors[i]);
    return false;
  }
  return true;
}

// Memory of exactly the size, so that the sanitizer sees the byte after it.
using Buffer = std::vector<char>;

struct Buffers {
  explicit Buffers(const AttentionPlan& plan)
      : output(plan.output.num_bytes()),
        log_sum_exp(plan.log_sum_exp ? plan.log_sum_exp->num_bytes() : 0),
        scores(plan.scores ? plan.scores->num_bytes() : 0),
        present_key(plan.present_key ? plan.present_key->num_bytes() : 0),
        present_value(plan.present_value ? plan.present_value->num_bytes()
                                         : 0) {}
  bool operator==(const Buffers&) const = default;

  AttentionOutputs outputs() {
    return {output.data(), log_sum_exp.data(), scores.data(),
            present_key.data(), present_value.data()};
  }

  Buffer output, log_sum_exp, scores, present_key, present_value;
};

void Run(const uint8_t* data, size_t size) {
  static const auto* const targets =
      new std::vector<std::string>(SimdTargets());
  static auto* const executor = new Executor(0);
  Source source(data, size);
  const Request drawn = Draw(source);
  const AttentionCase& request = drawn.tensors;
  bool damaged = false;
  const AttentionInputs inputs = MaybeDamaged(source, request, &damaged);
  const absl::StatusOr<AttentionPlan> plan =
      PlanAttention(inputs, request.options);
  if (!plan.ok()) {
    Check(absl::IsInvalidArgument(plan.status()), "wrong code", request);
    Check(!ErrorField(plan.status()).empty(), "no field", request);
    return;
  }
  // A damaged view may be right, but has no memory behind it.
  if (damaged) return;
  const ReferenceResult expected = ComputeReference(inputs, request.options);
  Buffers first(*plan);
  for (size_t t = 0; t < targets->size(); ++t) {
    Check(SetSimdTargetForTest((*targets)[t]), "no target", request);
    Buffers buffers(*plan);
    Check(RunAttention(*plan, buffers.outputs(), *executor).ok(), "failed",
          request);
    if (t == 0) first = buffers;
    Check(buffers == first, "other bits", request);
  }
  const auto check = [&](const char* what, const Buffer& buffer,
                         const std::optional<Expected>& wanted) {
    if (!wanted) return;
    Check(IsRight(buffer.data(), *wanted, drawn.special), what, request);
  };
  check("output", first.output, expected.output);
  check("log_sum_exp", first.log_sum_exp, expected.log_sum_exp);
  check("scores", first.scores, expected.scores);
  check("present_key", first.present_key, expected.present_key);
  check("present_value", first.present_value, expected.present_value);
}

}  // namespace
}  // namespace attention::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  attention::test::Run(data, size);
  return 0;
}
