#include "wire/buffer_slice.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "base/buffer_pool.h"

namespace attention::wire {
namespace {

constexpr size_t kMega = size_t{1} << 20;

TEST(BufferSliceTest, OutlivesThePool) {
  auto pool = BufferPool::Create(kMega);
  Buffer buffer = pool->Allocate(100);
  std::memcpy(buffer.data() + 10, "payload", 7);
  const grpc::Slice slice = ToSlice(std::move(buffer), 10, 17);
  pool.reset();
  ASSERT_EQ(slice.size(), 7u);
  EXPECT_EQ(std::memcmp(slice.begin(), "payload", 7), 0);
}

TEST(BufferSliceTest, GivesItsMemoryBack) {
  const auto pool = BufferPool::Create(2 * kMega);
  {
    const grpc::Slice slice = ToSlice(pool->Allocate(kMega), 1, kMega);
    EXPECT_EQ(pool->retained(), 0u);
  }
  EXPECT_EQ(pool->retained(), kMega);
}

}  // namespace
}  // namespace attention::wire
