// The promise that bits depend on the request alone: not on threads, SIMD
// target, the other rows, heads and sequences of the call, nor on how its keys
// and queries are cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/executor.h"
#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Requests in layout BHSD, large enough for several tasks and blocks.
AttentionCase LargeCase(Random& random, const Kind& kind) {
  const Sizes sizes = {random.Integer(1, 3),
                       random.Pick<int64_t>({2, 4, 6}),
                       2,
                       random.Pick<int64_t>({1, 3, 40, 130}),
                       random.Pick<int64_t>({200, 256, 530, 800}),
                       random.Pick<int64_t>({8, 17, 64}),
                       random.Pick<int64_t>({8, 17, 64})};
  AttentionCase request = NormalCase(random, sizes, kind);
  AttentionOptions& options = request.options;
  options.return_log_sum_exp = true;
  options.causal = random.Pick<Causal>(
      {Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
  if (random.Chance(0.3)) options.window_left = random.Integer(0, 300);
  if (random.Chance(0.3)) options.window_right = random.Integer(0, 300);
  if (random.Chance(0.3)) options.softcap = 3;
  for (int64_t h = 0; h < sizes.query_heads; ++h) {
    if (random.Chance(0.3)) options.alibi_slopes.resize(sizes.query_heads, 0.1);
    if (random.Chance(0.3)) options.sinks.resize(sizes.query_heads, 0.5);
  }
  for (double& slope : options.alibi_slopes) slope = 0.1 * random.Real();
  for (double& sink : options.sinks) sink = random.Normal();
  if (random.Chance(0.4)) {
    request.mask = random.NormalTensor(
        random.Pick<DataType>({DataType::kBool, DataType::kFloat32,
                               DataType::kFloat16, DataType::kInt8}),
        {sizes.batch, sizes.query_heads, sizes.query_length, sizes.key_length});
  }
  if (random.Chance(0.3)) {
    options.return_scores = random.Pick<Scores>(
        {Scores::kRaw, Scores::kCapped, Scores::kBiased, Scores::kWeights});
  }
  return request;
}

TEST(SameBitsTest, AnyNumberOfThreads) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    AttentionCase request = LargeCase(random, kKinds[seed % 5]);
    if (seed % 3 == 0) request = RandomCase(random);
    const KernelResult one = RunKernel(request, 1);
    for (int threads : {2, 3, 8}) {
      ASSERT_TRUE(SameBits(RunKernel(request, threads), one))
          << threads << " threads: " << request.ToString();
    }
  }
}

TEST(SameBitsTest, AnySimdTarget) {
  for (uint64_t seed = 100; seed < 160; ++seed) {
    Random random(seed);
    const AttentionCase request = LargeCase(random, {kFloatTypes[seed % 4]});
    std::optional<KernelResult> first;
    for (const std::string& target : AllSimdTargets()) {
      const ScopedSimdTarget scope(target);
      const KernelResult result = RunKernel(request, 2);
      if (!first) first = result;
      ASSERT_TRUE(SameBits(result, *first))
          << target << ": " << request.ToString();
    }
  }
}

TEST(SameBitsTest, RunAgain) {
  Random random(1);
  const AttentionCase request = LargeCase(random, {DataType::kFloat32});
  Executor executor(2);
  const KernelResult first =
      RunKernel(request.inputs(), request.options, executor);
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(SameBits(RunKernel(request.inputs(), request.options, executor),
                         first));
  }
}

// Parts of a request, and of its answer.

Tensor SliceIfAxis(const Tensor& tensor, int axis_from_last, int64_t begin,
                   int64_t end) {
  const int axis = static_cast<int>(tensor.shape().size()) - axis_from_last;
  if (axis < 0 || tensor.shape()[axis] == 1) return tensor;
  return tensor.Slice(axis, begin, end);
}

