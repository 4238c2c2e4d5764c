#include "client/cpp/cli/bench/workload.h"

#include <limits>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "attention/float16.h"
#include "attention/tensor.h"

namespace attention::cli {
namespace {

// splitmix64's finalizer (Steele, Lea, Flood 2014): all bits of the result
// depend on all bits of `x`.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform in [-sqrt(3), sqrt(3)), which has variance 1.
double Uniform(uint64_t seed, Input input, int64_t index) {
  const uint64_t stream = Mix(seed + static_cast<uint64_t>(input) + 1);
  const uint64_t bits =
      Mix(stream + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(index) + 1));
  constexpr double kSqrt3 = 1.7320508075688772;
  return kSqrt3 * (static_cast<double>(bits >> 11) * 0x1p-52 - 1);
}

template <typename Element, typename Round>
std::string Pack(uint64_t seed, Input input, int64_t count, Round round) {
  std::string bytes(static_cast<size_t>(count) * sizeof(Element), '\0');
  auto* out = reinterpret_cast<Element*>(bytes.data());
  for (int64_t i = 0; i < count; ++i) out[i] = round(Uniform(seed, input, i));
  return bytes;
}

void SetTensor(const InputNumbers& numbers, Input input, int64_t count,
               const std::vector<int64_t>& shape, v1::Tensor& tensor) {
  tensor.set_data_type(numbers.type());
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  *tensor.mutable_data() = numbers.Bytes(input, count);
}

// A buffer of one slice that owns `message` and copies nothing.
grpc::ByteBuffer OneSlice(std::string message) {
  auto owned = std::make_unique<std::string>(std::move(message));
  char* data = owned->data();
  const size_t size = owned->size();
  grpc::Slice slice(
      data, size, [](void* text) { delete static_cast<std::string*>(text); },
      owned.release());
  return grpc::ByteBuffer(&slice, 1);
}

absl::StatusOr<grpc::ByteBuffer> MakeRequest(const CallShape& shape,
                                             const InputNumbers& numbers,
                                             v1::Causal causal) {
  const auto bytes =
      static_cast<double>(ElementSize(numbers.type())) *
      static_cast<double>(shape.query_elements() + shape.key_elements() +
                          shape.value_elements());
  // Leaves a page for what stands around the payloads.
  if (bytes > std::numeric_limits<int32_t>::max() - 4096.0) {
    return absl::InvalidArgumentError(
        absl::StrCat("got ", FormatShape(shape), ", ", bytes,
                     " bytes, wanted at most 2 GiB, what a message can hold"));
  }
  const auto& [b, hq, hkv, s, t, d, dv] = shape;
  v1::ComputeAttentionRequest request;
  SetTensor(numbers, Input::kQuery, shape.query_elements(), {b, hq, s, d},
            *request.mutable_query());
  SetTensor(numbers, Input::kKey, shape.key_elements(), {b, hkv, t, d},
            *request.mutable_key());
  SetTensor(numbers, Input::kValue, shape.value_elements(), {b, hkv, t, dv},
            *request.mutable_value());
  request.mutable_options()->set_layout(v1::LAYOUT_BHSD);
  request.mutable_options()->set_causal(causal);
  return OneSlice(request.SerializeAsString());
}

}  // namespace

double InputNumbers::At(Input input, int64_t index) const {
  const double number = Uniform(seed_, input, index);
  switch (type_) {
    case v1::DATA_TYPE_FLOAT16:
      return FromFloat16(ToFloat16(number));
    case v1::DATA_TYPE_BFLOAT16:
      return FromBFloat16(ToBFloat16(number));
    case v1::DATA_TYPE_FLOAT64:
      return number;
    default:
      return static_cast<float>(number);
  }
}

std::string InputNumbers::Bytes(Input input, int64_t count) const {
  switch (type_) {
    case v1::DATA_TYPE_FLOAT16:
      return Pack<uint16_t>(seed_, input, count, ToFloat16);
    case v1::DATA_TYPE_BFLOAT16:
      return Pack<uint16_t>(seed_, input, count, ToBFloat16);
    case v1::DATA_TYPE_FLOAT64:
      return Pack<double>(seed_, input, count, [](double x) { return x; });
    default:
      return Pack<float>(seed_, input, count,
                         [](double x) { return static_cast<float>(x); });
  }
}

absl::StatusOr<Workload> MakeWorkload(const std::vector<WeightedShape>& mix,
                                      v1::DataType type, v1::Causal causal,
                                      uint64_t seed) {
  Workload workload{InputNumbers(type, seed), causal, {}};
  for (const auto& [shape, weight] : mix) {
    absl::StatusOr<grpc::ByteBuffer> request =
        MakeRequest(shape, workload.numbers, causal);
    if (!request.ok()) return request.status();
    workload.kinds.push_back({FormatShape(shape),
                              "/attention.v1.AttentionService/ComputeAttention",
                              shape, *std::move(request), weight});
  }
  return workload;
}

Workload MakeHealthWorkload() {
  Workload workload{
      InputNumbers(v1::DATA_TYPE_FLOAT32, 0), v1::CAUSAL_UNSPECIFIED, {}};
  // The request's one field, the service's name, is empty: so are its bytes.
  workload.kinds.push_back(
      {"health", "/grpc.health.v1.Health/Check", {}, OneSlice(""), 1});
  return workload;
}

}  // namespace attention::cli
