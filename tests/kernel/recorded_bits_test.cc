// Answers whose bits were recorded: the same on every CPU and architecture, and
// from one version to the next unless the change says otherwise.
#include <gtest/gtest.h>

#include <cstdint>
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

struct Recorded {
  std::string name;
  DataType type;
  uint64_t hash;
};

// Three blocks of keys, all steps on the scores, a head size that fills no
// vector.
AttentionCase Request(DataType type) {
  Random random(7);
  AttentionCase request;
  request.query = UniformTensor(random, type, {2, 4, 33, 20});
  request.key = UniformTensor(random, type, {2, 2, 700, 20});
  request.value = UniformTensor(random, type, {2, 2, 700, 24});
  request.mask = UniformTensor(random, DataType::kFloat32, {33, 700});
  AttentionOptions& options = request.options;
  options.causal = Causal::kBottomRight;
  options.window_left = 600;
  options.softcap = 2.5;
  options.alibi_slopes = {0.5, 0.25, 0.125, 0.0625};
  options.sinks = {0.5, -1, 2, 0};
  options.return_log_sum_exp = true;
  options.return_scores = Scores::kWeights;
  return request;
}

class RecordedBitsTest : public testing::TestWithParam<Recorded> {};

TEST_P(RecordedBitsTest, AreTheSameHere) {
  const AttentionCase request = Request(GetParam().type);
  for (const std::string& target : AllSimdTargets()) {
    const ScopedSimdTarget scope(target);
    const KernelResult result = RunKernel(request);
    uint64_t hash = 0xcbf29ce484222325;
    hash = Hash(hash, result.output);
    hash = Hash(hash, *result.log_sum_exp);
    hash = Hash(hash, *result.scores);
    EXPECT_EQ(hash, GetParam().hash) << target << std::hex << " 0x" << hash;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types, RecordedBitsTest,
    testing::Values(
        Recorded{"Float32", DataType::kFloat32, 0x301736f6ca09e9a3},
        Recorded{"Float16", DataType::kFloat16, 0x8f05721b653c8e77},
        Recorded{"BFloat16", DataType::kBFloat16, 0x78e6f280dbfc99df},
        Recorded{"Float64", DataType::kFloat64, 0xc040975bffca1a86}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace attention::test
