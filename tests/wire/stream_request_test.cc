// The decoder against protobuf's own parser, on good messages and on damaged
// ones.
#include "wire/stream_request.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "tests/wire/differential.h"

namespace attention::wire {
namespace {

using v1::StreamAttentionRequest;

constexpr size_t kMostNumbers = 1000;

absl::StatusOr<StreamRequestFields> Decode(
    const std::vector<grpc::Slice>& slices) {
  static const auto pool = BufferPool::Create(0);
  MemoryMeter meter;
  return DecodeStreamRequest(slices, *pool, meter, kMostNumbers);
}

void ExpectSameMessage(const StreamRequestFields& got,
                       const StreamAttentionRequest& want) {
  ASSERT_EQ(got.index(), static_cast<size_t>(want.message_case()));
  if (want.has_header()) {
    ExpectSame(std::get<RequestFields>(got), want.header());
  } else if (want.has_chunk()) {
    const auto& chunk = std::get<ChunkFields>(got);
    ExpectTensor(chunk.key, want.chunk().has_key(), want.chunk().key());
    ExpectTensor(chunk.value, want.chunk().has_value(), want.chunk().value());
    ExpectTensor(chunk.mask, want.chunk().has_mask(), want.chunk().mask());
  }
}

bool CompareStreams(const std::string& bytes, std::mt19937* random) {
  StreamAttentionRequest wanted;
  const bool valid = wanted.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  const auto got = Decode(slices);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (got.ok() && valid) ExpectSameMessage(*got, wanted);
  return valid;
}

std::string AnyMessage(std::mt19937& random) {
  StreamAttentionRequest message;
  if (random() % 3 == 0) {
    *message.mutable_header() = AnyRequest(random);
  } else if (random() % 8 != 0) {
    v1::KeyValueChunk& chunk = *message.mutable_chunk();
    if (random() % 8 != 0) *chunk.mutable_key() = AnyTensor(random);
    if (random() % 8 != 0) *chunk.mutable_value() = AnyTensor(random);
    if (random() % 2 != 0) *chunk.mutable_mask() = AnyTensor(random);
  }
  return message.SerializeAsString();
}

// Among them messages of several parts, of which the last kind counts.
TEST(StreamRequestTest, AgreesWithProtobuf) {
  ExpectAgreement(AnyMessage, CompareStreams);
}

TEST(StreamRequestTest, GroupsNestAsDeepAsInProtobuf) {
  const std::vector<std::vector<int>> places = {{},     {1},     {2},
                                                {1, 1}, {1, 10}, {2, 3}};
  for (const std::vector<int>& place : places) {
    for (int depth = 96; depth <= 102; ++depth) {
      SCOPED_TRACE(absl::StrCat(place.size(), " messages, depth ", depth));
      std::string bytes = Groups(depth);
      for (size_t i = place.size(); i-- > 0;) bytes = Nested(place[i], bytes);
      CompareStreams(bytes, nullptr);
    }
  }
}

TEST(StreamRequestTest, DataStaysInTheSlices) {
  StreamAttentionRequest message;
  message.mutable_chunk()->mutable_value()->set_data(std::string(1000, 'v'));
  const std::string bytes = message.SerializeAsString();
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto fields = Decode(slices);
  ASSERT_TRUE(fields.ok()) << fields.status();
  EXPECT_EQ(std::get<ChunkFields>(*fields).value.data.remaining(), 1000u);
}

TEST(StreamRequestTest, ErrorsNameTheFieldFromTheTop) {
  StreamAttentionRequest message;
  for (size_t i = 0; i <= kMostNumbers; ++i) {
    message.mutable_header()->add_query_starts(1);
  }
  const absl::Status list =
      Decode(Cut(message.SerializeAsString(), nullptr)).status();
  EXPECT_EQ(list.message(),
            "header.query_starts: got more than 1000 numbers, the most there "
            "are");
  EXPECT_EQ(ErrorField(list), "header.query_starts");
  EXPECT_TRUE(IsLimitError(list));

  message.Clear();
  const std::vector<double> sinks(kMaxOptionsBytes / 8, 1);
  message.mutable_header()->mutable_options()->mutable_sinks()->Add(
      sinks.begin(), sinks.end());
  EXPECT_EQ(
      ErrorField(Decode(Cut(message.SerializeAsString(), nullptr)).status()),
      "header.options");
}

TEST(StreamRequestTest, MalformedBytesAreAnInvalidArgument) {
  EXPECT_EQ(Decode(Cut("\x0a\x7f", nullptr)).status(),
            absl::InvalidArgumentError(
                "the message is not a valid "
                "attention.v1.StreamAttentionRequest message"));
}

// Options that are thrown away again cost time as well.
TEST(StreamRequestTest, BoundsOptionsOverAllParts) {
  std::string once = Nested(1, std::string("\x52\x00", 2));
  once += Nested(2, "");
  std::string bytes;
  for (int64_t i = 0; i < kMaxOptionsParts; ++i) bytes += once;
  EXPECT_TRUE(Decode(Cut(bytes, nullptr)).ok());
  EXPECT_EQ(Decode(Cut(bytes + once, nullptr)).status().message(),
            "header.options: got more than 1024 parts, the most there may be");
}

TEST(StreamRequestTest, BoundsFieldsOverAllMessages) {
  std::string fields;
  for (int64_t i = 0; i < kMaxFields - 1; ++i) fields += "\x78\x01";
  EXPECT_TRUE(Decode(Cut(Nested(2, fields), nullptr)).ok());
  EXPECT_EQ(
      Decode(Cut(Nested(2, fields + "\x78\x01"), nullptr)).status().message(),
      "the message has more than 524288 fields, the most there may be");
}

TEST(StreamRequestTest, GivesBackTheMemoryOfAPartThatIsReplaced) {
  StreamAttentionRequest header;
  for (int i = 0; i < 600; ++i) header.mutable_header()->add_key_starts(1);
  StreamAttentionRequest chunk;
  chunk.mutable_chunk()->mutable_key()->add_float_values(1);
  const auto pool = BufferPool::Create(0);
  MemoryMeter meter;
  const std::string bytes =
      header.SerializeAsString() + chunk.SerializeAsString();
  ASSERT_TRUE(
      DecodeStreamRequest(Cut(bytes, nullptr), *pool, meter, kMostNumbers)
          .ok());
  EXPECT_EQ(meter.taken(), 4);
}

}  // namespace
}  // namespace attention::wire