KernelResult SliceResult(const KernelResult& whole, int axis, int64_t begin,
                         int64_t end) {
  KernelResult part;
  part.output = whole.output.Slice(axis, begin, end);
  part.log_sum_exp = whole.log_sum_exp->Slice(axis, begin, end);
  if (whole.scores) part.scores = whole.scores->Slice(axis, begin, end);
  return part;
}

int64_t OffsetOf(const AttentionCase& request) {
  if (request.options.causal != Causal::kBottomRight) return 0;
  return request.key.shape()[2] - request.query.shape()[2];
}

// Rows [begin, end) alone; the keys before their position given as past, so
// that positions stay as they were.
AttentionCase RowsAfterPast(const AttentionCase& whole, int64_t begin,
                            int64_t end) {
  AttentionCase part = whole;
  const int64_t keys = whole.key.shape()[2];
  const int64_t past = OffsetOf(whole) + begin;
  part.query = whole.query.Slice(2, begin, end);
  part.past_key = whole.key.Slice(2, 0, past);
  part.past_value = whole.value.Slice(2, 0, past);
  part.key = whole.key.Slice(2, past, keys);
  part.value = whole.value.Slice(2, past, keys);
  if (whole.mask) part.mask = SliceIfAxis(*whole.mask, 2, begin, end);
  if (whole.options.causal == Causal::kBottomRight) {
    part.options.causal = Causal::kTopLeft;
  }
  return part;
}

// Rows [begin, end) alone under a causal mask; the keys after the last of them
// hidden by a valid length, which says where the last row stands.
AttentionCase RowsBeforeValid(const AttentionCase& whole, int64_t begin,
                              int64_t end) {
  AttentionCase part = whole;
  part.query = whole.query.Slice(2, begin, end);
  part.valid_lengths.assign(whole.query.shape()[0], OffsetOf(whole) + end);
  if (whole.mask) part.mask = SliceIfAxis(*whole.mask, 2, begin, end);
  return part;
}

TEST(SameBitsTest, AnySplitOfQueryRows) {
  Executor executor(1);
  for (uint64_t seed = 200; seed < 250; ++seed) {
    Random random(seed);
    const AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    const KernelResult expected =
        RunKernel(whole.inputs(), whole.options, executor);
    const int64_t rows = whole.query.shape()[2];
    const bool one_by_one = seed % 3 == 0;
    for (int64_t begin = 0, end; begin < rows; begin = end) {
      end = one_by_one ? begin + 1 : random.Integer(begin + 1, rows);
      const KernelResult rows_expected = SliceResult(expected, 2, begin, end);
      const AttentionCase after_past = RowsAfterPast(whole, begin, end);
      ASSERT_TRUE(
          SameBits(RunKernel(after_past.inputs(), after_past.options, executor),
                   rows_expected))
          << "rows " << begin << " to " << end << " of " << whole.ToString();
      if (whole.options.causal == Causal::kNone) continue;
      const AttentionCase valid = RowsBeforeValid(whole, begin, end);
      ASSERT_TRUE(SameBits(RunKernel(valid.inputs(), valid.options, executor),
                           rows_expected))
          << "rows " << begin << " to " << end << " of " << whole.ToString();
    }
  }
}

AttentionCase OneOfBatch(const AttentionCase& whole, int64_t b) {
  AttentionCase part = whole;
  part.query = whole.query.Slice(0, b, b + 1);
  part.key = whole.key.Slice(0, b, b + 1);
  part.value = whole.value.Slice(0, b, b + 1);
  if (whole.mask) part.mask = SliceIfAxis(*whole.mask, 4, b, b + 1);
  if (!whole.valid_lengths.empty()) {
    part.valid_lengths = {whole.valid_lengths[b]};
  }
  return part;
}

