#include "benchmarks/rpc/workload.h"

#include <random>
#include <utility>

namespace attention::benchmarks {
namespace {

std::vector<float> Normal(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  // A period is enough: it is only sent and multiplied.
  std::vector<float> period(4093);
  for (float& number : period) number = normal(random);
  std::vector<float> numbers(count);
  for (int64_t i = 0; i < count; ++i) numbers[i] = period[i % period.size()];
  return numbers;
}

}  // namespace

std::optional<Shape4> FindCase(const std::string& name) {
  for (const Shape4& shape :
       {Shape4{"small", 1, 1, 16, 16, 64},
        Shape4{"dense", 8, 8, 1024, 1024, 64},
        Shape4{"decode", 32, 8, 1, 8192, 128},
        Shape4{"prefill", 32, 8, 2048, 2048, 128, true}}) {
    if (shape.name == name) return shape;
  }
  return std::nullopt;
}

Workload::Workload(Shape4 shape)
    : query_(Normal(shape.query_heads * shape.query_length * shape.head_size)),
      key_(Normal(shape.kv_heads * shape.key_length * shape.head_size)),
      value_(key_),
      output_(query_.size()) {
  const std::vector<int64_t> rows = {1, shape.query_heads, shape.query_length,
                                     shape.head_size};
  const std::vector<int64_t> keys = {1, shape.kv_heads, shape.key_length,
                                     shape.head_size};
  request_.query = TensorSpan::Of<float>(query_, rows);
  request_.key = TensorSpan::Of<float>(key_, keys);
  request_.value = TensorSpan::Of<float>(value_, keys);
  AttentionOptions options;
  if (shape.causal) {
    request_.options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    options.causal = Causal::kBottomRight;
  }
  const auto view = [](const std::vector<float>& numbers,
                       const std::vector<int64_t>& shape) {
    ConstTensorView view;
    view.shape.assign(shape.begin(), shape.end());
    view.data = numbers.data();
    return view;
  };
  AttentionInputs inputs;
  inputs.query = view(query_, rows);
  inputs.key = view(key_, keys);
  inputs.value = view(value_, keys);
  plan_ = PlanAttention(inputs, options).value();
}

}  // namespace attention::benchmarks
