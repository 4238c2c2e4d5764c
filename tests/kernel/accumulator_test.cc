// Accumulator: keys that come block by block, and parts of the keys that are
// merged, give the bits of the whole.
#include "kernel/accumulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernel/attention.h"
#include "kernel/parts.h"
#include "kernel/plan/problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/key_blocks.h"
#include "tests/support/run_kernel.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

AttentionPlan PlanOf(const AttentionCase& request) {
  return PlanAttention(WithoutKeys(request), request.options).value();
}

// Tensors for what a plan writes.
class Answer {
 public:
  explicit Answer(const AttentionPlan& plan) {
    result_.output = Guarded(plan.output);
    if (plan.log_sum_exp) result_.log_sum_exp = Guarded(*plan.log_sum_exp);
  }

  AttentionOutputs outputs() {
    AttentionOutputs outputs;
    outputs.output = result_.output.data();
    if (result_.log_sum_exp) outputs.log_sum_exp = result_.log_sum_exp->data();
    return outputs;
  }
  const KernelResult& result() const {
    EXPECT_TRUE(result_.output.GuardsIntact());
    EXPECT_TRUE(!result_.log_sum_exp || result_.log_sum_exp->GuardsIntact());
    return result_;
  }

 private:
  static Tensor Guarded(const TensorSpec& spec) {
    return Tensor(spec.type, spec.shape, Tensor::Placement{{}, 3, 64});
  }

  KernelResult result_;
};

// Ascending keys, the first `begin` and the last `end`; multiples of blocks.
std::vector<int64_t> RandomCuts(Random& random, int64_t begin, int64_t end) {
  std::vector<int64_t> cuts = {begin};
  while (cuts.back() < end) {
    const int64_t blocks = random.Pick<int64_t>({0, 1, 1, 2, 3, 5});
    cuts.push_back(std::min(end, cuts.back() + blocks * kKeyBlock));
  }
  return cuts;
}

bool IsRagged(const AttentionCase& request) {
  return request.options.layout == Layout::kRagged;
}

// Adds keys [begin, end) of all sequences, in pieces cut at random.
absl::Status AddAll(Random& random, const AttentionCase& request, int64_t begin,
                    int64_t end, Accumulator& accumulator, Executor& executor) {
  const int64_t sequences = SequencesOf(request);
  const auto add = [&](int64_t first, int64_t last, int64_t length) {
    const std::vector<int64_t> cuts =
        RandomCuts(random, std::min(begin, length), std::min(end, length));
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const KeyBlocks keys(random, request, first, last, cuts[i], cuts[i + 1]);
      const absl::Status status = accumulator.Add(keys.added(), executor);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  };
  if (!IsRagged(request)) {
    return add(0, sequences, sequences == 0 ? 0 : KeysOf(request, 0));
  }
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    absl::Status status =
        add(sequence, sequence + 1, KeysOf(request, sequence));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

KernelResult Accumulated(Random& random, const AttentionCase& request,
                         Executor& executor) {
  const AttentionPlan plan = PlanOf(request);
  Answer answer(plan);
  absl::StatusOr<Accumulator> accumulator =
      Accumulator::Create(plan, answer.outputs());
  EXPECT_TRUE(accumulator.ok()) << accumulator.status();
  absl::Status status =
      AddAll(random, request, 0, kNoEnd, *accumulator, executor);
  EXPECT_TRUE(status.ok()) << status;
  status = accumulator->Finish(executor);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(accumulator->finished_queries(), plan.problem->query_length);
  return answer.result();
}

// A request that an accumulator takes, its sequences some blocks long.
AttentionCase LongCase(Random& random) {
  RandomLimits limits;
  limits.key_lengths = {1, 255, 256, 257, 511, 513, 800, 1024, 1300, 2600};
  limits.query_lengths = {1, 1, 3, 15, 40, 120};
  limits.head_sizes = {1, 3, 8, 16, 17};
  limits.max_work = 4000000;
  AttentionCase request = RandomCase(random, limits);
  request.options.return_scores = Scores::kNone;
  request.options.return_present = false;
  request.options.return_log_sum_exp = true;
  return request;
}

TEST(AccumulatorTest, AnyRequestInAnyPieces) {
  int ragged = 0, masks = 0, pasts = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const AttentionCase request = LongCase(random);
    ragged += IsRagged(request);
    masks += request.mask.has_value();
    pasts += request.past_key.has_value();
    Executor executor(random.Pick<int>({0, 1, 3}));
    ASSERT_TRUE(
        SameBits(Accumulated(random, request, executor), RunKernel(request, 2)))
        << request.ToString();
  }
  EXPECT_GT(ragged, 20);
  EXPECT_GT(masks, 20);
  EXPECT_GT(pasts, 20);
}

