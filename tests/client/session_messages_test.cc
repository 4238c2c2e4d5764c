#include "attention/internal/session_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "attention/internal/tensor_message.h"
#include "attention/status.h"
#include "attention/v1/session.pb.h"
#include "tests/wire/differential.h"

namespace attention::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;
using wire::BytesOf;

TensorSpan Lent(const v1::Tensor& tensor) {
  return {tensor.data_type(),
          {tensor.shape().begin(), tensor.shape().end()},
          std::as_bytes(std::span<const char>(tensor.data()))};
}

// A tensor as a client sends it, small or large.
v1::Tensor AnySent(std::mt19937& random) {
  v1::Tensor tensor = wire::AnyTensor(random);
  tensor.clear_float_values();
  tensor.clear_shared_memory();
  if (random() % 3 == 0) {
    tensor.mutable_data()->resize(kLentBytes - 2 + random() % 5000, 'x');
  }
  return tensor;
}

// A message, and the request that should be written as it. The request refers
// to the case.
struct StepCase {
  explicit StepCase(std::mt19937& random) {
    message.set_id("some session");
    message.set_layer(random() % 3);
    if (random() % 2 != 0) message.set_expected_length(random() % 2);
    request.id = message.id();
    request.layer = message.layer();
    if (message.has_expected_length()) {
      request.expected_length = message.expected_length();
    }
    if (random() % 2 != 0) Append(random);
    if (random() % 2 != 0) Attend(random);
  }
  StepCase(const StepCase&) = delete;

  void Append(std::mt19937& random) {
    message.set_request_id("request");
    request.request_id = "request";
    *message.mutable_key() = AnySent(random);
    key = Lent(message.key());
    request.key = &key;
    if (random() % 2 == 0) return;
    *message.mutable_value() = AnySent(random);
    value = Lent(message.value());
    request.value = &value;
  }
  void Attend(std::mt19937& random) {
    *message.mutable_query() = AnySent(random);
    query = Lent(message.query());
    request.query = &query;
    request.attend = &attend;
    if (random() % 2 != 0) {
      *message.mutable_mask() = AnySent(random);
      attend.mask = Lent(message.mask());
    }
    if (random() % 2 != 0) message.mutable_options()->set_softcap(3);
    attend.options = message.options();
    message.set_not_causal(random() % 2 != 0);
    attend.not_causal = message.not_causal();
    message.set_mask_begin(random() % 3 * 256);
    attend.mask_begin = message.mask_begin();
  }

  v1::StepItem message;
  LayerRequest request;
  TensorSpan key, value, query;
  AttendOptions attend;
};

TEST(SessionMessagesTest, WritesTheBytesThatProtobufWrites) {
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) {
    SCOPED_TRACE(i);
    StepCase one(random), other(random);
    v1::StepRequest message;
    *message.add_items() = one.message;
    *message.add_items() = other.message;
    const std::vector<LayerRequest> items = {one.request, other.request};
    Lease lease;
    ASSERT_EQ(BytesOf(EncodeStep(items, lease)), message.SerializeAsString());
    // An append and an attend alone are the item's fields.
    v1::AppendKeyValuesRequest append;
    append.set_id(one.message.id());
    append.set_layer(one.message.layer());
    if (one.message.has_expected_length()) {
      append.set_expected_length(one.message.expected_length());
    }
    append.set_request_id(one.message.request_id());
    if (one.message.has_key()) *append.mutable_key() = one.message.key();
    if (one.message.has_value()) *append.mutable_value() = one.message.value();
    ASSERT_EQ(BytesOf(EncodeAppend(one.request, lease)),
              append.SerializeAsString());
    LayerRequest alone = other.request;
    alone.request_id.clear();
    v1::AttendRequest attend;
    attend.set_id(other.message.id());
    attend.set_layer(other.message.layer());
    if (other.message.has_expected_length()) {
      attend.set_expected_length(other.message.expected_length());
    }
    if (other.message.has_query())
      *attend.mutable_query() = other.message.query();
    if (other.message.has_mask()) *attend.mutable_mask() = other.message.mask();
    if (other.message.has_options()) {
      *attend.mutable_options() = other.message.options();
    }
    attend.set_not_causal(other.message.not_causal());
    attend.set_mask_begin(other.message.mask_begin());
    if (i % 2 == 0) {
      attend.mutable_shard()->set_index(i);
      alone.shard = &attend.shard();
    }
    ASSERT_EQ(BytesOf(EncodeAttend(alone, lease)), attend.SerializeAsString());
    EXPECT_EQ(lease.lent(), 0);
  }
}