TEST(SameBitsTest, AnyBatch) {
  for (uint64_t seed = 300; seed < 340; ++seed) {
    Random random(seed);
    AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    if (random.Chance(0.5)) {
      for (int64_t b = 0; b < whole.query.shape()[0]; ++b) {
        whole.valid_lengths.push_back(random.Integer(0, whole.key.shape()[2]));
      }
    }
    const KernelResult expected = RunKernel(whole, 2);
    for (int64_t b = 0; b < whole.query.shape()[0]; ++b) {
      ASSERT_TRUE(SameBits(RunKernel(OneOfBatch(whole, b)),
                           SliceResult(expected, 0, b, b + 1)))
          << "entry " << b << " of " << whole.ToString();
    }
  }
}

// One query head with its key/value head, alone instead of in a group.
AttentionCase OneHead(const AttentionCase& whole, int64_t h) {
  AttentionCase part = whole;
  const int64_t group = whole.query.shape()[1] / whole.key.shape()[1];
  part.query = whole.query.Slice(1, h, h + 1);
  part.key = whole.key.Slice(1, h / group, h / group + 1);
  part.value = whole.value.Slice(1, h / group, h / group + 1);
  if (whole.mask) part.mask = SliceIfAxis(*whole.mask, 3, h, h + 1);
  if (!whole.options.alibi_slopes.empty()) {
    part.options.alibi_slopes = {whole.options.alibi_slopes[h]};
  }
  if (!whole.options.sinks.empty()) {
    part.options.sinks = {whole.options.sinks[h]};
  }
  return part;
}

TEST(SameBitsTest, AnyHeads) {
  for (uint64_t seed = 400; seed < 440; ++seed) {
    Random random(seed);
    const AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    const KernelResult expected = RunKernel(whole, 2);
    for (int64_t h = 0; h < whole.query.shape()[1]; ++h) {
      ASSERT_TRUE(SameBits(RunKernel(OneHead(whole, h)),
                           SliceResult(expected, 1, h, h + 1)))
          << "head " << h << " of " << whole.ToString();
    }
  }
}

// The first `past` keys given as past.
AttentionCase WithPast(const AttentionCase& whole, int64_t past) {
  AttentionCase part = whole;
  const int64_t keys = whole.key.shape()[2];
  part.past_key = whole.key.Slice(2, 0, past);
  part.past_value = whole.value.Slice(2, 0, past);
  part.key = whole.key.Slice(2, past, keys);
  part.value = whole.value.Slice(2, past, keys);
  return part;
}

TEST(SameBitsTest, AnySplitOfKeysIntoPastAndNew) {
  for (uint64_t seed = 500; seed < 530; ++seed) {
    Random random(seed);
    AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    // The only alignment that does not depend on the past.
    whole.options.causal = Causal::kBottomRight;
    const KernelResult expected = RunKernel(whole, 2);
    const int64_t keys = whole.key.shape()[2];
    for (int64_t past :
         {int64_t{0}, int64_t{1}, int64_t{100}, int64_t{255}, int64_t{256},
          int64_t{257}, keys - 1, keys, random.Integer(0, keys)}) {
      if (past > keys) continue;
      ASSERT_TRUE(SameBits(RunKernel(WithPast(whole, past)), expected))
          << "past " << past << " of " << whole.ToString();
    }
  }
}

TEST(SameBitsTest, EverySplitOfKeysIntoPastAndNew) {
  for (const Kind& kind : kKinds) {
    Random random(531);
    AttentionCase whole = NormalCase(random, {1, 4, 2, 3, 530, 16, 16}, kind);
    whole.options.causal = Causal::kBottomRight;
    const KernelResult expected = RunKernel(whole);
    for (int64_t past = 0; past <= 530; ++past) {
      ASSERT_TRUE(SameBits(RunKernel(WithPast(whole, past)), expected)) << past;
    }
  }
}

