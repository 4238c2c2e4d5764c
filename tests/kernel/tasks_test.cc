// How the rows of a request are shared out among threads.
#include "kernel/cpu/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/plan/problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

// Pairs of row and key that the task's rows see.
int64_t Pairs(const Problem& p, const RowTask& task) {
  const Sequence sequence = p.GetSequence(task.sequence);
  int64_t pairs = 0;
  for (int64_t row = task.row_begin; row < task.row_end; ++row) {
    const KeyRange seen = p.Visible(sequence, row / p.group());
    pairs += seen.end - seen.begin;
  }
  return pairs;
}

// The work of the busiest of `threads`, each of which draws the next task when
// done with one, relative to the work of the average one.
double Imbalance(const Problem& p, int threads) {
  std::vector<int64_t> work(threads);
  int64_t all = 0;
  for (const RowTask& task : CutRows(p, threads)) {
    const int64_t pairs = Pairs(p, task);
    *std::min_element(work.begin(), work.end()) += pairs;
    all += pairs;
  }
  return static_cast<double>(*std::max_element(work.begin(), work.end())) *
         threads / static_cast<double>(all);
}

AttentionPlan Plan(const AttentionCase& request) {
  return PlanAttention(request.inputs(), request.options).value();
}

AttentionCase CausalCase(const Sizes& sizes) {
  AttentionCase request;
  const auto tensor = [&](int64_t heads, int64_t length) {
    return Tensor(DataType::kFloat16, {sizes.batch, heads, length, 64});
  };
  request.query = tensor(sizes.query_heads, sizes.query_length);
  request.key = tensor(sizes.kv_heads, sizes.key_length);
  request.value = tensor(sizes.kv_heads, sizes.key_length);
  request.options.causal = Causal::kBottomRight;
  return request;
}

// Sequences of as many queries as keys.
AttentionCase CausalRaggedCase(const std::vector<int64_t>& lengths,
                               int64_t query_heads, int64_t kv_heads) {
  AttentionCase request;
  request.query_starts = {0};
  for (int64_t length : lengths) {
    request.query_starts.push_back(request.query_starts.back() + length);
  }
  request.key_starts = request.query_starts;
  const int64_t rows = request.query_starts.back();
  request.query = Tensor(DataType::kFloat16, {rows, query_heads, 64});
  request.key = Tensor(DataType::kFloat16, {rows, kv_heads, 64});
  request.value = Tensor(DataType::kFloat16, {rows, kv_heads, 64});
  request.options.layout = Layout::kRagged;
  request.options.causal = Causal::kBottomRight;
  return request;
}

// No thread idles at the end for more than a thirtieth of the time.
TEST(TasksTest, CausalBatchesKeepEveryThreadBusy) {
  for (const AttentionCase& request :
       {CausalCase({1, 8, 8, 2048, 2048}), CausalCase({1, 32, 8, 512, 512}),
        CausalCase({4, 8, 8, 300, 1000}),
        CausalRaggedCase({2048, 17, 900, 1, 300, 1500}, 8, 8),
        CausalRaggedCase({1, 5, 40, 100, 200, 400, 800, 1600}, 8, 2),
        CausalRaggedCase(std::vector<int64_t>(16, 128), 8, 8)}) {
    const AttentionPlan plan = Plan(request);
    for (int threads : {2, 3, 8}) {
      EXPECT_LE(Imbalance(*plan.problem, threads), 1.03)
          << threads << " threads: " << request.ToString();
    }
  }
}

TEST(TasksTest, EveryRowIsInOneTask) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const AttentionCase request = RandomCase(random);
    const AttentionPlan plan = Plan(request);
    const Problem& p = *plan.problem;
    std::set<std::tuple<int64_t, int64_t, int64_t>> rows;
    int64_t count = 0;
    for (const RowTask& task : CutRows(p, 1 + static_cast<int>(seed % 8))) {
      ASSERT_LE(task.row_end - task.row_begin, kTaskRows);
      for (int64_t row = task.row_begin; row < task.row_end; ++row) {
        rows.emplace(task.sequence, task.kv_head, row);
        ++count;
      }
    }
    EXPECT_EQ(count, NumRows(p)) << request.ToString();
    EXPECT_EQ(rows.size(), NumRows(p)) << request.ToString();
  }
}

// Whose turn is over leaves at the next look at the clock, and what it does in
// all is the same.
TEST(TasksTest, CuttingManySequencesIsDoneInSteps) {
  const AttentionCase request =
      CausalRaggedCase(std::vector<int64_t>(20000, 1), 2, 2);
  const AttentionPlan plan = Plan(request);
  const std::atomic<bool> over = true;
  RowCutter cutter(*plan.problem, 3);
  int64_t steps = 1;
  while (!cutter.Run(Turn(&over))) ++steps;
  // Three loops over 40000 tasks of two thousand each at the most.
  EXPECT_GE(steps, 60);
  const std::vector<RowTask> tasks = cutter.TakeTasks();
  const std::vector<RowTask> at_once = CutRows(*plan.problem, 3);
  ASSERT_EQ(tasks.size(), at_once.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    EXPECT_EQ(tasks[i].sequence, at_once[i].sequence);
    EXPECT_EQ(tasks[i].kv_head, at_once[i].kv_head);
    EXPECT_EQ(tasks[i].row_begin, at_once[i].row_begin);
    EXPECT_EQ(tasks[i].row_end, at_once[i].row_end);
  }
}

// Tasks come by their work, largest first, within an eighth. None of these is
// cut into smaller ones, which then may be smaller than what follows.
TEST(TasksTest, LargestTasksComeFirst) {
  const AttentionPlan plan =
      Plan(CausalRaggedCase({1, 5, 40, 100, 30, 7, 90, 60, 3, 80, 110}, 1, 1));
  double before = std::numeric_limits<double>::infinity();
  int64_t tasks = 0;
  for (const RowTask& task : CutRows(*plan.problem, 1)) {
    const auto pairs = static_cast<double>(Pairs(*plan.problem, task));
    EXPECT_LE(pairs, before * 1.125);
    before = pairs;
    ++tasks;
  }
  EXPECT_EQ(tasks, 11);
}

}  // namespace
}  // namespace attention::test