TEST(AccumulatorTest, EveryKind) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const Sizes sizes = {random.Integer(1, 2),
                         random.Pick<int64_t>({2, 4}),
                         2,
                         random.Pick<int64_t>({1, 5, 120, 500}),
                         random.Pick<int64_t>({1, 255, 256, 257, 1300, 2600}),
                         random.Pick<int64_t>({4, 18}),
                         random.Pick<int64_t>({3, 16})};
    AttentionCase request = NormalCase(random, sizes, kKinds[seed % 5]);
    AttentionOptions& options = request.options;
    options.return_log_sum_exp = true;
    options.causal = random.Pick<Causal>(
        {Causal::kNone, Causal::kTopLeft, Causal::kBottomRight});
    if (random.Chance(0.4)) options.window_left = random.Integer(0, 700);
    Executor executor(1);
    ASSERT_TRUE(
        SameBits(Accumulated(random, request, executor), RunKernel(request, 2)))
        << request.ToString();
  }
}

TEST(AccumulatorTest, TasksLeftAfterEachBlock) {
  Random random(5);
  for (const Kind& kind : kKinds) {
    AttentionCase request =
        NormalCase(random, {2, 4, 2, 70, 1800, 16, 24}, kind);
    request.options.causal = Causal::kBottomRight;
    request.options.sinks = {1, 2, 0, -1};
    const AttentionPlan plan = PlanOf(request);
    Answer answer(plan);
    Accumulator accumulator =
        Accumulator::Create(plan, answer.outputs()).value();
    absl::Status status;
    const auto done = [&](const absl::Status& end) { status.Update(end); };
    for (const auto& [begin, end] :
         {std::pair(0, 1024), std::pair(1024, 1280), std::pair(1280, 1800)}) {
      const KeyBlocks keys(random, request, 0, 2, begin, end);
      const auto job = accumulator.MakeAddJob(keys.added(), 3, done).value();
      RunInShortestTurns(job.get());
    }
    RunInShortestTurns(accumulator.MakeFinishJob(3, done).value().get());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(SameBits(answer.result(), RunKernel(request)));
  }
}

// Rows [0, rows) of the output's axis 2.
Tensor FirstRows(const Tensor& output, int64_t rows) {
  return output.Slice(2, 0, rows);
}

TEST(AccumulatorTest, RowsAreFinishedAsSoonAsTheyCanBe) {
  Random random(6);
  AttentionCase request = NormalCase(random, {2, 4, 2, 1500, 1500, 8, 8});
  request.options.causal = Causal::kTopLeft;
  const KernelResult expected = RunKernel(request, 2);
  const AttentionPlan plan = PlanOf(request);
  Answer answer(plan);
  Accumulator accumulator = Accumulator::Create(plan, answer.outputs()).value();
  Executor executor(1);
  EXPECT_EQ(accumulator.finished_queries(), 0);
  for (int64_t begin = 0; begin < 1500; begin += kKeyBlock) {
    const int64_t end = std::min<int64_t>(1500, begin + kKeyBlock);
    const KeyBlocks keys(random, request, 0, 2, begin, end);
    ASSERT_TRUE(accumulator.Add(keys.added(), executor).ok());
    const int64_t finished = accumulator.finished_queries();
    EXPECT_LE(finished, end);
    // A task has at most 224 queries of two heads.
    EXPECT_GT(finished, end - 225);
    EXPECT_TRUE(SameBits(FirstRows(answer.result().output, finished),
                         FirstRows(expected.output, finished)));
  }
  EXPECT_EQ(accumulator.finished_queries(), 1500);
}

