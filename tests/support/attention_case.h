// Requests that tests own, made by hand or at random.
#ifndef ATTENTION_TESTS_SUPPORT_ATTENTION_CASE_H_
#define ATTENTION_TESTS_SUPPORT_ATTENTION_CASE_H_

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/tensor.h"

namespace attention::test {

// Seeded randomness, the same with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // In [low, high], both inclusive.
  int64_t Integer(int64_t low, int64_t high);
  // In [0, 1).
  double Real();
  // Standard normal.
  double Normal();
  bool Chance(double probability) { return Real() < probability; }
  template <typename T>
  T Pick(const std::vector<T>& from) {
    return from[Integer(0, static_cast<int64_t>(from.size()) - 1)];
  }
  // Normal numbers, rounded to `type`; small ones in the integer types,
  // fair coins in BOOL.
  Tensor NormalTensor(DataType type, Shape shape);

 private:
  std::mt19937_64 engine_;
};

// The sizes of a request, by the letters of kernel/attention.h.
struct Sizes {
  int64_t batch = 1;
  int64_t query_heads = 1;
  int64_t kv_heads = 1;
  int64_t query_length = 1;
  int64_t key_length = 1;  // new keys
  int64_t head_size = 1;
  int64_t value_head_size = 1;
};

// Shape of query, key or value with `heads`, `length` and `size` in `layout`,
// which is neither kByRank nor kRagged.
Shape ShapeIn(Layout layout, int64_t batch, int64_t heads, int64_t length,
              int64_t size);

// A type of query, key and value, and how to compute with it.
struct Kind {
  DataType type = DataType::kFloat32;
  MathMode math = MathMode::kReproducible;
};

// All that may differ in more than how types convert.
inline constexpr Kind kKinds[] = {{DataType::kFloat32},
                                  {DataType::kFloat16},
                                  {DataType::kBFloat16},
                                  {DataType::kBFloat16, MathMode::kFast},
                                  {DataType::kFloat64}};

// "FLOAT32", "BFLOAT16_FAST".
std::string Name(const Kind& kind);

// A request with its tensors.
struct AttentionCase {
  Tensor query;
  Tensor key;
  Tensor value;
  std::optional<Tensor> mask;
  std::optional<Tensor> past_key;
  std::optional<Tensor> past_value;
  std::optional<Tensor> indices;
  std::optional<Tensor> sinks;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  AttentionOptions options;

  // Refers to this object.
  AttentionInputs inputs() const;
  // Shapes, types and options, for a failing test's message.
  std::string ToString() const;
};

// Unit-normal query, key and value in layout BHSD.
AttentionCase NormalCase(Random& random, const Sizes& sizes,
                         DataType type = DataType::kFloat32);
AttentionCase NormalCase(Random& random, const Sizes& sizes, const Kind& kind);

// What RandomCase may draw.
struct RandomLimits {
  std::vector<DataType> types = {DataType::kFloat32, DataType::kFloat16,
                                 DataType::kBFloat16, DataType::kFloat64};
  std::vector<int64_t> query_lengths = {1, 1,  1,  2,  3,  5,
                                        7, 13, 14, 15, 17, 33};
  std::vector<int64_t> key_lengths = {1,  2,  7,   8,   9,   15,  16,  17, 31,
                                      33, 63, 130, 255, 256, 257, 511, 513};
  std::vector<int64_t> head_sizes = {1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 66};
  // Multiply-adds: sizes are drawn again where they come to more.
  int64_t max_work = 1000000;
  // Whether tensors may have strides and stand off their alignment.
  bool strided = true;
  // Whether there may be indices and sinks of each row.
  bool per_row = true;
};

// A valid request drawn over layouts, sizes, types and all options.
AttentionCase RandomCase(Random& random, const RandomLimits& limits = {});

// Indices of up to all `keys` of each of so many lists: (rows, count), or with
// the leading axes `axes` in place of rows.
Tensor RandomIndices(Random& random, Shape axes, int64_t keys);

// `request`, whose layout is not RAGGED, with a mask that hides what its
// indices do not select, in their place.
AttentionCase WithMaskForIndices(const AttentionCase& request);

// Mask of a random type that broadcasts to (B, Hq, S, T).
Tensor RandomMask(Random& random, Shape full);

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_ATTENTION_CASE_H_
