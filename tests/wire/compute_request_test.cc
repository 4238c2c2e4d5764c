// The decoder against protobuf's own parser, on good messages and on damaged
// ones.
#include "wire/compute_request.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "base/field_error.h"
#include "kernel/tensor_view.h"
#include "tests/wire/differential.h"

namespace attention::wire {
namespace {

using v1::ComputeAttentionRequest;

constexpr size_t kMostNumbers = 1000;

// Without a bound of memory.
absl::StatusOr<RequestFields> Decode(const std::vector<grpc::Slice>& slices,
                                     BufferPool& pool) {
  MemoryMeter meter;
  return DecodeRequest(slices, pool, meter, kMostNumbers);
}

// Whether both take the bytes; fails if they disagree, or on what they say.
bool CompareRequests(const std::string& bytes, std::mt19937* random) {
  static const auto pool = BufferPool::Create(0);
  ComputeAttentionRequest wanted;
  const bool valid = wanted.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  const auto got = Decode(slices, *pool);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (got.ok() && valid) ExpectSame(*got, wanted);
  return valid;
}

TEST(RequestDecoderTest, AgreesWithProtobuf) {
  ExpectAgreement(
      [](std::mt19937& random) {
        return AnyRequest(random).SerializeAsString();
      },
      CompareRequests);
}

TEST(RequestDecoderTest, GroupsNestAsDeepAsInProtobuf) {
  // At the top, in a tensor, and in the options, where a message counts too.
  for (int within : {0, 1, 10}) {
    for (int depth = 97; depth <= 102; ++depth) {
      SCOPED_TRACE(absl::StrCat("field ", within, ", depth ", depth));
      const std::string groups = Groups(depth);
      CompareRequests(within == 0 ? groups : Nested(within, groups), nullptr);
    }
  }
}

TEST(RequestDecoderTest, TakesUnpackedNumbersAndUnknownFields) {
  // query { shape: 2 shape: 3 (unpacked) float_values: 1 (unpacked)
  //         field 6: "x" field 100: group }, valid_lengths: 7 (unpacked).
  const std::string tensor = std::string(
      "\x10\x02\x10\x03\x25\x00\x00\x80\x3f\x32\x01x\xa3\x06\xa4\x06", 16);
  const std::string bytes = "\x0a" +
                            std::string(1, static_cast<char>(tensor.size())) +
                            tensor + "\x38\x07";
  EXPECT_TRUE(CompareRequests(bytes, nullptr));
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto pool = BufferPool::Create(0);
  const auto fields = Decode(slices, *pool);
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ(fields->query.shape, (Shape{2, 3}));
  EXPECT_EQ(fields->query.float_values.count, 1u);
  EXPECT_EQ(fields->valid_lengths, std::vector<int64_t>{7});
}

TEST(RequestDecoderTest, DataStaysInTheSlices) {
  ComputeAttentionRequest request;
  request.mutable_query()->set_data(std::string(96, 'x'));
  const std::string bytes = request.SerializeAsString();
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto pool = BufferPool::Create(size_t{1} << 30);
  const auto fields = Decode(slices, *pool);
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ(fields->query.float_values.values.capacity(), 0u);
  EXPECT_EQ(fields->query.data.remaining(), 96);
}

// query { float_values in 2 * `pieces` pieces, packed and not }
std::string FloatPieces(int pieces) {
  std::string tensor;
  for (int i = 0; i < pieces; ++i) {
    tensor += std::string("\x25\x00\x00\x80\x3f", 5);
    tensor += std::string("\x22\x08\x00\x00\x00\x40\x00\x00\x40\x40", 10);
  }
  std::string bytes = "\x0a";
  for (size_t size = tensor.size(); size > 0; size >>= 7) {
    bytes += static_cast<char>((size & 0x7f) | (size > 0x7f ? 0x80 : 0));
  }
  return bytes + tensor;
}

TEST(RequestDecoderTest, FloatValuesTakeNoMoreThanWasSent) {
  const auto pool = BufferPool::Create(0);
  // The memory grows step by step, so where it ends depends on the number.
  for (int pieces = 1; pieces < 4000; pieces = pieces * 5 / 4 + 1) {
    SCOPED_TRACE(pieces);
    const std::string bytes = FloatPieces(pieces);
    EXPECT_TRUE(CompareRequests(bytes, nullptr));
    const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
    const auto fields = Decode(slices, *pool);
    ASSERT_TRUE(fields.ok());
    EXPECT_EQ(fields->query.float_values.count, 3 * pieces);
    EXPECT_LE(fields->query.float_values.values.capacity(), bytes.size());
  }
}

TEST(RequestDecoderTest, RefusesEndlessLists) {
  ComputeAttentionRequest request;
  const auto pool = BufferPool::Create(0);
  const std::vector<int64_t> starts(kMostNumbers, 1);
  request.mutable_key_starts()->Add(starts.begin(), starts.end());
  std::string bytes = request.SerializeAsString();
  EXPECT_TRUE(Decode(Cut(bytes, nullptr), *pool).ok());
  request.add_key_starts(1);
  bytes = request.SerializeAsString();
  const auto fields = Decode(Cut(bytes, nullptr), *pool);
  EXPECT_EQ(fields.status().message(),
            "key_starts: got more than 1000 numbers, the most there are");
  EXPECT_EQ(ErrorField(fields.status()), "key_starts");
}

// Lists of numbers of a byte each, floats one by one, options.
std::string GrowingBytes() {
  ComputeAttentionRequest request;
  for (int i = 0; i < 700; ++i) {
    request.add_query_starts(i % 100);
    request.add_key_starts(1);
    request.mutable_value()->add_float_values(1);
  }
  request.mutable_options()->add_sinks(1);
  return request.SerializeAsString();
}

TEST(RequestDecoderTest, AsksForMemoryBeforeItIsTaken) {
  const auto pool = BufferPool::Create(0);
  const std::string bytes = GrowingBytes();
  std::vector<int64_t> asked;
  MemoryMeter meter(100, [&](int64_t wanted) {
    asked.push_back(wanted);
    return absl::OkStatus();
  });
  const auto fields =
      DecodeRequest(Cut(bytes, nullptr), *pool, meter, kMostNumbers);
  ASSERT_TRUE(fields.ok()) << fields.status();
  // While a list grows it is there twice.
  EXPECT_TRUE(std::is_sorted(asked.begin(), asked.end()));
  EXPECT_GT(asked.front(), 100);
  // What is left is what the result holds.
  EXPECT_EQ(meter.taken(),
            static_cast<int64_t>((fields->query_starts.capacity() +
                                  fields->key_starts.capacity()) *
                                     sizeof(int64_t) +
                                 fields->value.float_values.values.capacity()) +
                kMemoryPerMessageByte *
                    static_cast<int64_t>(fields->options.ByteSizeLong()));
  EXPECT_GE(asked.back(), meter.taken());
}

TEST(RequestDecoderTest, GivesWhatTheMeterSays) {
  const auto pool = BufferPool::Create(0);
  const std::string bytes = GrowingBytes();
  const absl::Status busy = absl::ResourceExhaustedError("busy");
  // Wherever the memory ends.
  for (int64_t most = 100; most < 10000; most += 300) {
    MemoryMeter meter(most, [&](int64_t) { return busy; });
    const auto fields =
        DecodeRequest(Cut(bytes, nullptr), *pool, meter, kMostNumbers);
    EXPECT_EQ(fields.status(), busy) << most;
    EXPECT_LE(meter.taken(), most);
  }
}

TEST(RequestDecoderTest, RefusesHugeOptions) {
  ComputeAttentionRequest request;
  const std::vector<double> sinks(kMaxOptionsBytes / 8, 1);
  request.mutable_options()->mutable_sinks()->Add(sinks.begin(), sinks.end());
  const std::string bytes = request.SerializeAsString();
  const auto pool = BufferPool::Create(0);
  const auto fields = Decode(Cut(bytes, nullptr), *pool);
  EXPECT_EQ(fields.status().message(),
            "options: got 1048580 bytes, wanted at most 1048576");
}

// Each is a small message that takes long to look through.
TEST(RequestDecoderTest, RefusesEndlessFields) {
  const auto repeated = [](const std::string& bytes, int64_t times) {
    std::string all;
    for (int64_t i = 0; i < times; ++i) all += bytes;
    return all;
  };
  // As `query`, of so many bytes.
  const auto query = [](const std::string& tensor) {
    std::string bytes = "\x0a";
    for (size_t length = tensor.size();; length >>= 7) {
      bytes += static_cast<char>((length & 0x7f) | (length >= 128 ? 128 : 0));
      if (length < 128) return bytes + tensor;
    }
  };
  const std::string too_many =
      "the request has more than 524288 fields, the most there may be";
  const std::string unknown = "\x78\x01";
  const std::string group = repeated(unknown, kMaxFields - 1);
  const std::string dims = repeated("\x01", kMaxFields);
  const auto pool = BufferPool::Create(0);
  for (const auto& [bytes, error] :
       std::vector<std::pair<std::string, std::string>>{
           {repeated(unknown, kMaxFields), ""},
           {repeated(unknown, kMaxFields + 1), too_many},
           {"\x7b" + group + "\x7c", too_many},
           {query(repeated(unknown, kMaxFields)), too_many},
           {query(repeated("\x10\x01", kMaxFields)), too_many},
           {query("\x12" + query(dims).substr(1)), too_many},
           {repeated({"\x52\x00", 2}, kMaxOptionsParts), ""},
           {repeated({"\x52\x00", 2}, kMaxOptionsParts + 1),
            "options: got more than 1024 parts, the most there may be"}}) {
    const auto fields = Decode(Cut(bytes, nullptr), *pool);
    EXPECT_EQ(fields.status().message(), error);
    EXPECT_EQ(fields.ok(), error.empty());
  }
}

TEST(RequestDecoderTest, MalformedBytesAreAnInvalidArgument) {
  const auto pool = BufferPool::Create(0);
  const std::string bytes = "\x0a\x7f";
  const auto fields = Decode(Cut(bytes, nullptr), *pool);
  EXPECT_EQ(fields.status(),
            absl::InvalidArgumentError(
                "the request is not a valid "
                "attention.v1.ComputeAttentionRequest message"));
}

}  // namespace
}  // namespace attention::wire