TEST(AccumulatorTest, RaggedSequencesAreFinishedOneAfterTheOther) {
  Random random(7);
  AttentionCase request;
  request.options.layout = Layout::kRagged;
  request.query_starts = {0, 1, 1, 20, 45, 50, 50};
  request.key_starts = {0, 700, 720, 720, 1000, 2100, 2100};
  request.query = random.NormalTensor(DataType::kFloat16, {50, 4, 8});
  request.key = random.NormalTensor(DataType::kFloat16, {2100, 2, 8});
  request.value = random.NormalTensor(DataType::kFloat16, {2100, 2, 8});
  const AttentionPlan plan = PlanOf(request);
  Answer answer(plan);
  Accumulator accumulator = Accumulator::Create(plan, answer.outputs()).value();
  Executor executor(1);
  // Sequence 2 has no keys, and is finished with the next that has.
  const std::vector<std::pair<int64_t, int64_t>> finished = {
      {0, 1}, {1, 1}, {3, 45}, {4, 50}};
  for (const auto& [sequence, queries] : finished) {
    const KeyBlocks keys(random, request, sequence, sequence + 1, 0, kNoEnd);
    ASSERT_TRUE(accumulator.Add(keys.added(), executor).ok());
    EXPECT_EQ(accumulator.finished_queries(), queries) << sequence;
  }
  ASSERT_TRUE(accumulator.Finish(executor).ok());
  EXPECT_TRUE(SameBits(answer.result(), RunKernel(request)));
}

// Several at once, and in any order.
TEST(AccumulatorTest, RaggedSequencesInAnyOrder) {
  Random random(8);
  AttentionCase request;
  request.options.layout = Layout::kRagged;
  request.options.return_log_sum_exp = true;
  request.options.causal = Causal::kBottomRight;
  request.query_starts = {0, 1, 20, 20, 25};
  request.key_starts = {0, 700, 720, 1000, 2100};
  request.query = random.NormalTensor(DataType::kFloat32, {25, 4, 8});
  request.key = random.NormalTensor(DataType::kFloat32, {2100, 2, 8});
  request.value = random.NormalTensor(DataType::kFloat32, {2100, 2, 8});
  const AttentionPlan plan = PlanOf(request);
  Answer answer(plan);
  Accumulator accumulator = Accumulator::Create(plan, answer.outputs()).value();
  Executor executor(1);
  const auto add = [&](int64_t first, int64_t last, int64_t begin,
                       int64_t end) {
    const KeyBlocks keys(random, request, first, last, begin, end);
    const absl::Status status = accumulator.Add(keys.added(), executor);
    ASSERT_TRUE(status.ok()) << status;
  };
  add(3, 4, 0, 512);
  add(1, 3, 0, kNoEnd);
  add(3, 4, 512, kNoEnd);
  EXPECT_EQ(accumulator.finished_queries(), 0);
  add(0, 1, 0, kNoEnd);
  EXPECT_EQ(accumulator.finished_queries(), 25);
  EXPECT_TRUE(SameBits(answer.result(), RunKernel(request)));
}

TEST(AccumulatorTest, NoKeysAndNoRows) {
  Random random(9);
  Executor executor(1);
  for (const Sizes& sizes :
       {Sizes{1, 2, 1, 3, 0, 8, 8}, Sizes{0, 2, 1, 3, 600, 8, 8},
        Sizes{2, 2, 1, 0, 600, 8, 8}}) {
    const AttentionCase request = NormalCase(random, sizes);
    EXPECT_TRUE(
        SameBits(Accumulated(random, request, executor), RunKernel(request)));
  }
}

// The partials of keys [begin, end).
absl::StatusOr<std::vector<Partial>> PartOf(Random& random,
                                            const AttentionCase& request,
                                            int64_t begin, int64_t end,
                                            Executor& executor) {
  absl::StatusOr<Accumulator> part =
      Accumulator::CreatePart(PlanOf(request), {begin, end});
  if (!part.ok()) return part.status();
  absl::Status status = AddAll(random, request, begin, end, *part, executor);
  if (!status.ok()) return status;
  return std::move(*part).Export(executor);
}