TEST(SessionMessagesTest, RangesOfAnAppend) {
  const auto lengths = [](std::vector<int64_t> key_shape,
                          std::vector<int64_t> value_shape, size_t most) {
    const std::vector<std::byte> bytes(1 << 16);
    const auto span = [&](const std::vector<int64_t>& shape) {
      return TensorSpan{
          v1::DATA_TYPE_BOOL, shape,
          std::span(bytes).first(static_cast<size_t>(*ElementCount(shape)))};
    };
    const TensorSpan key = span(key_shape), value = span(value_shape);
    std::vector<int64_t> found;
    int64_t next = 0;
    for (const TokenRange& range :
         RangesOf(key, value_shape.empty() ? nullptr : &value, most)) {
      EXPECT_EQ(range.begin, next);
      next = range.end;
      found.push_back(range.end - range.begin);
    }
    return found;
  };
  EXPECT_THAT(lengths({2, 10, 3}, {2, 10, 2}, 100), ElementsAre(10));
  EXPECT_THAT(lengths({2, 10, 3}, {2, 10, 2}, 99), ElementsAre(9, 1));
  EXPECT_THAT(lengths({2, 10, 3}, {2, 10, 2}, 40), ElementsAre(4, 4, 2));
  EXPECT_THAT(lengths({2, 3, 3}, {2, 3, 2}, 1), ElementsAre(1, 1, 1));
  EXPECT_THAT(lengths({2, 10, 3}, {}, 30), ElementsAre(5, 5));
  // What the server refuses goes whole.
  EXPECT_THAT(lengths({2, 10, 3}, {2, 9, 2}, 40), SizeIs(1));
  EXPECT_THAT(lengths({20, 3}, {2, 10, 2}, 40), SizeIs(1));
  EXPECT_THAT(lengths({0, 10, 3}, {}, 0), SizeIs(1));
  EXPECT_THAT(lengths({2, 0, 3}, {}, 0), SizeIs(1));
}

TEST(SessionMessagesTest, APieceHasTheTokensOfEachHead) {
  // Heads of 10,000 tokens of 4 bytes: large enough to be lent.
  std::vector<int32_t> numbers(2 * 10000);
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto key = TensorSpan::Of<int32_t>(numbers, {2, 10000, 1});
  LayerRequest request{.id = "a", .key = &key};
  Lease lease;
  v1::AppendKeyValuesRequest message;
  for (const TokenRange& range :
       {TokenRange{100, 103}, TokenRange{1000, 9000}}) {
    {
      const grpc::ByteBuffer bytes = EncodeAppend(request, range, lease);
      EXPECT_EQ(lease.lent(), range.begin == 100 ? 0 : 2);
      ASSERT_TRUE(message.ParseFromString(BytesOf(bytes)));
    }
    EXPECT_EQ(lease.lent(), 0);
    const int64_t count = range.end - range.begin;
    EXPECT_THAT(message.key().shape(), ElementsAre(2, count, 1));
    ASSERT_EQ(message.key().data().size(), 2 * 4 * count);
    const auto* data =
        reinterpret_cast<const int32_t*>(message.key().data().data());
    for (int64_t i = 0; i < count; ++i) {
      EXPECT_EQ(data[i], range.begin + i);
      EXPECT_EQ(data[count + i], 10000 + range.begin + i);
    }
  }
}

grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

TEST(SessionMessagesTest, AnswersThatAreNone) {
  EXPECT_EQ(DecodeAttend(Buffer("\x0a\x7f"), {}).status(),
            absl::InternalError("malformed answer: the answer is not a valid "
                                "attention.v1.AttendResponse message"));
  v1::StepResponse response;
  response.add_results()->set_length(1);
  const AttendOptions attend;
  LayerRequest item;
  item.attend = &attend;
  const std::vector<LayerRequest> items(2, item);
  EXPECT_EQ(DecodeStep(Buffer(response.SerializeAsString()), items).status(),
            absl::InternalError("malformed answer: got 1 results, wanted 2, "
                                "one for each item"));
  // A tensor that is none spoils its own item alone.
  v1::StepResult& wrong = *response.add_results();
  wrong.set_length(2);
  wrong.mutable_output()->set_data_type(v1::DATA_TYPE_FLOAT32);
  wrong.mutable_output()->add_shape(1);
  auto outcomes = DecodeStep(Buffer(response.SerializeAsString()), items);
  ASSERT_TRUE(outcomes.ok());
  EXPECT_TRUE((*outcomes)[0].result.ok());
  EXPECT_TRUE(absl::IsInternal((*outcomes)[1].result.status()));
  EXPECT_TRUE((*outcomes)[1].done);
  EXPECT_EQ((*outcomes)[1].length, 2);
  // A code that this library does not know is an error too.
  for (int code : {17, 4711, -1}) {
    wrong.set_code(code);
    outcomes = DecodeStep(Buffer(response.SerializeAsString()), items);
    EXPECT_TRUE(absl::IsUnknown((*outcomes)[1].result.status())) << code;
    EXPECT_FALSE((*outcomes)[1].done);
  }
}

}  // namespace
}  // namespace attention::internal