// Masked keys at the end are as good as no keys.
TEST(SameBitsTest, AnyPaddingOfKeys) {
  for (uint64_t seed = 600; seed < 630; ++seed) {
    Random random(seed);
    AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    whole.options.return_scores = Scores::kNone;
    whole.options.causal = Causal::kBottomRight;
    const int64_t keys = whole.key.shape()[2];
    AttentionCase padded = whole;
    const int64_t padding = random.Integer(1, 300);
    const auto pad = [&](const Tensor& tensor, int axis, double with) {
      Shape shape = tensor.shape();
      shape[axis] = padding;
      Tensor tail(tensor.type(), shape);
      for (int64_t i = 0; i < tail.size(); ++i) tail.Set(i, with);
      return Concatenate({tensor, tail}, axis);
    };
    padded.key = pad(whole.key, 2, NAN);
    padded.value = pad(whole.value, 2, kInf);
    if (whole.mask) padded.mask = pad(*whole.mask, 3, 0);
    padded.valid_lengths.assign(whole.query.shape()[0], keys);
    ASSERT_TRUE(SameBits(RunKernel(padded), RunKernel(whole)))
        << padding << " keys after " << whole.ToString();
  }
}

// A mask that says what an option says.
TEST(SameBitsTest, MaskInsteadOfCausalWindowOrChunk) {
  for (uint64_t seed = 700; seed < 730; ++seed) {
    Random random(seed);
    AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    whole.mask.reset();
    // Only the bias decides what is masked, not what a tile could skip.
    const int64_t offset = OffsetOf(whole);
    if (seed % 2 == 0) {
      whole.options.chunk_size = random.Integer(1, whole.key.shape()[2] + 1);
    }
    AttentionCase masked = whole;
    masked.options.chunk_size = 0;
    masked.options.causal = Causal::kNone;
    masked.options.window_left = masked.options.window_right = -1;
    masked.options.alibi_slopes.clear();
    whole.options.alibi_slopes.clear();
    const int64_t rows = whole.query.shape()[2];
    const int64_t keys = whole.key.shape()[2];
    masked.mask = Tensor(DataType::kBool, {rows, keys});
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t distance = j - (i + offset);
        const AttentionOptions& o = whole.options;
        const int64_t n = o.chunk_size;
        const int64_t chunk_end = n == 0           ? keys
                                  : i + offset < 0 ? 0
                                                   : ((i + offset) / n + 1) * n;
        masked.mask->Set(
            {i, j}, (o.causal == Causal::kNone || distance <= 0) &&
                        (o.window_left < 0 || -distance <= o.window_left) &&
                        (o.window_right < 0 || distance <= o.window_right) &&
                        (n == 0 || (j < chunk_end && j >= chunk_end - n)));
      }
    }
    ASSERT_TRUE(SameBits(RunKernel(masked), RunKernel(whole)))
        << whole.ToString();
  }
}

// 16-bit inputs are computed as the float32 numbers they are.
TEST(SameBitsTest, HalvesAreConvertedExactly) {
  for (uint64_t seed = 800; seed < 840; ++seed) {
    Random random(seed);
    const DataType type =
        seed % 2 == 0 ? DataType::kFloat16 : DataType::kBFloat16;
    AttentionCase halves = LargeCase(random, {type});
    if (random.Chance(0.3)) {
      halves.value = halves.value.ConvertedTo(DataType::kFloat32);
    }
    AttentionCase floats = halves;
    floats.query = halves.query.ConvertedTo(DataType::kFloat32);
    floats.key = halves.key.ConvertedTo(DataType::kFloat32);
    floats.value = halves.value.ConvertedTo(DataType::kFloat32);
    KernelResult expected = RunKernel(floats);
    expected.output = expected.output.ConvertedTo(type);
    if (expected.scores) expected.scores = expected.scores->ConvertedTo(type);
    ASSERT_TRUE(SameBits(RunKernel(halves), expected)) << halves.ToString();
  }
}

