#include "tests/support/textbook.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace attention::test {
namespace {

template <typename T>
std::vector<T> Values(const Tensor& tensor) {
  const std::vector<double> values = tensor.values();
  return {values.begin(), values.end()};
}

template <typename T>
Tensor TextbookIn(const AttentionCase& request) {
  const int64_t rows = request.query.shape()[2];
  const int64_t keys = request.key.shape()[2];
  const int64_t size = request.query.shape()[3];
  const int64_t value_size = request.value.shape()[3];
  const std::vector<T> q = Values<T>(request.query);
  const std::vector<T> k = Values<T>(request.key);
  const std::vector<T> v = Values<T>(request.value);
  const std::vector<T> mask =
      request.mask ? Values<T>(*request.mask) : std::vector<T>(rows * keys);
  const auto scale = static_cast<T>(
      request.options.scale.value_or(1 / std::sqrt(static_cast<double>(size))));
  const auto softcap = static_cast<T>(request.options.softcap);
  Tensor output(request.query.type(), {1, 1, rows, value_size});
  std::vector<T> weights(keys);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < keys; ++j) {
      T dot = 0;
      for (int64_t d = 0; d < size; ++d) {
        dot += q[i * size + d] * k[j * size + d];
      }
      T score = dot * scale;
      if (softcap > 0) score = softcap * std::tanh(score / softcap);
      weights[j] = score + mask[i * keys + j];
    }
    const T largest = *std::max_element(weights.begin(), weights.end());
    T sum = 0;
    for (T& weight : weights) {
      weight = std::exp(weight - largest);
      sum += weight;
    }
    for (T& weight : weights) weight /= sum;
    for (int64_t d = 0; d < value_size; ++d) {
      T out = 0;
      for (int64_t j = 0; j < keys; ++j) {
        out += weights[j] * v[j * value_size + d];
      }
      output.Set({0, 0, i, d}, static_cast<double>(out));
    }
  }
  return output;
}

}  // namespace

Tensor Textbook(const AttentionCase& request) {
  return request.query.type() == DataType::kFloat64
             ? TextbookIn<double>(request)
             : TextbookIn<float>(request);
}

}  // namespace attention::test
