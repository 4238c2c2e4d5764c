#include "attention/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace attention {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Float16, KnownValues) {
  EXPECT_EQ(FromFloat16(0x3c00), 1.0f);
  EXPECT_EQ(FromFloat16(0xc000), -2.0f);
  EXPECT_EQ(FromFloat16(0x7bff), 65504.0f);
  EXPECT_EQ(FromFloat16(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(FromFloat16(0x03ff), std::ldexp(1023.0f, -24));
  EXPECT_EQ(FromFloat16(0x0400), std::ldexp(1.0f, -14));
  EXPECT_EQ(FromFloat16(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::signbit(FromFloat16(0x8000)));
  EXPECT_TRUE(std::isnan(FromFloat16(0x7e01)));
}

TEST(BFloat16, KnownValues) {
  EXPECT_EQ(FromBFloat16(0x3f80), 1.0f);
  EXPECT_EQ(FromBFloat16(0xc040), -3.0f);
  EXPECT_EQ(FromBFloat16(0x0001), std::ldexp(1.0f, -133));
  EXPECT_EQ(FromBFloat16(0x7f80), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(FromBFloat16(0x7fc0)));
}

TEST(Float16, EveryValueComesBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = FromFloat16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FromFloat16(ToFloat16(value)))) << bits;
    } else {
      ASSERT_EQ(ToFloat16(value), bits);
    }
  }
}

TEST(BFloat16, EveryValueComesBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = FromBFloat16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FromBFloat16(ToBFloat16(value)))) << bits;
    } else {
      ASSERT_EQ(ToBFloat16(value), bits);
    }
  }
}

// Halfway between any two neighbours the even one wins; a hair to either side
// decides otherwise. Both formats order their bits as their values.
template <typename Round, typename Widen>
void ExpectNearestEven(Round round, Widen widen, uint16_t infinity) {
  for (uint16_t low = 0; low + 1 < infinity; ++low) {
    const double below = widen(low);
    const double above = widen(static_cast<uint16_t>(low + 1));
    const double middle = (below + above) / 2;
    const uint16_t even = low % 2 == 0 ? low : low + 1;
    ASSERT_EQ(round(middle), even) << low;
    ASSERT_EQ(round(std::nextafter(middle, 0)), low) << low;
    ASSERT_EQ(round(std::nextafter(middle, kInf)), low + 1) << low;
    ASSERT_EQ(round(-middle), even | 0x8000) << low;
  }
}

TEST(Float16, RoundsToNearestEven) {
  ExpectNearestEven(ToFloat16, FromFloat16, 0x7c00);
}

TEST(BFloat16, RoundsToNearestEven) {
  ExpectNearestEven(ToBFloat16, FromBFloat16, 0x7f80);
}

TEST(Float16, TooLargeIsInfinite) {
  EXPECT_EQ(ToFloat16(65519.99), 0x7bff);
  EXPECT_EQ(ToFloat16(65520), 0x7c00);
  EXPECT_EQ(ToFloat16(1e300), 0x7c00);
  EXPECT_EQ(ToFloat16(-kInf), 0xfc00);
  EXPECT_EQ(ToBFloat16(1e39), 0x7f80);
  EXPECT_EQ(ToBFloat16(-1e300), 0xff80);
}

TEST(Float16, TooSmallIsZero) {
  EXPECT_EQ(ToFloat16(std::ldexp(1.0, -25)), 0);
  EXPECT_EQ(ToFloat16(-1e-300), 0x8000);
  EXPECT_EQ(ToFloat16(std::numeric_limits<double>::denorm_min()), 0);
}

TEST(Float16, NaNStaysNaN) {
  EXPECT_TRUE(std::isnan(FromFloat16(ToFloat16(kNaN))));
  EXPECT_TRUE(std::isnan(FromBFloat16(ToBFloat16(kNaN))));
}

}  // namespace
}  // namespace attention
