// The decoder against protobuf's own parser, on good messages and on damaged
// ones.
#include "server/wire/request_decoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "kernel/attention.h"
#include "tests/support/messages.h"

namespace attention::server::wire {
namespace {

using v1::ComputeAttentionRequest;

// `bytes` cut into slices at random, or whole.
std::vector<grpc::Slice> Cut(const std::string& bytes, std::mt19937* random) {
  std::vector<grpc::Slice> slices;
  size_t begin = 0;
  while (begin < bytes.size()) {
    const size_t length = random == nullptr ? bytes.size() : (*random)() % 40;
    slices.emplace_back(bytes.substr(begin, length));
    begin += length;
  }
  return slices;
}

std::string BytesOf(SliceReader reader) {
  std::string bytes(reader.remaining(), '\0');
  EXPECT_TRUE(reader.ReadBytes(bytes.data(), bytes.size()));
  return bytes;
}

void ExpectTensor(const TensorFields& got, bool present,
                  const v1::Tensor& wanted) {
  ASSERT_EQ(got.present, present);
  EXPECT_EQ(got.data_type, wanted.data_type());
  EXPECT_EQ(got.rank, wanted.shape_size());
  Shape shape(wanted.shape().begin(), wanted.shape().end());
  if (shape.size() > kMaxRank) shape.resize(kMaxRank);
  EXPECT_EQ(got.shape, shape);
  EXPECT_EQ(BytesOf(got.data), wanted.data());
  ASSERT_EQ(got.float_count, wanted.float_values_size());
  if (got.float_count > 0) {
    // Bits, for NaN is among them.
    EXPECT_EQ(std::memcmp(got.float_values.data(), wanted.float_values().data(),
                          got.float_count * sizeof(float)),
              0);
  }
}

void ExpectList(const std::vector<int64_t>& got,
                const google::protobuf::RepeatedField<int64_t>& wanted) {
  EXPECT_EQ(got, std::vector<int64_t>(wanted.begin(), wanted.end()));
}

void ExpectSame(const RequestFields& got, const ComputeAttentionRequest& want) {
  ExpectTensor(got.query, want.has_query(), want.query());
  ExpectTensor(got.key, want.has_key(), want.key());
  ExpectTensor(got.value, want.has_value(), want.value());
  ExpectTensor(got.mask, want.has_mask(), want.mask());
  ExpectTensor(got.past_key, want.has_past_key(), want.past_key());
  ExpectTensor(got.past_value, want.has_past_value(), want.past_value());
  ExpectList(got.valid_lengths, want.valid_lengths());
  ExpectList(got.query_starts, want.query_starts());
  ExpectList(got.key_starts, want.key_starts());
  EXPECT_EQ(got.options.SerializeAsString(),
            want.options().SerializeAsString());
}

constexpr size_t kMostNumbers = 1000;

// Without a bound of memory.
absl::StatusOr<RequestFields> Decode(const std::vector<grpc::Slice>& slices,
                                     BufferPool& pool) {
  MemoryMeter meter;
  return DecodeRequest(slices, pool, meter, kMostNumbers);
}

// Whether both take the bytes; fails if they disagree, or on what they say.
bool Compare(const std::string& bytes, std::mt19937* random) {
  static const auto pool = BufferPool::Create(0);
  ComputeAttentionRequest wanted;
  const bool valid = wanted.ParseFromString(bytes);
  const std::vector<grpc::Slice> slices = Cut(bytes, random);
  const auto got = Decode(slices, *pool);
  EXPECT_EQ(got.ok(), valid) << got.status();
  if (got.ok() && valid) ExpectSame(*got, wanted);
  return valid;
}

v1::Tensor AnyTensor(std::mt19937& random) {
  v1::Tensor tensor;
  if (random() % 4 != 0) {
    tensor.set_data_type(static_cast<v1::DataType>(random() % 12));
  }
  for (size_t i = random() % 11; i > 0; --i) {
    tensor.add_shape(random() % 8 == 0 ? -1 : static_cast<int64_t>(random()));
  }
  if (random() % 2 == 0) {
    for (size_t i = random() % 50; i > 0; --i) {
      tensor.mutable_data()->push_back(static_cast<char>(random()));
    }
  }
  if (random() % 2 == 0) {
    for (size_t i = random() % 20; i > 0; --i) {
      tensor.add_float_values(static_cast<float>(random()));
    }
  }
  return tensor;
}

ComputeAttentionRequest AnyRequest(std::mt19937& random) {
  ComputeAttentionRequest request;
  if (random() % 8 != 0) *request.mutable_query() = AnyTensor(random);
  if (random() % 8 != 0) *request.mutable_key() = AnyTensor(random);
  if (random() % 8 != 0) *request.mutable_value() = AnyTensor(random);
  if (random() % 2 != 0) *request.mutable_mask() = AnyTensor(random);
  if (random() % 2 != 0) *request.mutable_past_key() = AnyTensor(random);
  if (random() % 2 != 0) *request.mutable_past_value() = AnyTensor(random);
  for (size_t i = random() % 4; i > 0; --i) request.add_valid_lengths(random());
  for (size_t i = random() % 4; i > 0; --i) request.add_query_starts(-1);
  for (size_t i = random() % 4; i > 0; --i) request.add_key_starts(random());
  if (random() % 2 != 0) {
    v1::AttentionOptions* options = request.mutable_options();
    options->set_causal(static_cast<v1::Causal>(random() % 5));
    if (random() % 2 != 0) options->set_scale(random());
    if (random() % 2 != 0) options->mutable_window()->set_left(random() % 9);
    for (size_t i = random() % 4; i > 0; --i) options->add_sinks(random());
  }
  return request;
}

// Damages a message the way senders and attackers do.
void Mutate(std::mt19937& random, std::string* bytes) {
  if (bytes->empty()) return;
  const size_t at = random() % bytes->size();
  switch (random() % 5) {
    case 0:
      (*bytes)[at] = static_cast<char>(random());
      break;
    case 1:
      (*bytes)[at] = static_cast<char>((*bytes)[at] ^ 1 << random() % 8);
      break;
    case 2:
      bytes->erase(at, random() % 4);
      break;
    case 3:
      bytes->insert(at, 1, static_cast<char>(random()));
      break;
    case 4:
      bytes->resize(at);
      break;
  }
}

TEST(RequestDecoderTest, AgreesWithProtobufOnValidMessages) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    EXPECT_TRUE(Compare(AnyRequest(random).SerializeAsString(), &random));
    if (HasFailure()) break;
  }
}

