// The memory that computing takes, counted at the C library's allocator, on
// which all others stand. Not with sanitizers, which bring their own.
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "base/executor.h"
#include "base/parallel_for.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/cpu/tasks.h"
#include "kernel/plan/problem.h"
#include "tests/support/attention_case.h"
#include "tests/support/key_blocks.h"

namespace {

std::atomic<int64_t> allocations{0};
std::atomic<size_t> largest_allocation{0};
// Bytes allocated and not freed, and the most that there were.
std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};
// How many allocations more succeed before every one fails.
std::atomic<int64_t> allocations_left{std::numeric_limits<int64_t>::max()};

template <typename T>
void RaiseTo(T number, std::atomic<T>* target) {
  T before = *target;
  while (number > before && !target->compare_exchange_weak(before, number)) {
  }
}

// Whether the allocation is to fail.
bool Fails(size_t bytes) {
  ++allocations;
  RaiseTo(bytes, &largest_allocation);
  return --allocations_left < 0;
}

void* Counted(void* memory) {
  if (memory == nullptr) return nullptr;
  RaiseTo(live_bytes += static_cast<int64_t>(malloc_usable_size(memory)),
          &peak_bytes);
  return memory;
}

void Uncount(void* memory) {
  if (memory != nullptr) {
    live_bytes -= static_cast<int64_t>(malloc_usable_size(memory));
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
void __libc_free(void* memory);

void* malloc(size_t size) {
  return Fails(size) ? nullptr : Counted(__libc_malloc(size));
}
void* calloc(size_t count, size_t size) {
  return Fails(count * size) ? nullptr : Counted(__libc_calloc(count, size));
}
void* realloc(void* memory, size_t size) {
  if (Fails(size)) return nullptr;
  Uncount(memory);
  return Counted(__libc_realloc(memory, size));
}
void* aligned_alloc(size_t alignment, size_t size) {
  return Fails(size) ? nullptr : Counted(__libc_memalign(alignment, size));
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (Fails(size)) return ENOMEM;
  *memory = Counted(__libc_memalign(alignment, size));
  return *memory == nullptr ? ENOMEM : 0;
}
void free(void* memory) {
  Uncount(memory);
  __libc_free(memory);
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

// What kernel/cpu/scratch.h says a thread works in, in bytes; no vector has
// more than 16 elements, some CPUs' have 2. First what tiles do not change, at
// the least.
double FixedScratchBytes(const Sizes& sizes, double element_bytes) {
  return element_bytes * 256 *
         static_cast<double>(sizes.head_size + sizes.value_head_size);
}
double ScratchBytes(const Sizes& sizes, double element_bytes,
                    int64_t tile_rows) {
  return element_bytes * 256 *
         (static_cast<double>(sizes.head_size) +
          RoundedUp(sizes.value_head_size) +
          static_cast<double>(tile_rows + 1));
}
// What kernel/cpu/row_state.h says the state of a task's rows is.
double StateBytes(const Sizes& sizes, double element_bytes) {
  const double r = RoundedUp(sizes.query_length);
  const double levels =
      2 + std::log2(1 + static_cast<double>(sizes.key_length) / 256);
  return element_bytes * (r * static_cast<double>(sizes.head_size) + 16 +
                          levels * r * (RoundedUp(sizes.value_head_size) + 2)) +
         8 * (levels + 11);
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

TEST(MemoryTest, StateGrowsWithTheLogarithmOfTheKeys) {
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
        EXPECT_LE(bytes, std::max(ScratchBytes(sizes, element, tile_rows),
                                  StateBytes(sizes, element)) +
                             kAlignment)
            << Name(kind) << ", " << keys << " keys";
        // It is one of the two that was seen.
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

// Shapes that bring few bytes and ask for much.
std::vector<AttentionCase> AbsurdCases() {
  const auto request = [](Layout layout, Shape query, Shape key, Shape value) {
    AttentionCase result;
    result.options.layout = layout;
    result.query = Tensor(DataType::kFloat32, std::move(query));
    result.key = Tensor(DataType::kFloat32, std::move(key));
    result.value = Tensor(DataType::kFloat32, std::move(value));
    return result;
  };
  const AttentionLimits most;
  const auto bhsd = [&](Shape query, Shape key, Shape value) {
    return request(Layout::kBHSD, std::move(query), std::move(key),
                   std::move(value));
  };
  std::vector<AttentionCase> cases = {
      // No keys, and the largest heads.
      bhsd({1, 1, 30, most.head_size}, {1, 1, 0, most.head_size},
           {1, 1, 0, most.head_size}),
      // One key, and each head size without the other.
      bhsd({1, 1, 30, most.head_size}, {1, 1, 1, most.head_size}, {1, 1, 1, 1}),
      bhsd({1, 1, 30, 1}, {1, 1, 1, 1}, {1, 1, 1, most.head_size}),
      // As many pairs of sequence and head as there may be, with keys and
      // without.
      bhsd({most.batch, 8, 1, 1}, {most.batch, 8, 1, 1}, {most.batch, 8, 1, 1}),
      bhsd({most.batch, 8, 1, 1}, {most.batch, 8, 0, 1}, {most.batch, 8, 0, 1}),
      // Empty rows.
      bhsd({most.batch, 8, 0, 64}, {most.batch, 8, 0, 64},
           {most.batch, 8, 0, 64}),
      // Many rows of one head.
      bhsd({1, 1, 2000000, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}),
      // Few rows of many keys, which are cut too.
      bhsd({1, 1, 100, 16}, {1, 1, 100000, 16}, {1, 1, 100000, 16}),
  };
  // A list of indices for each of many rows, and for each head of them.
  for (const Shape& lists : {Shape{1, 50000, 1}, Shape{1, 20, 50000, 0}}) {
    AttentionCase& selected = cases.emplace_back(
        bhsd({1, 20, 50000, 1}, {1, 1, 3000, 1}, {1, 1, 3000, 1}));
    selected.indices = Tensor(DataType::kInt32, lists);
  }
  // As many sequences as there may be, each of one row or none.
  AttentionCase& ragged = cases.emplace_back(request(
      Layout::kRagged, {most.batch / 2, 8, 1}, {1000, 8, 1}, {1000, 8, 1}));
  for (int64_t b = 0; b <= most.batch; ++b) {
    ragged.query_starts.push_back(b / 2);
    ragged.key_starts.push_back(std::min<int64_t>(b, 1000));
  }
  return cases;
}

TEST(MemoryTest, AbsurdShapesTakeNoMoreThanWasSaid) {
  constexpr int kThreads = 2;
  // The job, its queue and what the allocator sets apart.
  constexpr int64_t kJob = int64_t{64} << 10;
  for (const AttentionCase& request : AbsurdCases()) {
    const auto plan = PlanAttention(request.inputs(), request.options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    Tensor output(plan->output.type, plan->output.shape);
    AttentionOutputs outputs;
    outputs.output = output.data();
    // New threads, and a new one for the calling one, with no memory yet.
    std::thread([&] {
      Executor executor(kThreads - 1);
      const int64_t before = live_bytes;
      peak_bytes = before;
      EXPECT_TRUE(RunAttention(*plan, outputs, executor).ok());
      EXPECT_LE(peak_bytes - before, WorkingBytes(*plan, kThreads) + kJob)
          << "query " << ToString(request.query.shape()) << ", key "
          << ToString(request.key.shape());
    }).join();
  }
}

// Runs `function` with ever more allocations that succeed, until it does; each
// time after `prepare`, whose allocations all succeed.
template <typename Function>
void ExpectNoMoreThanAStatus(
    const Function& function, const std::function<void()>& prepare = [] {}) {
  int failures = 0;
  for (int64_t left = 0;; ++left) {
    prepare();
    // Of a new thread, which has no memory yet.
    absl::Status status;
    std::thread([&] {
      FreeTaskMemory();  // As in the executor's threads.
      allocations_left = left;
      status = function();
      allocations_left = std::numeric_limits<int64_t>::max();
    }).join();
    if (status.ok()) break;
    ++failures;
    ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
    ASSERT_LT(left, 1000);
  }
  EXPECT_GT(failures, 0);
}

// Every step of an accumulator fails with no more than a status, and another
// one then takes the same keys.
void ExpectAccumulatorFailsWell(AttentionCase request, Executor& executor) {
  request.options.return_present = false;
  Random random(2);
  const AttentionPlan plan =
      PlanAttention(WithoutKeys(request), request.options).value();
  Tensor output(plan.output.type, plan.output.shape);
  AttentionOutputs outputs;
  outputs.output = output.data();
  const int64_t sequences = SequencesOf(request);
  const int64_t keys = KeysOf(request, 0);
  const KeyBlocks first(random, request, 0, sequences, 0, kKeyBlock);
  const KeyBlocks last(random, request, 0, sequences, kKeyBlock, keys);
  // A step that has failed is the accumulator's last.
  const auto begun = [&] {
    Accumulator accumulator = Accumulator::Create(plan, outputs).value();
    EXPECT_TRUE(accumulator.Add(first.added(), executor).ok());
    return accumulator;
  };
  const auto part = [&] {
    Accumulator accumulator =
        Accumulator::CreatePart(plan, {kKeyBlock, keys}).value();
    EXPECT_TRUE(accumulator.Add(last.added(), executor).ok());
    return accumulator;
  };
  const std::vector<Partial> partials = part().Export(executor).value();
  std::optional<Accumulator> accumulator;
  ExpectNoMoreThanAStatus(
      [&] { return accumulator->Add(first.added(), executor); },
      [&] { accumulator = Accumulator::Create(plan, outputs).value(); });
  ExpectNoMoreThanAStatus(
      [&] { return accumulator->Add(last.added(), executor); },
      [&] { accumulator = begun(); });
  ExpectNoMoreThanAStatus(
      [&] { return accumulator->Merge(partials[0], executor); },
      [&] { accumulator = begun(); });
  ExpectNoMoreThanAStatus(
      [&] { return std::move(*accumulator).Export(executor).status(); },
      [&] { accumulator = part(); });
}

TEST(MemoryTest, BlockingFunctionsReportWantOfMemory) {
  for (int threads : {0, 1}) {
    for (const Sizes& sizes :
         {Sizes{1, 2, 1, 3, 300, 16, 16}, Sizes{2, 4, 2, 100, 1000, 16, 16}}) {
      Random random(1);
      AttentionCase request = NormalCase(random, sizes, Kind{});
      request.options.return_present = true;
      const AttentionPlan plan =
          PlanAttention(request.inputs(), request.options).value();
      Tensor output(plan.output.type, plan.output.shape);
      Tensor present_key(plan.present_key->type, plan.present_key->shape);
      Tensor present_value(plan.present_value->type, plan.present_value->shape);
      AttentionOutputs outputs;
      outputs.output = output.data();
      outputs.present_key = present_key.data();
      outputs.present_value = present_value.data();
      Executor executor(threads);
      // The C library ends the process where it cannot note that a thread has
      // memory to free at its end.
      std::barrier meeting(threads + 1);
      ParallelFor(executor, threads + 1, [&](int64_t) {
        FreeTaskMemory();
        meeting.arrive_and_wait();
      });
      ExpectNoMoreThanAStatus(
          [&] { return RunAttention(plan, outputs, executor); });
      ExpectAccumulatorFailsWell(request, executor);
    }
  }
}

}  // namespace
}  // namespace attention::test
