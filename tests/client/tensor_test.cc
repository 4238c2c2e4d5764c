#include "attention/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace attention {
namespace {

using ::testing::ElementsAre;

TEST(Tensor, OfKeepsElementsAndShape) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const Tensor tensor = Tensor::Of<float>(values, {2, 3});
  EXPECT_EQ(tensor.type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(tensor.shape(), ElementsAre(2, 3));
  EXPECT_EQ(tensor.size(), 6);
  EXPECT_THAT(tensor.elements<float>(), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(Tensor, OfWidensIntegersThatTheWireLacks) {
  const std::vector<uint8_t> bytes = {0, 1, 255};
  EXPECT_THAT(Tensor::Of<uint8_t>(bytes, {3}).elements<int32_t>(),
              ElementsAre(0, 1, 255));
  const std::vector<int16_t> shorts = {-32768, 32767};
  EXPECT_THAT(Tensor::Of<int16_t>(shorts, {2}).elements<int32_t>(),
              ElementsAre(-32768, 32767));
  const std::vector<uint32_t> words = {4294967295};
  EXPECT_THAT(Tensor::Of<uint32_t>(words, {1}).elements<int64_t>(),
              ElementsAre(4294967295));
}

TEST(Tensor, ElementsOfAnotherTypeAreEmpty) {
  const std::vector<float> values = {1, 2};
  const Tensor tensor = Tensor::Of<float>(values, {2});
  EXPECT_TRUE(tensor.elements<double>().empty());
  EXPECT_TRUE(tensor.elements<uint16_t>().empty());
  const std::vector<double> one = {1};
  EXPECT_THAT(
      Tensor::Rounded(v1::DATA_TYPE_FLOAT16, one, {1}).elements<uint16_t>(),
      ElementsAre(0x3c00));
}

TEST(Tensor, FromBytesChecksTheSize) {
  const std::vector<std::byte> bytes(8);
  EXPECT_TRUE(Tensor::FromBytes(v1::DATA_TYPE_FLOAT32, bytes, {2}));
  EXPECT_TRUE(Tensor::FromBytes(v1::DATA_TYPE_FLOAT32, {}, {3, 0}));
  EXPECT_FALSE(Tensor::FromBytes(v1::DATA_TYPE_FLOAT32, bytes, {3}));
  EXPECT_FALSE(Tensor::FromBytes(v1::DATA_TYPE_UNSPECIFIED, bytes, {8}));
  EXPECT_FALSE(Tensor::FromBytes(v1::DATA_TYPE_BOOL, bytes, {-8}));
  // 2^62 * 8 elements wrap around to 0.
  EXPECT_FALSE(Tensor::FromBytes(v1::DATA_TYPE_BOOL, {}, {1LL << 62, 8}));
}

TEST(Tensor, CopiesShareElements) {
  const std::vector<float> values = {1, 2};
  Tensor tensor = Tensor::Of<float>(values, {2});
  const Tensor copy = tensor;
  EXPECT_EQ(copy.bytes().data(), tensor.bytes().data());
  const Tensor moved = std::move(tensor);
  EXPECT_EQ(moved.bytes().data(), copy.bytes().data());
  // NOLINTNEXTLINE(bugprone-use-after-move): nothing that is not its own.
  EXPECT_TRUE(tensor.bytes().empty());
  tensor = Tensor();
  EXPECT_THAT(copy.elements<float>(), ElementsAre(1, 2));
}

TEST(Tensor, FromSharedKeepsItsOwner) {
  auto owner = std::make_shared<std::vector<std::byte>>(8);
  const std::weak_ptr<std::vector<std::byte>> watched = owner;
  auto tensor =
      Tensor::FromShared(v1::DATA_TYPE_FLOAT32, {owner, owner->data()}, 8, {2});
  ASSERT_TRUE(tensor);
  EXPECT_EQ(tensor->bytes().data(), owner->data());
  owner.reset();
  EXPECT_FALSE(watched.expired());
  tensor.reset();
  EXPECT_TRUE(watched.expired());
  EXPECT_FALSE(Tensor::FromShared(v1::DATA_TYPE_FLOAT32, nullptr, 8, {3}));
}

TEST(Tensor, RoundedGoesToEveryTypeAndBack) {
  const std::vector<double> numbers = {-2, 0, 1, 100};
  for (const v1::DataType type :
       {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16,
        v1::DATA_TYPE_FLOAT64, v1::DATA_TYPE_INT8, v1::DATA_TYPE_INT32,
        v1::DATA_TYPE_INT64}) {
    const Tensor tensor = Tensor::Rounded(type, numbers, {4});
    EXPECT_EQ(tensor.type(), type);
    EXPECT_EQ(tensor.bytes().size(), 4 * ElementSize(type));
    EXPECT_EQ(tensor.ToDoubles(), numbers) << TypeName(type);
  }
  EXPECT_THAT(Tensor::Rounded(v1::DATA_TYPE_BOOL, numbers, {4}).ToDoubles(),
              ElementsAre(1, 0, 1, 1));
}

TEST(Tensor, RoundedClampsIntegers) {
  const std::vector<double> numbers = {1e30, -1e30, 2.5, std::nan("")};
  EXPECT_THAT(
      Tensor::Rounded(v1::DATA_TYPE_INT8, numbers, {4}).elements<int8_t>(),
      ElementsAre(127, -128, 2, 0));
  EXPECT_THAT(
      Tensor::Rounded(v1::DATA_TYPE_INT64, numbers, {4}).elements<int64_t>(),
      ElementsAre(std::numeric_limits<int64_t>::max(),
                  std::numeric_limits<int64_t>::min(), 2, 0));
}

TEST(Tensor, LendsItself) {
  const std::vector<double> numbers = {1, 2};
  const Tensor tensor = Tensor::Of<double>(numbers, {1, 2});
  const TensorSpan span = tensor;
  EXPECT_EQ(span.type, v1::DATA_TYPE_FLOAT64);
  EXPECT_THAT(span.shape, ElementsAre(1, 2));
  EXPECT_EQ(span.bytes.data(), tensor.bytes().data());
  EXPECT_EQ(span.bytes.size(), 16);
}

TEST(TypeName, KnownAndUnknown) {
  EXPECT_EQ(TypeName(v1::DATA_TYPE_BFLOAT16), "BFLOAT16");
  EXPECT_EQ(TypeName(static_cast<v1::DataType>(99)), "99");
}

}  // namespace
}  // namespace attention
