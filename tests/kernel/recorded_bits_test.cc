// Answers whose bits were recorded: the same on every CPU and architecture, and
// from one version to the next unless the change says otherwise.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

// Uniform in [-2, 2), in multiples of 2^-10: every type but BFLOAT16 holds them
// exactly, and no library function made them.
Tensor UniformTensor(Random& random, DataType type, const Shape& shape) {
  Tensor tensor(type, shape);
  std::vector<double> values(tensor.size());
  for (double& value : values) {
    value = static_cast<double>(random.Integer(-2048, 2047)) / 1024;
  }
  return Tensor(type, shape, values);
}

// FNV-1a of the elements, in row-major order.
uint64_t Hash(uint64_t hash, const Tensor& tensor) {
  const auto* bytes = static_cast<const uint8_t*>(tensor.view().data);
  for (size_t i = 0; i < tensor.size() * SizeOf(tensor.type()); ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001b3;
  }
  return hash;
}

// Sizes, query's and key's type, value's type.
AttentionCase Uniform(const Sizes& s, DataType type, DataType value_type) {
  Random random(7);
  AttentionCase request;
  request.query = UniformTensor(
      random, type, {s.batch, s.query_heads, s.query_length, s.head_size});
  request.key = UniformTensor(random, type,
                              {s.batch, s.kv_heads, s.key_length, s.head_size});
  request.value =
      UniformTensor(random, value_type,
                    {s.batch, s.kv_heads, s.key_length, s.value_head_size});
  request.options.return_log_sum_exp = true;
  return request;
}

// Three blocks of keys, all steps on the scores, a head size that fills no
// vector.
AttentionCase EveryStep(DataType type) {
  AttentionCase request = Uniform({2, 4, 2, 33, 700, 20, 24}, type, type);
  Random random(8);
  request.mask = UniformTensor(random, DataType::kFloat32, {33, 700});
  AttentionOptions& options = request.options;
  options.causal = Causal::kBottomRight;
  options.window_left = 600;
  options.softcap = 2.5;
  options.alibi_slopes = {0.5, 0.25, 0.125, 0.0625};
  options.sinks = {0.5, -1, 2, 0};
  options.return_scores = Scores::kWeights;
  return request;
}

// Nothing but the four steps.
AttentionCase Plain(DataType type, DataType value_type) {
  return Uniform({1, 2, 2, 130, 300, 64, 64}, type, value_type);
}

// A decoding step over a tree of five levels.
AttentionCase Decode(DataType type) {
  return Uniform({1, 8, 2, 1, 5000, 64, 64}, type, type);
}

AttentionCase Masked(DataType mask_type, const Shape& mask_shape) {
  AttentionCase request = Uniform({2, 2, 1, 15, 530, 16, 16},
                                  DataType::kFloat32, DataType::kFloat32);
  Random random(9);
  request.mask = Tensor(mask_type, mask_shape);
  const int64_t lowest = mask_type == DataType::kBool ? 0 : -3;
  for (int64_t i = 0; i < request.mask->size(); ++i) {
    const int64_t value = random.Integer(lowest, lowest == 0 ? 1 : 3);
    const bool masked = IsFloat(mask_type) && value == lowest;
    request.mask->Set(i, masked ? -std::numeric_limits<double>::infinity()
                                : static_cast<double>(value));
  }
  return request;
}

AttentionCase Returning(Scores scores) {
  AttentionCase request = Masked(DataType::kFloat16, {15, 530});
  request.options.softcap = 3;
  request.options.return_scores = scores;
  return request;
}

AttentionCase OddSizes(DataType type) {
  AttentionCase request = Uniform({3, 3, 1, 37, 517, 13, 7}, type, type);
  request.options.causal = Causal::kTopLeft;
  request.options.scale = -0.3;
  return request;
}

AttentionCase ValidLengths() {
  AttentionCase request = Uniform({3, 2, 1, 9, 600, 16, 16},
                                  DataType::kBFloat16, DataType::kBFloat16);
  request.valid_lengths = {0, 257, 600};
  request.options.causal = Causal::kBottomRight;
  return request;
}

AttentionCase PastAndWindow() {
  AttentionCase request = Uniform({2, 4, 2, 20, 300, 32, 32},
                                  DataType::kFloat16, DataType::kFloat16);
  Random random(10);
  for (std::optional<Tensor>* past : {&request.past_key, &request.past_value}) {
    *past = UniformTensor(random, DataType::kFloat16, {2, 2, 777, 32});
  }
  request.options.window_left = 500;
  request.options.window_right = 30;
  request.options.return_present = true;
  return request;
}

AttentionCase Ragged() {
  AttentionCase request;
  Random random(11);
  request.query = UniformTensor(random, DataType::kFloat32, {131, 4, 24});
  request.key = UniformTensor(random, DataType::kFloat32, {1900, 2, 24});
  request.value = UniformTensor(random, DataType::kFloat32, {1900, 2, 24});
  request.query_starts = {0, 1, 1, 131};
  request.key_starts = {0, 1200, 1210, 1900};
  request.options.layout = Layout::kRagged;
  request.options.causal = Causal::kBottomRight;
  request.options.return_log_sum_exp = true;
  return request;
}