Tensor SwapAxes12(const Tensor& tensor) {
  const Shape& s = tensor.shape();
  Tensor result(tensor.type(), {s[0], s[2], s[1], s[3]});
  for (int64_t b = 0; b < s[0]; ++b)
    for (int64_t h = 0; h < s[1]; ++h)
      for (int64_t i = 0; i < s[2]; ++i)
        for (int64_t d = 0; d < s[3]; ++d)
          result.Set({b, i, h, d}, tensor.Get({b, h, i, d}));
  return result;
}

Tensor Reshaped(const Tensor& tensor, Shape shape) {
  return Tensor(tensor.type(), std::move(shape), tensor.values());
}

TEST(SameBitsTest, AnyLayout) {
  for (uint64_t seed = 900; seed < 930; ++seed) {
    Random random(seed);
    const AttentionCase bhsd = LargeCase(random, kKinds[seed % 5]);
    const KernelResult result = RunKernel(bhsd, 2);
    AttentionCase bshd = bhsd;
    bshd.options.layout = Layout::kBSHD;
    bshd.query = SwapAxes12(bhsd.query);
    bshd.key = SwapAxes12(bhsd.key);
    bshd.value = SwapAxes12(bhsd.value);
    KernelResult expected = result;
    expected.output = SwapAxes12(result.output);
    ASSERT_TRUE(SameBits(RunKernel(bshd), expected)) << bshd.ToString();

    AttentionCase packed = bshd;
    packed.options.layout = Layout::kPacked;
    packed.options.query_heads = bhsd.query.shape()[1];
    packed.options.kv_heads = bhsd.key.shape()[1];
    const auto pack = [](const Tensor& t) {
      const Shape& s = t.shape();
      return Reshaped(t, {s[0], s[1], s[2] * s[3]});
    };
    packed.query = pack(bshd.query);
    packed.key = pack(bshd.key);
    packed.value = pack(bshd.value);
    expected.output = pack(expected.output);
    ASSERT_TRUE(SameBits(RunKernel(packed), expected)) << packed.ToString();
  }
}

// Sequences of a ragged request against each of them alone.
TEST(SameBitsTest, AnyRaggedNeighbours) {
  for (uint64_t seed = 1000; seed < 1030; ++seed) {
    Random random(seed);
    AttentionCase whole = LargeCase(random, kKinds[seed % 5]);
    whole.mask.reset();
    whole.options.return_scores = Scores::kNone;
    whole.options.layout = Layout::kRagged;
    const DataType type = whole.query.type();
    const int64_t heads = whole.query.shape()[1];
    const int64_t size = whole.query.shape()[3];
    const int64_t value_size = whole.value.shape()[3];
    whole.query_starts = {0, 1, 1, 70, 71};
    whole.key_starts = {0, 300, 310, 840, 1100};
    whole.query = random.NormalTensor(type, {71, heads, size});
    whole.key = random.NormalTensor(type, {1100, 2, size});
    whole.value = random.NormalTensor(type, {1100, 2, value_size});
    const KernelResult expected = RunKernel(whole, 2);
    for (int b = 0; b < 4; ++b) {
      const int64_t begin = whole.query_starts[b];
      const int64_t end = whole.query_starts[b + 1];
      const int64_t keys = whole.key_starts[b + 1] - whole.key_starts[b];
      AttentionCase alone;
      alone.options = whole.options;
      alone.options.layout = Layout::kBSHD;
      alone.query = Reshaped(whole.query.Slice(0, begin, end),
                             {1, end - begin, heads, size});
      const auto keys_of = [&](const Tensor& t, int64_t columns) {
        return Reshaped(
            t.Slice(0, whole.key_starts[b], whole.key_starts[b + 1]),
            {1, keys, 2, columns});
      };
      alone.key = keys_of(whole.key, size);
      alone.value = keys_of(whole.value, value_size);
      const KernelResult result = RunKernel(alone);
      ASSERT_TRUE(
          SameBits(Reshaped(result.output, {end - begin, heads, value_size}),
                   expected.output.Slice(0, begin, end)))
          << "sequence " << b << " of " << whole.ToString();
    }
  }
}

