#include "wire/slice_reader.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace attention::wire {
namespace {

// One slice a byte, with empty ones between.
std::vector<grpc::Slice> Scattered(const std::string& bytes) {
  std::vector<grpc::Slice> slices;
  for (char byte : bytes) {
    slices.emplace_back(std::string(1, byte));
    slices.emplace_back(std::string());
  }
  return slices;
}

struct Fixture {
  explicit Fixture(const std::string& bytes)
      : slices(Scattered(bytes)), reader(slices) {}
  std::vector<grpc::Slice> slices;
  SliceReader reader;
};

TEST(SliceReaderTest, ReadsVarintsAcrossSlices) {
  Fixture f(std::string(
      "\x00\x7f\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 14));
  uint64_t value;
  for (uint64_t wanted :
       {uint64_t{0}, uint64_t{127}, uint64_t{128}, ~uint64_t{0}}) {
    ASSERT_TRUE(f.reader.ReadVarint(&value));
    EXPECT_EQ(value, wanted);
  }
  EXPECT_EQ(f.reader.remaining(), 0u);
  EXPECT_FALSE(f.reader.ReadVarint(&value));
}

TEST(SliceReaderTest, RefusesVarintsWithoutEnd) {
  uint64_t value;
  Fixture truncated("\x80\x80");
  EXPECT_FALSE(truncated.reader.ReadVarint(&value));
  Fixture endless(std::string(11, '\x80'));
  EXPECT_FALSE(endless.reader.ReadVarint(&value));
}

TEST(SliceReaderTest, ReadsTags) {
  Tag tag;
  Fixture f("\x0a\x85\x01");
  ASSERT_TRUE(f.reader.ReadTag(&tag));
  EXPECT_EQ(tag.field, 1u);
  EXPECT_EQ(tag.type, WireType::kLength);
  ASSERT_TRUE(f.reader.ReadTag(&tag));
  EXPECT_EQ(tag.field, 16u);
  EXPECT_EQ(tag.type, WireType::kFixed32);
}

TEST(SliceReaderTest, RefusesFieldZeroAndUnknownTypes) {
  Tag tag;
  for (const char* bytes : {"\x02", "\x0e", "\x0f"}) {
    Fixture f(bytes);
    EXPECT_FALSE(f.reader.ReadTag(&tag)) << static_cast<int>(bytes[0]);
  }
}

TEST(SliceReaderTest, LengthsBeyondTheEndAreRefused) {
  SliceReader bytes;
  Fixture exact("\x02xy");
  ASSERT_TRUE(exact.reader.ReadLengthDelimited(&bytes));
  EXPECT_EQ(bytes.remaining(), 2u);
  Fixture beyond("\x03xy");
  EXPECT_FALSE(beyond.reader.ReadLengthDelimited(&bytes));
  Fixture huge("\xff\xff\xff\xff\x07xy");
  EXPECT_FALSE(huge.reader.ReadLengthDelimited(&bytes));
}

TEST(SliceReaderTest, CopiesReadIndependently) {
  Fixture f(
      "\x03"
      "abc"
      "d");
  SliceReader inner;
  ASSERT_TRUE(f.reader.ReadLengthDelimited(&inner));
  char rest[1], copied[3];
  ASSERT_TRUE(f.reader.ReadBytes(rest, 1));
  EXPECT_EQ(rest[0], 'd');
  ASSERT_TRUE(inner.ReadBytes(copied, 3));
  EXPECT_EQ(std::string(copied, 3), "abc");
  // The end of the inner run is not that of the message.
  EXPECT_FALSE(inner.ReadBytes(copied, 1));
}

TEST(SliceReaderTest, TellsWhatLiesInOneSlice) {
  const std::vector<grpc::Slice> slices = {
      grpc::Slice(), grpc::Slice("\x03xyz"), grpc::Slice(), grpc::Slice("ab")};
  SliceReader reader(slices);
  EXPECT_EQ(reader.FirstPiece().size(), 4u);
  SliceReader inner;
  ASSERT_TRUE(reader.ReadLengthDelimited(&inner));
  EXPECT_EQ(inner.FirstPiece().data(), slices[1].begin() + 1);
  EXPECT_EQ(inner.FirstPiece().size(), 3u);
  EXPECT_EQ(reader.FirstPiece().data(), slices[3].begin());
  ASSERT_TRUE(reader.Skip(1));
  EXPECT_EQ(reader.FirstPiece().size(), 1u);
  ASSERT_TRUE(reader.Skip(1));
  EXPECT_TRUE(reader.FirstPiece().empty());
}

TEST(SliceReaderTest, SkipsNestedGroups) {
  int64_t tags = 1000;
  // Group 1 { group 2 { 3: varint } 4: fixed64 }, then a varint.
  Fixture f(
      std::string("\x0b\x13\x18\x05\x14\x21"
                  "12345678"
                  "\x0c\x07",
                  16));
  Tag tag;
  ASSERT_TRUE(f.reader.ReadTag(&tag));
  ASSERT_TRUE(f.reader.SkipField(tag, SliceReader::kMaxDepth, &tags));
  uint64_t value;
  ASSERT_TRUE(f.reader.ReadVarint(&value));
  EXPECT_EQ(value, 7u);
}

TEST(SliceReaderTest, GroupsMustCloseAsTheyOpened) {
  int64_t tags = 1000;
  for (const char* bytes : {"\x0b\x14", "\x0b\x0b\x0c", "\x0c"}) {
    Fixture f(bytes);
    Tag tag;
    ASSERT_TRUE(f.reader.ReadTag(&tag));
    EXPECT_FALSE(f.reader.SkipField(tag, SliceReader::kMaxDepth, &tags));
  }
}

TEST(SliceReaderTest, GroupsNestOnlySoDeep) {
  int64_t tags = 1000;
  const auto nested = [](int depth) {
    return std::string(depth, '\x0b') + std::string(depth, '\x0c');
  };
  Tag tag;
  Fixture deepest(nested(SliceReader::kMaxDepth));
  ASSERT_TRUE(deepest.reader.ReadTag(&tag));
  EXPECT_TRUE(deepest.reader.SkipField(tag, SliceReader::kMaxDepth, &tags));
  Fixture too_deep(nested(SliceReader::kMaxDepth + 1));
  ASSERT_TRUE(too_deep.reader.ReadTag(&tag));
  EXPECT_FALSE(too_deep.reader.SkipField(tag, SliceReader::kMaxDepth, &tags));
}

TEST(SliceReaderTest, CountsTheTagsInGroups) {
  // Group 1 { group 2 { 3: varint } 4: fixed64 }: five tags after the first.
  const std::string bytes(
      "\x0b\x13\x18\x05\x14\x21"
      "12345678"
      "\x0c",
      15);
  for (const auto& [most, skipped] :
       {std::pair(5, true), std::pair(4, false)}) {
    Fixture f(bytes);
    Tag tag;
    ASSERT_TRUE(f.reader.ReadTag(&tag));
    int64_t tags = most;
    EXPECT_EQ(f.reader.SkipField(tag, SliceReader::kMaxDepth, &tags), skipped);
  }
}

}  // namespace
}  // namespace attention::wire
