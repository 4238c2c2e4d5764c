#include "base/buffer_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace attention {
namespace {

constexpr size_t kMega = size_t{1} << 20;

TEST(BufferPoolTest, MemoryIsAlignedAndLargeEnough) {
  const auto pool = BufferPool::Create(4 * kMega);
  for (size_t bytes : {size_t{1}, size_t{63}, size_t{65537}, kMega + 1}) {
    const Buffer buffer = pool->Allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % Buffer::kAlignment,
              0u);
    EXPECT_GE(buffer.capacity(), bytes);
    std::memset(buffer.data(), 1, bytes);
  }
  EXPECT_EQ(pool->Allocate(0).data(), nullptr);
}

TEST(BufferPoolTest, ReusesReturnedMemory) {
  const auto pool = BufferPool::Create(4 * kMega);
  const std::byte* first = pool->Allocate(kMega).data();
  EXPECT_EQ(pool->retained(), kMega);
  const Buffer again = pool->Allocate(kMega - 100);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(pool->retained(), 0u);
}

TEST(BufferPoolTest, PoisonsWhatNobodyMayRead) {
  const auto pool = BufferPool::Create(
      4 * kMega, std::numeric_limits<size_t>::max(), BufferPool::Poison::kNan);
  const auto is_nan = [](const void* memory, size_t bytes) {
    std::vector<float> numbers(bytes / sizeof(float));
    std::memcpy(numbers.data(), memory, bytes);
    return std::all_of(numbers.begin(), numbers.end(),
                       [](float number) { return std::isnan(number); });
  };
  for (size_t bytes : {size_t{64}, kMega}) {
    EXPECT_TRUE(is_nan(pool->Allocate(bytes).data(), bytes));
  }
  const void* freed = nullptr;
  {
    const Buffer buffer = pool->Allocate(kMega);
    std::memset(buffer.data(), 1, kMega);
    freed = buffer.data();
  }
  ASSERT_EQ(pool->retained(), kMega) << "it is not unmapped";
  EXPECT_TRUE(is_nan(freed, kMega));
}

TEST(BufferPoolTest, DoesNotSpendLargeMemoryOnSmallBuffers) {
  const auto pool = BufferPool::Create(4 * kMega);
  {
    const Buffer large = pool->Allocate(2 * kMega);
  }
  const Buffer small = pool->Allocate(kMega);
  EXPECT_LE(small.capacity(), kMega + kMega / 4);
  EXPECT_EQ(pool->retained(), 2 * kMega);
}

TEST(BufferPoolTest, RetainsNoMoreThanItsBound) {
  const auto pool = BufferPool::Create(3 * kMega);
  {
    std::vector<Buffer> buffers;
    for (int i = 0; i < 8; ++i) buffers.push_back(pool->Allocate(kMega));
    EXPECT_EQ(pool->retained(), 0u);
  }
  EXPECT_EQ(pool->retained(), 3 * kMega);
  {
    const Buffer beyond = pool->Allocate(4 * kMega);
  }
  EXPECT_EQ(pool->retained(), 3 * kMega);
}

}  // namespace
}  // namespace attention