// Strides and alignment.
TEST(SameBitsTest, AnyPlacement) {
  for (uint64_t seed = 1100; seed < 1130; ++seed) {
    Random random(seed);
    const AttentionCase plain = LargeCase(random, kKinds[seed % 5]);
    AttentionCase placed = plain;
    for (Tensor* tensor : {&placed.query, &placed.key, &placed.value}) {
      Shape strides = RowMajorStrides(tensor->shape());
      for (int axis : {2, 1, 0}) {
        strides[axis] =
            strides[axis + 1] * tensor->shape()[axis + 1] + axis + 1;
      }
      *tensor = tensor->PlacedAs({strides, random.Integer(0, 5), 0});
    }
    ASSERT_TRUE(SameBits(RunKernel(placed), RunKernel(plain)))
        << placed.ToString();
  }
}

// A stride of zero repeats one key/value head for all.
TEST(SameBitsTest, StrideZero) {
  Random random(2);
  AttentionCase one = NormalCase(random, {2, 4, 1, 20, 300, 16, 16});
  AttentionInputs repeated = one.inputs();
  for (ConstTensorView* view : {&repeated.key, &repeated.value}) {
    view->shape[1] = 4;
    view->strides = {300 * 16, 0, 16, 1};
  }
  Executor executor(0);
  EXPECT_TRUE(
      SameBits(RunKernel(repeated, one.options, executor), RunKernel(one)));
}

// A task can be left after each block of keys, so that a long one holds up
// nobody.
TEST(SameBitsTest, TasksLeftAfterEachBlock) {
  Random random(4);
  for (const Kind& kind : kKinds) {
    for (int64_t rows : {1, 40, 250}) {
      for (int64_t keys : {200, 530, 1030}) {
        AttentionCase request =
            NormalCase(random, {2, 2, 1, rows, keys, 16, 24}, kind);
        request.options.return_scores = Scores::kWeights;
        request.options.sinks = {0.5, 2};
        const AttentionPlan plan =
            PlanAttention(request.inputs(), request.options).value();
        const KernelResult expected = RunKernel(request);
        for (int threads : {1, 8}) {
          KernelResult result;
          result.output = Tensor(plan.output.type, plan.output.shape);
          result.scores = Tensor(plan.scores->type, plan.scores->shape);
          AttentionOutputs outputs;
          outputs.output = result.output.data();
          outputs.scores = result.scores->data();
          absl::Status status = absl::UnknownError("not done");
          const auto job =
              MakeAttentionJob(plan, outputs, threads,
                               [&](const absl::Status& end) { status = end; });
          const Turns count = RunInShortestTurns(job.get());
          ASSERT_TRUE(status.ok()) << status;
          ASSERT_TRUE(SameBits(result, expected)) << request.ToString();
          // Each block comes twice, for its scores again. For one thread no
          // keys are cut, so that every task has all blocks.
          const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
          if (threads == 1) {
            EXPECT_EQ(count.turns, count.tasks * (2 * blocks - 1));
          }
        }
      }
    }
  }
}

// Whatever else is asked for.
TEST(SameBitsTest, AnyOtherOutputs) {
  Random random(3);
  for (const Kind& kind : kKinds) {
    AttentionCase request = LargeCase(random, kind);
    const KernelResult expected = RunKernel(request);
    for (int stage = 0; stage <= 4; ++stage) {
      request.options.return_scores = static_cast<Scores>(stage);
      request.options.return_present = stage % 2 == 0;
      const KernelResult actual = RunKernel(request);
      ASSERT_TRUE(SameBits(actual.output, expected.output));
      ASSERT_TRUE(SameBits(*actual.log_sum_exp, *expected.log_sum_exp));
    }
    request.options.return_log_sum_exp = false;
    ASSERT_TRUE(SameBits(RunKernel(request).output, expected.output));
  }
}

}  // namespace
}  // namespace attention::test
