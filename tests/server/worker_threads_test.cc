#include "server/worker_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <vector>

namespace attention::server {
namespace {

TEST(WorkerThreadsTest, RunsEveryJobBeforeItEnds) {
  std::atomic<int> ran{0};
  {
    WorkerThreads workers(3);
    for (int i = 0; i < 1000; ++i) {
      workers.Submit(
          [&ran, owned = std::make_unique<int>(1)] { ran += *owned; });
    }
  }
  EXPECT_EQ(ran, 1000);
}

TEST(WorkerThreadsTest, OneThreadRunsJobsInOrder) {
  std::vector<int> order;
  {
    WorkerThreads workers(1);
    for (int i = 0; i < 100; ++i) {
      workers.Submit([&order, i] { order.push_back(i); });
    }
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(WorkerThreadsTest, JobsRunAtTheSameTime) {
  // Each waits for the other: one thread alone would never end.
  std::latch both(2);
  WorkerThreads workers(2);
  workers.Submit([&] { both.arrive_and_wait(); });
  workers.Submit([&] { both.arrive_and_wait(); });
  both.wait();
}

}  // namespace
}  // namespace attention::server