// Parts by accumulators of their own, on other threads and, unless the math is
// FAST, other SIMD targets; some keys are added, not merged.
void ExpectPartsMerge(Random& random, const AttentionCase& request) {
  const std::vector<std::string> targets =
      request.options.math_mode == MathMode::kFast
          ? std::vector<std::string>{std::string(SimdTarget())}
          : AllSimdTargets();
  const KernelResult expected = RunKernel(request, 2);
  int64_t keys = 0;
  for (int64_t b = 0; b < SequencesOf(request); ++b) {
    keys = std::max(keys, KeysOf(request, b));
  }
  for (int round = 0; round < 3; ++round) {
    const std::vector<int64_t> cuts = RandomCuts(random, 0, keys);
    const AttentionPlan plan = PlanOf(request);
    Answer answer(plan);
    Executor executor(1);
    Accumulator whole = Accumulator::Create(plan, answer.outputs()).value();
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (random.Chance(0.3) && !IsRagged(request)) {
        const absl::Status added =
            AddAll(random, request, cuts[i], cuts[i + 1], whole, executor);
        ASSERT_TRUE(added.ok()) << added;
        continue;
      }
      absl::StatusOr<std::vector<Partial>> partials;
      {
        const ScopedSimdTarget target(random.Pick(targets));
        Executor other(random.Pick<int>({0, 1, 7}));
        partials = PartOf(random, request, cuts[i], cuts[i + 1], other);
      }
      ASSERT_TRUE(partials.ok()) << partials.status();
      for (const Partial& partial : *partials) {
        const absl::Status merged = whole.Merge(partial, executor);
        ASSERT_TRUE(merged.ok()) << merged;
      }
    }
    const absl::Status status = whole.Finish(executor);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(SameBits(answer.result(), expected))
        << cuts.size() << " cuts of " << request.ToString();
  }
}

TEST(AccumulatorTest, PartsMergeToTheBitsOfTheWhole) {
  for (uint64_t seed = 0; seed < 80; ++seed) {
    Random random(seed);
    AttentionCase request = LongCase(random);
    if (seed % 2 == 0) {
      request = NormalCase(random,
                           {1, 2, 1, random.Pick<int64_t>({1, 30}),
                            random.Integer(1, 6000), 8, 4},
                           kKinds[seed / 2 % 5]);
    }
    ExpectPartsMerge(random, request);
    if (HasFatalFailure()) return;
  }
}

// Each way to cut six blocks, the last of which is not whole.
TEST(AccumulatorTest, EveryCut) {
  constexpr int64_t kKeys = 5 * kKeyBlock + 100;
  for (DataType type : {DataType::kFloat32, DataType::kFloat64}) {
    Random random(99);
    AttentionCase request = NormalCase(random, {1, 2, 1, 3, kKeys, 8, 8}, type);
    request.options.return_log_sum_exp = true;
    const KernelResult expected = RunKernel(request);
    const AttentionPlan plan = PlanOf(request);
    Executor executor(0);
    for (uint32_t cuts = 0; cuts < 32; ++cuts) {
      Answer answer(plan);
      Accumulator whole = Accumulator::Create(plan, answer.outputs()).value();
      int64_t begin = 0;
      for (int64_t block = 1; block <= 6; ++block) {
        if (block < 6 && (cuts >> (block - 1) & 1) == 0) continue;
        const int64_t end = std::min(kKeys, block * kKeyBlock);
        const std::vector<Partial> partials =
            PartOf(random, request, begin, end, executor).value();
        for (const Partial& partial : partials) {
          ASSERT_TRUE(whole.Merge(partial, executor).ok());
        }
        begin = end;
      }
      ASSERT_TRUE(whole.Finish(executor).ok());
      ASSERT_TRUE(SameBits(answer.result(), expected)) << cuts;
    }
  }
}

// As few nodes of the tree as there can be: blocks 3; 4 to 7; 8.
TEST(AccumulatorTest, PartsAreExportedAsNodesOfTheTree) {
  Random random(10);
  const AttentionCase request = NormalCase(random, {1, 1, 1, 2, 3000, 4, 4});
  Executor executor(0);
  const std::vector<Partial> partials =
      PartOf(random, request, 3 * kKeyBlock, 9 * kKeyBlock, executor).value();
  ASSERT_EQ(partials.size(), 3u);
  EXPECT_EQ(partials[0].block_begin, 3);
  EXPECT_EQ(partials[0].block_end, 4);
  EXPECT_EQ(partials[1].block_begin, 4);
  EXPECT_EQ(partials[1].block_end, 8);
  EXPECT_EQ(partials[2].block_begin, 8);
  EXPECT_EQ(partials[2].block_end, 9);
  EXPECT_TRUE(PartOf(random, request, 512, 512, executor).value().empty());
}