// Where the bits change for a good reason, a failing case prints the new hash.
struct Recorded {
  std::string name;
  AttentionCase request;
  uint64_t hash;
};

std::ostream& operator<<(std::ostream& out, const Recorded& recorded) {
  return out << recorded.request.ToString();
}

class RecordedBitsTest : public testing::TestWithParam<Recorded> {};

TEST_P(RecordedBitsTest, AreTheSameHere) {
  for (const std::string& target : AllSimdTargets()) {
    const ScopedSimdTarget scope(target);
    const KernelResult result = RunKernel(GetParam().request);
    uint64_t hash = Hash(0xcbf29ce484222325, result.output);
    for (const std::optional<Tensor>& tensor :
         {result.log_sum_exp, result.scores, result.present_key,
          result.present_value}) {
      if (tensor) hash = Hash(hash, *tensor);
    }
    EXPECT_EQ(hash, GetParam().hash) << target << std::hex << " 0x" << hash;
  }
}

constexpr DataType kF32 = DataType::kFloat32;
constexpr DataType kF16 = DataType::kFloat16;
constexpr DataType kBF16 = DataType::kBFloat16;
constexpr DataType kF64 = DataType::kFloat64;

INSTANTIATE_TEST_SUITE_P(
    Cases, RecordedBitsTest,
    testing::Values(
        Recorded{"EveryStepFloat32", EveryStep(kF32), 0xe6ec149007824156},
        Recorded{"EveryStepFloat16", EveryStep(kF16), 0x41c84456d4841e25},
        Recorded{"EveryStepBFloat16", EveryStep(kBF16), 0xb4dff0eb47c066a7},
        Recorded{"EveryStepFloat64", EveryStep(kF64), 0x93ef46e4a2244e67},
        Recorded{"PlainFloat32", Plain(kF32, kF32), 0x68b5a0d1babf7a28},
        Recorded{"PlainFloat16", Plain(kF16, kF16), 0xd4cc0e9b1446ded7},
        Recorded{"PlainBFloat16", Plain(kBF16, kBF16), 0x22fea45a55140ce7},
        Recorded{"PlainFloat64", Plain(kF64, kF64), 0x5861f7f1ba9c8b},
        Recorded{"Float16WithFloat32", Plain(kF16, kF32), 0xd4cc0e9b1446ded7},
        Recorded{"Float32WithBFloat16", Plain(kF32, kBF16), 0xbbe2b32ce629ef9b},
        Recorded{"BFloat16WithFloat64", Plain(kBF16, kF64), 0x6eb03cc5b9a2b41f},
        Recorded{"DecodeFloat32", Decode(kF32), 0xe405f4ce7f15f125},
        Recorded{"DecodeFloat16", Decode(kF16), 0xe0b389b68c09d8d1},
        Recorded{"DecodeBFloat16", Decode(kBF16), 0xb1651be3ef633660},
        Recorded{"DecodeFloat64", Decode(kF64), 0x54f9a4fce3afb094},
        Recorded{"MaskOfBool", Masked(DataType::kBool, {2, 2, 15, 530}),
                 0x40a55c2071f67bf9},
        Recorded{"MaskOfInt8", Masked(DataType::kInt8, {2, 1, 530}),
                 0xe40eea3e23142337},
        Recorded{"MaskOfInt32", Masked(DataType::kInt32, {15, 400}),
                 0x7d0a8b08c9f13b3d},
        Recorded{"MaskOfInt64", Masked(DataType::kInt64, {530}),
                 0x432d6f16f997c8c4},
        Recorded{"MaskOfBFloat16", Masked(kBF16, {2, 1, 1, 530}),
                 0x8fa0605b4319512c},
        Recorded{"MaskOfFloat64", Masked(kF64, {1, 530}), 0xe080d3e26cabc1c},
        Recorded{"ScoresRaw", Returning(Scores::kRaw), 0xddab46d7e2b952c8},
        Recorded{"ScoresCapped", Returning(Scores::kCapped),
                 0x7c2ae2219644cb5a},
        Recorded{"ScoresBiased", Returning(Scores::kBiased),
                 0x7774045397fcd2ef},
        Recorded{"OddSizesFloat32", OddSizes(kF32), 0x16a5473963b8239e},
        Recorded{"OddSizesFloat64", OddSizes(kF64), 0x30b9748621867e69},
        Recorded{"ValidLengths", ValidLengths(), 0x3ea99b3b3c7ce5b3},
        Recorded{"PastAndWindow", PastAndWindow(), 0x3cca43eca701c0f3},
        Recorded{"Ragged", Ragged(), 0x5297d282436dfe54}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace attention::test