TEST(RequestDecoderTest, AgreesWithProtobufOnMergedMessages) {
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    std::string bytes;
    for (size_t part = 1 + random() % 4; part > 0; --part) {
      bytes += AnyRequest(random).SerializeAsString();
    }
    EXPECT_TRUE(Compare(bytes, &random));
    if (HasFailure()) break;
  }
}

TEST(RequestDecoderTest, AgreesWithProtobufOnDamagedMessages) {
  std::mt19937 random(3);
  int valid = 0;
  constexpr int kMessages = 40000;
  for (int i = 0; i < kMessages; ++i) {
    SCOPED_TRACE(i);
    std::string bytes = AnyRequest(random).SerializeAsString();
    for (size_t times = 1 + random() % 3; times > 0; --times) {
      Mutate(random, &bytes);
    }
    valid += Compare(bytes, &random) ? 1 : 0;
    if (HasFailure()) break;
  }
  // Both kinds are well represented.
  EXPECT_GT(valid, kMessages / 20);
  EXPECT_LT(valid, kMessages * 19 / 20);
}

TEST(RequestDecoderTest, AgreesWithProtobufOnNoise) {
  std::mt19937 random(4);
  for (int i = 0; i < 20000; ++i) {
    SCOPED_TRACE(i);
    std::string bytes(random() % 24, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 100);
    Compare(bytes, &random);
    if (HasFailure()) break;
  }
}

TEST(RequestDecoderTest, TakesUnpackedNumbersAndUnknownFields) {
  // query { shape: 2 shape: 3 (unpacked) float_values: 1 (unpacked)
  //         field 5: "x" field 100: group }, valid_lengths: 7 (unpacked).
  const std::string tensor = std::string(
      "\x10\x02\x10\x03\x25\x00\x00\x80\x3f\x2a\x01x\xa3\x06\xa4\x06", 16);
  const std::string bytes = "\x0a" +
                            std::string(1, static_cast<char>(tensor.size())) +
                            tensor + "\x38\x07";
  EXPECT_TRUE(Compare(bytes, nullptr));
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto pool = BufferPool::Create(0);
  const auto fields = Decode(slices, *pool);
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ(fields->query.shape, (Shape{2, 3}));
  EXPECT_EQ(fields->query.float_count, 1u);
  EXPECT_EQ(fields->valid_lengths, std::vector<int64_t>{7});
}

TEST(RequestDecoderTest, DataStaysInTheSlices) {
  const std::string bytes =
      attention::testing::SmallRequest().SerializeAsString();
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto pool = BufferPool::Create(size_t{1} << 30);
  const auto fields = Decode(slices, *pool);
  ASSERT_TRUE(fields.ok());
  EXPECT_EQ(fields->query.float_values.capacity(), 0u);
  EXPECT_EQ(fields->query.data.remaining(), 24 * sizeof(float));
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
    EXPECT_TRUE(Compare(bytes, nullptr));
    const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
    const auto fields = Decode(slices, *pool);
    ASSERT_TRUE(fields.ok());
    EXPECT_EQ(fields->query.float_count, 3 * pieces);
    EXPECT_LE(fields->query.float_values.capacity(), bytes.size());
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
                                 fields->value.float_values.capacity()) +
                kMemoryPerOptionsByte *
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
}  // namespace attention::server::wire