// Runs of the keys as one job, some of them merged in another place.
TEST(AccumulatorTest, RunsComputedAsOneJobMergeToTheBitsOfTheWhole) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const Sizes sizes = {1,
                         random.Pick<int64_t>({2, 4}),
                         random.Pick<int64_t>({1, 2}),
                         random.Pick<int64_t>({1, 5, 90}),
                         random.Integer(1, 5000),
                         random.Pick<int64_t>({4, 18}),
                         random.Pick<int64_t>({3, 16})};
    AttentionCase request = NormalCase(random, sizes, kKinds[seed % 5]);
    request.options.return_log_sum_exp = true;
    request.options.causal =
        random.Pick<Causal>({Causal::kNone, Causal::kBottomRight});
    if (random.Chance(0.4))
      request.options.window_left = random.Integer(0, 700);
    if (random.Chance(0.4)) {
      request.mask = random.NormalTensor(
          DataType::kBool, {1, sizes.query_length, sizes.key_length});
    }
    const AttentionPlan plan = PlanOf(request);
    const int64_t run = random.Pick<int64_t>({1, 2, 16}) * kKeyBlock;
    std::vector<std::unique_ptr<KeyBlocks>> keys;
    std::vector<KeyPart> parts;
    for (int64_t begin = 0; begin < sizes.key_length; begin += run) {
      keys.push_back(
          std::make_unique<KeyBlocks>(random, request, 0, 1, begin,
                                      std::min(begin + run, sizes.key_length)));
      const AddedKeys added = keys.back()->added();
      parts.push_back({added.views[0], added.mask});
    }
    Executor executor(random.Pick<int>({0, 1, 3}));
    const auto computed =
        PartsOfKeys::Create(plan, parts, executor.threads() + 1).value();
    parts.clear();  // Only what they refer to is needed.
    absl::Status status = absl::UnknownError("not done");
    const auto job =
        computed->MakeJob([&](const absl::Status& end) { status = end; });
    if (seed % 2 == 0) {
      RunInShortestTurns(job.get());
    } else {
      executor.Run(job.get(), {});
    }
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(computed->partials().size(), keys.size());
    Answer answer(plan);
    Accumulator whole = Accumulator::Create(plan, answer.outputs()).value();
    for (const Partial& partial : computed->partials()) {
      ASSERT_TRUE(whole.Merge(partial, executor).ok());
    }
    ASSERT_TRUE(whole.Finish(executor).ok());
    ASSERT_TRUE(SameBits(answer.result(), RunKernel(request)))
        << request.ToString();
  }
}

TEST(AccumulatorTest, RunsThatAreCancelledLeaveNothing) {
  Random random(3);
  const AttentionCase request = NormalCase(random, {1, 2, 1, 3, 3000, 8, 8});
  const KeyBlocks keys(random, request, 0, 1, 0, kNoEnd);
  const KeyPart part = {keys.added().views[0], std::nullopt};
  const auto computed =
      PartsOfKeys::Create(PlanOf(request), {&part, 1}, 1).value();
  absl::Status status;
  const std::atomic<bool> cancelled{true};
  const auto job =
      computed->MakeJob([&](const absl::Status& end) { status = end; });
  Executor::RunHere(job.get(), &cancelled);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(computed->partials().empty());
}

class AccumulatorErrorTest : public ::testing::Test {
 protected:
  AccumulatorErrorTest()
      : request_(NormalCase(random_, {1, 2, 1, 3, 600, 8, 8})),
        plan_(PlanOf(request_)),
        answer_(plan_),
        accumulator_(Accumulator::Create(plan_, answer_.outputs()).value()) {}

  // Adds keys [begin, end) after `change` was made to them.
  absl::Status Add(
      int64_t begin, int64_t end,
      const std::function<void(AddedKeys&)>& change = [](AddedKeys&) {}) {
    const KeyBlocks keys(random_, request_, 0, 1, begin, end);
    AddedKeys added = keys.added();
    change(added);
    return accumulator_.Add(added, executor_);
  }

