// The memory that computing takes, counted at the C library's allocator, on
// which all others stand. Not with sanitizers, which bring their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <tuple>
#include <vector>

#include "base/executor.h"
#include "base/parallel_for.h"
#include "kernel/attention.h"
#include "kernel/problem.h"
#include "kernel/tasks.h"
#include "tests/support/attention_case.h"

namespace {

std::atomic<int64_t> allocations{0};
std::atomic<size_t> largest_allocation{0};

void Count(size_t bytes) {
  ++allocations;
  size_t largest = largest_allocation;
  while (bytes > largest &&
         !largest_allocation.compare_exchange_weak(largest, bytes)) {
  }
}

}  // namespace

// glibc lets a program replace these and keeps its own under other names.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name)
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* memory, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  Count(size);
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count(count * size);
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  Count(size);
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count(size);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  Count(size);
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}
// NOLINTEND(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name)

namespace attention::test {
namespace {

// A request planned, with memory for its output.
class Computation {
 public:
  explicit Computation(const Sizes& sizes, const Kind& kind = {}) {
    Random random(1);
    request_ = NormalCase(random, sizes, kind);
    plan_ = PlanAttention(request_.inputs(), request_.options).value();
    output_ = Tensor(plan_.output.type, plan_.output.shape);
  }

  void Run(Executor& executor) {
    AttentionOutputs outputs;
    outputs.output = output_.data();
    ASSERT_TRUE(RunAttention(plan_, outputs, executor).ok());
  }

  double tasks(int threads) const {
    return static_cast<double>(CutRows(*plan_.problem, threads).size());
  }

 private:
  AttentionCase request_;
  AttentionPlan plan_;
  Tensor output_;
};

double RoundedUp(int64_t number) {
  return static_cast<double>(RoundUp(number, 16));
}

// What kernel/scratch.h says a task's memory is, in bytes; no vector has more
// than 16 elements. First what rows and keys do not change, at the least.
double FixedScratchBytes(const Sizes& sizes, double element_bytes) {
  return element_bytes * 256 *
         static_cast<double>(sizes.head_size + sizes.value_head_size + 15);
}
double ScratchBytes(const Sizes& sizes, double element_bytes,
                    int64_t tile_rows) {
  const double r = RoundedUp(sizes.query_length);
  const auto d = static_cast<double>(sizes.head_size);
  const double dv = RoundedUp(sizes.value_head_size);
  const auto t = static_cast<double>(sizes.key_length);
  return element_bytes * ((r + 256) * d + 16 + 256 * (dv + tile_rows + 1) +
                          (2 + std::log2(1 + t / 256)) * r * (dv + 2));
}

// The largest piece of memory a new thread takes to compute.
size_t BytesTaken(const Sizes& sizes, const Kind& kind) {
  Computation computation(sizes, kind);
  largest_allocation = 0;
  std::thread([&] {
    Executor executor(0);
    computation.Run(executor);
  }).join();
  return largest_allocation;
}

TEST(MemoryTest, ScratchGrowsWithTheLogarithmOfTheKeys) {
  // Highway's allocator aligns to, and sets apart, by this at the most.
  constexpr double kAlignment = 4096;
  for (const Kind& kind : kKinds) {
    const double element = kind.type == DataType::kFloat64 ? 8 : 4;
    // A tile's rows: BF16Tiles, where the CPU has them, takes more.
    const int64_t tile_rows = kind.math == MathMode::kFast ? 32 : 14;
    for (const auto& [rows, size, value_size] :
         {std::tuple(1, 8, 8), std::tuple(30, 5, 17), std::tuple(112, 3, 40)}) {
      for (int64_t keys : {1, 255, 256, 767, 768, 10000, 1000000}) {
        if (keys * rows > 10000000) continue;
        const Sizes sizes = {1, 1, 1, rows, keys, size, value_size};
        const auto bytes = static_cast<double>(BytesTaken(sizes, kind));
        EXPECT_LE(bytes, ScratchBytes(sizes, element, tile_rows) + kAlignment)
            << Name(kind) << ", " << keys << " keys";
        // It is the scratch that was seen.
        EXPECT_GE(bytes, FixedScratchBytes(sizes, element))
            << Name(kind) << ", " << keys << " keys";
      }
    }
  }
}

// What allocates beside the tasks: lists of them, whose memory is reserved or
// doubles as they grow.
double AllocationsOfTheLists(const Computation& computation, int threads) {
  return 2 * (1 + std::log2(computation.tasks(threads)));
}

TEST(MemoryTest, OneThreadAllocatesForNoTask) {
  for (const Kind& kind : kKinds) {
    Computation computation({16, 32, 32, 120, 20, 16, 16}, kind);
    Executor executor(0);
    computation.Run(executor);
    const int64_t before = allocations;
    computation.Run(executor);
    const int64_t during = allocations - before;
    EXPECT_LE(during, AllocationsOfTheLists(computation, 1));
  }
}

// Starting a job takes a few pieces of memory, however many tasks it has.
TEST(MemoryTest, ThreadsAllocateForNoTask) {
  constexpr int kThreads = 2;
  // Spare for what depends on which thread comes first.
  constexpr double kJob = 16;
  Computation first({16, 32, 32, 120, 20, 16, 16});
  Computation second({16, 32, 32, 120, 20, 16, 16});
  Computation* const own[kThreads] = {&first, &second};
  Executor executor(kThreads - 1);
  // Every thread takes its memory.
  std::barrier meeting(kThreads);
  ParallelFor(executor, kThreads, [&](int64_t i) {
    Executor alone(0);
    own[i]->Run(alone);
    meeting.arrive_and_wait();
  });
  for (int round = 0; round < 20; ++round) {
    const int64_t before = allocations;
    first.Run(executor);
    const int64_t during = allocations - before;
    EXPECT_LE(during, AllocationsOfTheLists(first, kThreads) + kJob);
  }
}

}  // namespace
}  // namespace attention::test
