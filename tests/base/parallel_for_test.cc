#include "base/parallel_for.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <set>
#include <thread>
#include <vector>

namespace attention {
namespace {

class ParallelForTest : public ::testing::TestWithParam<int> {};

TEST_P(ParallelForTest, CallsEveryIndexOnce) {
  Executor executor(GetParam() - 1);
  for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(count);
    ParallelFor(executor, count, [&](int64_t i) { ++calls.at(i); });
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(calls[i], 1) << i;
  }
}

TEST_P(ParallelForTest, ServesConcurrentCallers) {
  constexpr int kCallers = 4;
  constexpr int64_t kCount = 500;
  Executor executor(GetParam() - 1);
  std::barrier start(kCallers);
  std::vector<std::atomic<int64_t>> sums(kCallers);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      start.arrive_and_wait();
      ParallelFor(executor, kCount, [&](int64_t i) { sums[c] += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int c = 0; c < kCallers; ++c) {
    EXPECT_EQ(sums[c], kCount * (kCount - 1) / 2) << c;
  }
}

// Whatever the threads do, an index starts only after those before it: when
// task i starts, at most threads - 1 of the earlier ones have yet to.
TEST_P(ParallelForTest, StartsEarlierIndicesFirst) {
  Executor executor(GetParam() - 1);
  constexpr int64_t kCount = 2000;
  std::atomic<int64_t> started{0};
  std::atomic<int64_t> worst{0};
  ParallelFor(executor, kCount, [&](int64_t i) {
    const int64_t before = started++;
    int64_t behind = i - before;
    int64_t seen = worst;
    while (behind > seen && !worst.compare_exchange_weak(seen, behind)) {
    }
  });
  EXPECT_LT(worst, GetParam());
}

TEST_P(ParallelForTest, ServesCallsOneAfterAnother) {
  Executor executor(GetParam() - 1);
  std::atomic<int64_t> calls{0};
  for (int round = 0; round < 200; ++round) {
    ParallelFor(executor, 5, [&](int64_t) { ++calls; });
  }
  EXPECT_EQ(calls, 1000);
}

INSTANTIATE_TEST_SUITE_P(Threads, ParallelForTest,
                         ::testing::Values(1, 2, 3, 8));

TEST(ParallelForTest, OneThreadRunsOnTheCallerInOrder) {
  Executor executor(0);
  std::vector<int64_t> order;
  std::set<std::thread::id> threads;
  ParallelFor(executor, 10, [&](int64_t i) {
    order.push_back(i);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(threads, std::set<std::thread::id>{std::this_thread::get_id()});
}

// Tasks that wait for each other end only if as many threads run them.
TEST(ParallelForTest, RunsTasksAtTheSameTime) {
  constexpr int kThreads = 3;
  Executor executor(kThreads - 1);
  std::barrier meeting(kThreads);
  std::atomic<int> met{0};
  ParallelFor(executor, kThreads, [&](int64_t) {
    meeting.arrive_and_wait();
    ++met;
  });
  EXPECT_EQ(met, kThreads);
}

// The smaller one does not hold the larger one back.
TEST(ParallelForTest, ExecutorsAreIndependent) {
  const Executor small(1);
  Executor executor(3);
  std::barrier meeting(4);
  std::atomic<int> met{0};
  ParallelFor(executor, 4, [&](int64_t) {
    meeting.arrive_and_wait();
    ++met;
  });
  EXPECT_EQ(met, 4);
}

}  // namespace
}  // namespace attention
