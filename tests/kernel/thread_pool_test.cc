#include "kernel/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <set>
#include <thread>
#include <vector>

namespace attention {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, CallsEveryIndexOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> calls(count);
    pool.ParallelFor(count, [&](int64_t i) { ++calls.at(i); });
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(calls[i], 1) << i;
  }
}

TEST_P(ThreadPoolTest, ServesConcurrentCallers) {
  constexpr int kCallers = 4;
  constexpr int64_t kCount = 500;
  ThreadPool pool(GetParam());
  std::barrier start(kCallers);
  std::vector<std::atomic<int64_t>> sums(kCallers);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      start.arrive_and_wait();
      pool.ParallelFor(kCount, [&](int64_t i) { sums[c] += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int c = 0; c < kCallers; ++c) {
    EXPECT_EQ(sums[c], kCount * (kCount - 1) / 2) << c;
  }
}

// Whatever the threads do, an index starts only after those before it: when
// task i starts, at most threads - 1 of the earlier ones have yet to.
TEST_P(ThreadPoolTest, StartsEarlierIndicesFirst) {
  ThreadPool pool(GetParam());
  constexpr int64_t kCount = 2000;
  std::atomic<int64_t> started{0};
  std::atomic<int64_t> worst{0};
  pool.ParallelFor(kCount, [&](int64_t i) {
    const int64_t before = started++;
    int64_t behind = i - before;
    int64_t seen = worst;
    while (behind > seen && !worst.compare_exchange_weak(seen, behind)) {
    }
  });
  EXPECT_LT(worst, GetParam());
}

TEST_P(ThreadPoolTest, ServesCallsOneAfterAnother) {
  ThreadPool pool(GetParam());
  std::atomic<int64_t> calls{0};
  for (int round = 0; round < 200; ++round) {
    pool.ParallelFor(5, [&](int64_t) { ++calls; });
  }
  EXPECT_EQ(calls, 1000);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest,
                         ::testing::Values(1, 2, 3, 8));

TEST(ThreadPoolTest, OneThreadRunsOnTheCallerInOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  std::set<std::thread::id> threads;
  pool.ParallelFor(10, [&](int64_t i) {
    order.push_back(i);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(threads, std::set<std::thread::id>{std::this_thread::get_id()});
}

// Tasks that wait for each other end only if as many threads run them.
TEST(ThreadPoolTest, RunsTasksAtTheSameTime) {
  constexpr int kThreads = 3;
  ThreadPool pool(kThreads);
  std::barrier meeting(kThreads);
  std::atomic<int> met{0};
  pool.ParallelFor(kThreads, [&](int64_t) {
    meeting.arrive_and_wait();
    ++met;
  });
  EXPECT_EQ(met, kThreads);
}

// The smaller pool does not hold the larger one back.
TEST(ThreadPoolTest, PoolsAreIndependent) {
  const ThreadPool small(2);
  ThreadPool pool(4);
  std::barrier meeting(4);
  std::atomic<int> met{0};
  pool.ParallelFor(4, [&](int64_t) {
    meeting.arrive_and_wait();
    ++met;
  });
  EXPECT_EQ(met, 4);
}

TEST(ThreadPoolTest, FewerThanOneThreadIsOne) {
  EXPECT_EQ(ThreadPool(0).threads(), 1);
  EXPECT_EQ(ThreadPool(-5).threads(), 1);
}

}  // namespace
}  // namespace attention