  // That nothing has changed: the answer still comes out right.
  void ExpectStillRight(int64_t begin) {
    ASSERT_TRUE(Add(begin, kNoEnd).ok());
    ASSERT_TRUE(accumulator_.Finish(executor_).ok());
    EXPECT_TRUE(SameBits(answer_.result(), RunKernel(request_)));
  }

  Random random_{103};
  AttentionCase request_;
  AttentionPlan plan_;
  Answer answer_;
  Executor executor_{1};
  Accumulator accumulator_;
};

TEST_F(AccumulatorErrorTest, KeysComeInOrderAndInBlocks) {
  ASSERT_TRUE(Add(0, 256).ok());
  const std::pair<absl::Status, std::string> wrong[] = {
      {Add(0, 256), "views[0].begin: got 0, wanted 256"},
      {Add(512, 600), "views[0].begin: got 512, wanted 256"},
      {Add(256, 500), "views[0].length: got 244, wanted a multiple of 256"},
      {Add(256, 512, [](AddedKeys& keys) { keys.views = {}; }),
       "views: got 0 from sequence 0 on, wanted 1 from 0 on"},
      {Add(256, 512, [](AddedKeys& keys) { keys.first_sequence = 1; }),
       "views: got 1 from sequence 1 on, wanted 1 from 0 on"},
      {accumulator_.Finish(executor_), "344 keys have not been added"}};
  for (const auto& [status, text] : wrong) {
    EXPECT_NE(status.message().find(text), std::string::npos) << status;
  }
  ExpectStillRight(256);
  EXPECT_EQ(Add(600, 600).code(), absl::StatusCode::kOk);
  EXPECT_EQ(Add(512, 600).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(AccumulatorErrorTest, ViewsHaveAllTheirBlocks) {
  const KeyBlocks keys(random_, request_, 0, 1, 0, 512);
  KeyValueView view = keys.added().views[0];
  view.blocks = view.blocks.subspan(1);
  AddedKeys added;
  added.views = {&view, 1};
  EXPECT_EQ(accumulator_.Add(added, executor_).message(),
            "views[0].blocks: got 1, wanted 2");
  view = keys.added().views[0];
  view.length = 700;
  EXPECT_EQ(accumulator_.Add(added, executor_).code(),
            absl::StatusCode::kInvalidArgument);
  ExpectStillRight(0);
}

TEST_F(AccumulatorErrorTest, MasksComeWithTheirKeys) {
  const Tensor mask = random_.NormalTensor(DataType::kFloat32, {3, 256});
  EXPECT_EQ(ErrorField(
                Add(0, 256, [&](AddedKeys& keys) { keys.mask = mask.view(); })),
            "mask");
  request_.mask = random_.NormalTensor(DataType::kBool, {3, 300});
  plan_ = PlanOf(request_);
  accumulator_ = Accumulator::Create(plan_, answer_.outputs()).value();
  EXPECT_EQ(ErrorField(Add(0, 256, [](AddedKeys& keys) { keys.mask.reset(); })),
            "mask");
  EXPECT_EQ(ErrorField(
                Add(0, 256, [&](AddedKeys& keys) { keys.mask = mask.view(); })),
            "mask.data_type");
  for (const Shape& shape : {Shape{3, 255}, Shape{3, 257}, Shape{1, 256},
                             Shape{256}, Shape{1, 3, 256}}) {
    const Tensor wrong = random_.NormalTensor(DataType::kBool, shape);
    EXPECT_EQ(ErrorField(Add(
                  0, 256, [&](AddedKeys& keys) { keys.mask = wrong.view(); })),
              "mask.shape");
  }
  Tensor no_bool = random_.NormalTensor(DataType::kBool, {3, 256});
  static_cast<char*>(no_bool.data())[7] = 2;
  EXPECT_EQ(ErrorField(Add(
                0, 256, [&](AddedKeys& keys) { keys.mask = no_bool.view(); })),
            "mask.data");
  ExpectStillRight(0);
}

// What was checked is not read through again.
TEST_F(AccumulatorErrorTest, CheckedMasksAreNotCheckedAgain) {
  request_.mask = random_.NormalTensor(DataType::kBool, {3, 300});
  plan_ = PlanOf(request_);
  accumulator_ = Accumulator::Create(plan_, answer_.outputs()).value();
  Tensor no_bool = random_.NormalTensor(DataType::kBool, {3, 256});
  static_cast<char*>(no_bool.data())[7] = 2;
  EXPECT_TRUE(Add(0, 256, [&](AddedKeys& keys) {
                keys.mask = no_bool.view();
                keys.mask_is_checked = true;
              }).ok());
}

TEST_F(AccumulatorErrorTest, NoScoresAndNoPresent) {
  for (const bool scores : {true, false}) {
    AttentionCase request = request_;
    if (scores) {
      request.options.return_scores = Scores::kRaw;
    } else {
      request.options.return_present = true;
    }
    for (const absl::Status& status :
         {Accumulator::Create(PlanOf(request), {}).status(),
          Accumulator::CreatePart(PlanOf(request), {}).status()}) {
      EXPECT_EQ(ErrorField(status),
                scores ? "options.return_scores" : "options.return_present");
    }
  }
}

TEST_F(AccumulatorErrorTest, PartsBeginAndEndAtBlocks) {
  const auto create = [&](int64_t begin, int64_t end) {
    return Accumulator::CreatePart(plan_, {begin, end}).status();
  };
  for (const auto& [begin, end] :
       {std::pair(0, 255), std::pair(1, 256), std::pair(-256, 256),
        std::pair(512, 256), std::pair(0, 601), std::pair(0, 768),
        std::pair(600, 600), std::pair(1024, 1280)}) {
    EXPECT_EQ(create(begin, end).code(), absl::StatusCode::kInvalidArgument)
        << begin << " " << end;
  }
  for (const auto& [begin, end] : {std::pair(0, 600), std::pair(256, 256),
                                   std::pair(512, 600), std::pair(0, 512)}) {
    EXPECT_TRUE(create(begin, end).ok()) << begin << " " << end;
  }
}

TEST_F(AccumulatorErrorTest, PartsAreWholeAndDoNotFinish) {
  Accumulator part = Accumulator::CreatePart(plan_, {256, 512}).value();
  EXPECT_EQ(part.Finish(executor_).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::move(part).Export(executor_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::move(accumulator_).Export(executor_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(AddAll(random_, request_, 256, 600, part, executor_).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AccumulatorErrorTest, PartialsComeInOrder) {
  const Partial first = PartOf(random_, request_, 0, 256, executor_).value()[0];
  const Partial second =
      PartOf(random_, request_, 256, 512, executor_).value()[0];
  const Partial last =
      PartOf(random_, request_, 512, 600, executor_).value()[0];
  const auto merge = [&](const Partial& partial) {
    return accumulator_.Merge(partial, executor_).code();
  };
  EXPECT_EQ(merge(second), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(merge(first), absl::StatusCode::kOk);
  EXPECT_EQ(merge(first), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(merge(last), absl::StatusCode::kInvalidArgument);
  // Not one subtree.
  Partial two_blocks = second;
  two_blocks.block_end = 3;
  EXPECT_EQ(merge(two_blocks), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(accumulator_.Finish(executor_).code(),
            absl::StatusCode::kFailedPrecondition);
  ExpectStillRight(256);
}

TEST_F(AccumulatorErrorTest, PartialsAreOfEqualPlans) {
  AttentionCase doubles = request_;
  doubles.options.softmax_precision = DataType::kFloat64;
  std::vector<AttentionCase> others = {doubles};
  for (const Sizes& other :
       {Sizes{1, 2, 1, 4, 600, 8, 8}, Sizes{1, 2, 1, 3, 600, 8, 7},
        Sizes{2, 2, 1, 3, 600, 8, 8}}) {
    others.push_back(NormalCase(random_, other));
  }
  for (const AttentionCase& other : others) {
    const Partial partial =
        PartOf(random_, other, 0, 256, executor_).value()[0];
    EXPECT_EQ(accumulator_.Merge(partial, executor_).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(AccumulatorErrorTest, NothingFollowsACancelledCall) {
  const KeyBlocks keys(random_, request_, 0, 1, 0, 512);
  const std::atomic<bool> cancelled{true};
  EXPECT_EQ(accumulator_.Add(keys.added(), executor_, &cancelled).code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(accumulator_.Add(keys.added(), executor_).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(accumulator_.Finish(executor_).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace attention::test
