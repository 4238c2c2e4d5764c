// Sums and products of sizes that stay at the largest int64_t instead of
// wrapping around: what shapes ask for is refused by its number.
#ifndef ATTENTION_BASE_SATURATING_H_
#define ATTENTION_BASE_SATURATING_H_

#include <cstdint>
#include <limits>

namespace attention {

// Preconditions: neither number is negative.
constexpr int64_t SaturatingAdd(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum)
             ? std::numeric_limits<int64_t>::max()
             : sum;
}
constexpr int64_t SaturatingMultiply(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product)
             ? std::numeric_limits<int64_t>::max()
             : product;
}

}  // namespace attention

#endif  // ATTENTION_BASE_SATURATING_H_
