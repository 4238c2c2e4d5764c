#include "tests/wire/differential.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace attention::wire {

using v1::ComputeAttentionRequest;

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

std::string BytesOf(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  return BytesOf(SliceReader(slices));
}

std::string BytesOf(SliceReader reader) {
  std::string bytes(reader.remaining(), '\0');
  EXPECT_TRUE(reader.ReadBytes(bytes.data(), bytes.size()));
  return bytes;
}

namespace {

v1::SharedMemory AnyPlace(std::mt19937& random) {
  v1::SharedMemory place;
  for (size_t i = random() % 20; i > 0; --i) {
    place.mutable_region()->push_back(static_cast<char>(random()));
  }
  if (random() % 2 == 0) place.set_offset(static_cast<int64_t>(random()) - 9);
  return place;
}

}  // namespace

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
  if (random() % 4 == 0) *tensor.mutable_shared_memory() = AnyPlace(random);
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
  if (random() % 2 != 0) *request.mutable_indices() = AnyTensor(random);
  if (random() % 2 != 0) *request.mutable_sinks() = AnyTensor(random);
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
  if (random() % 2 != 0) {
    v1::OutputMemory* outputs = request.mutable_outputs();
    for (const auto place : {&v1::OutputMemory::mutable_output,
                             &v1::OutputMemory::mutable_log_sum_exp,
                             &v1::OutputMemory::mutable_scores,
                             &v1::OutputMemory::mutable_present_key,
                             &v1::OutputMemory::mutable_present_value}) {
      if (random() % 2 != 0) *(outputs->*place)() = AnyPlace(random);
    }
  }
  return request;
}

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

namespace {

void ExpectPlace(const SharedMemoryFields& got, bool present,
                 const v1::SharedMemory& wanted) {
  EXPECT_EQ(got.present, present);
  EXPECT_EQ(BytesOf(got.region), wanted.region());
  EXPECT_EQ(got.offset, wanted.offset());
}

}  // namespace

void ExpectTensor(const TensorFields& got, bool present,
                  const v1::Tensor& wanted) {
  ASSERT_EQ(got.present, present);
  EXPECT_EQ(got.data_type, wanted.data_type());
  EXPECT_EQ(got.rank, wanted.shape_size());
  Shape shape(wanted.shape().begin(), wanted.shape().end());
  if (shape.size() > kMaxRank) shape.resize(kMaxRank);
  EXPECT_EQ(got.shape, shape);
  EXPECT_EQ(BytesOf(got.data), wanted.data());
  ExpectPlace(got.shared_memory, wanted.has_shared_memory(),
              wanted.shared_memory());
  ASSERT_EQ(got.float_values.count, wanted.float_values_size());
  if (got.float_values.count > 0) {
    // Bits, for NaN is among them.
    EXPECT_EQ(std::memcmp(got.float_values.values.data(),
                          wanted.float_values().data(),
                          got.float_values.count * sizeof(float)),
              0);
  }
}

namespace {

void ExpectList(const std::vector<int64_t>& got,
                const google::protobuf::RepeatedField<int64_t>& wanted) {
  EXPECT_EQ(got, std::vector<int64_t>(wanted.begin(), wanted.end()));
}

}  // namespace

void ExpectSame(const RequestFields& got, const ComputeAttentionRequest& want) {
  ExpectTensor(got.query, want.has_query(), want.query());
  ExpectTensor(got.key, want.has_key(), want.key());
  ExpectTensor(got.value, want.has_value(), want.value());
  ExpectTensor(got.mask, want.has_mask(), want.mask());
  ExpectTensor(got.past_key, want.has_past_key(), want.past_key());
  ExpectTensor(got.past_value, want.has_past_value(), want.past_value());
  ExpectTensor(got.indices, want.has_indices(), want.indices());
  ExpectTensor(got.sinks, want.has_sinks(), want.sinks());
  ExpectList(got.valid_lengths, want.valid_lengths());
  ExpectList(got.query_starts, want.query_starts());
  ExpectList(got.key_starts, want.key_starts());
  EXPECT_EQ(got.options.SerializeAsString(),
            want.options().SerializeAsString());
  const v1::OutputMemory& outputs = want.outputs();
  EXPECT_EQ(got.outputs.present, want.has_outputs());
  ExpectPlace(got.outputs.output, outputs.has_output(), outputs.output());
  ExpectPlace(got.outputs.log_sum_exp, outputs.has_log_sum_exp(),
              outputs.log_sum_exp());
  ExpectPlace(got.outputs.scores, outputs.has_scores(), outputs.scores());
  ExpectPlace(got.outputs.present_key, outputs.has_present_key(),
              outputs.present_key());
  ExpectPlace(got.outputs.present_value, outputs.has_present_value(),
              outputs.present_value());
}

namespace {

std::string Varint(size_t value) {
  std::string bytes;
  for (; value >= 128; value >>= 7) {
    bytes += static_cast<char>((value & 0x7f) | 0x80);
  }
  return bytes + static_cast<char>(value);
}

}  // namespace

std::string Nested(int field, const std::string& bytes) {
  return Varint(field << 3 | 2) + Varint(bytes.size()) + bytes;
}

std::string Groups(int depth) {
  // Field 15, which no message has.
  return std::string(depth, '\x7b') + std::string(depth, '\x7c');
}

void ExpectAgreement(const Author& author, const Compare& compare) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    EXPECT_TRUE(compare(author(random), &random));
    if (::testing::Test::HasFailure()) return;
  }
  for (int i = 0; i < 2000; ++i) {
    SCOPED_TRACE(i);
    std::string bytes;
    for (size_t part = 1 + random() % 4; part > 0; --part) {
      bytes += author(random);
    }
    EXPECT_TRUE(compare(bytes, &random));
    if (::testing::Test::HasFailure()) return;
  }
  int valid = 0;
  constexpr int kMessages = 40000;
  for (int i = 0; i < kMessages; ++i) {
    SCOPED_TRACE(i);
    std::string bytes = author(random);
    for (size_t times = 1 + random() % 3; times > 0; --times) {
      Mutate(random, &bytes);
    }
    valid += compare(bytes, &random) ? 1 : 0;
    if (::testing::Test::HasFailure()) return;
  }
  // Both kinds are well represented.
  EXPECT_GT(valid, kMessages / 20);
  EXPECT_LT(valid, kMessages * 19 / 20);
  for (int i = 0; i < 20000; ++i) {
    SCOPED_TRACE(i);
    std::string bytes(random() % 24, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 100);
    compare(bytes, &random);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace attention::wire
