#include "wire/convert_floats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace attention::wire {
namespace {

template <typename T>
std::vector<float> Converted(DataType type, const std::vector<T>& source) {
  std::vector<float> target(source.size());
  ConvertToFloats(type, source.data(), source.size(), target.data());
  return target;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ConvertFloatsTest, Float16) {
  // One, minus two, the largest, the least normal and subnormal, infinities.
  EXPECT_EQ(
      Converted<uint16_t>(DataType::kFloat16, {0x3c00, 0xc000, 0x7bff, 0x0400,
                                               0x0001, 0x8001, 0x7c00, 0xfc00}),
      (std::vector<float>{1, -2, 65504, 0x1p-14f, 0x1p-24f, -0x1p-24f,
                          kInfinity, -kInfinity}));
  EXPECT_TRUE(std::isnan(Converted<uint16_t>(DataType::kFloat16, {0x7e00})[0]));
  EXPECT_TRUE(
      std::signbit(Converted<uint16_t>(DataType::kFloat16, {0x8000})[0]));
}

TEST(ConvertFloatsTest, BFloat16) {
  EXPECT_EQ(Converted<uint16_t>(DataType::kBFloat16, {0x3f80, 0xc049, 0xff80}),
            (std::vector<float>{1, -3.140625f, -kInfinity}));
}

TEST(ConvertFloatsTest, Float64IsRounded) {
  EXPECT_EQ(Converted<double>(DataType::kFloat64, {0.1, 1e300}),
            (std::vector<float>{0.1f, kInfinity}));
}

TEST(ConvertFloatsTest, Float32IsCopied) {
  EXPECT_EQ(Converted<float>(DataType::kFloat32, {0.1f, -0.f}),
            (std::vector<float>{0.1f, -0.f}));
}

}  // namespace
}  // namespace attention::wire
