// The writer against protobuf's own, on random messages.
#include "wire/message_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "tests/wire/differential.h"
#include "wire/tensor_fields.h"

namespace attention::wire {
namespace {

using v1::ComputeAttentionRequest;

constexpr size_t kMega = size_t{1} << 20;

// How a payload gets into the message.
enum class How { kCopy, kBorrow, kPlace, kPlaceWithoutRoom };

class Writer {
 public:
  explicit Writer(std::mt19937& random) : random_(random) {}

  grpc::ByteBuffer Write(const ComputeAttentionRequest& request) {
    MessageWriter message;
    if (request.has_query()) Add(1, request.query(), message);
    if (request.has_key()) Add(2, request.key(), message);
    if (request.has_value()) Add(3, request.value(), message);
    if (request.has_mask()) Add(4, request.mask(), message);
    if (request.has_past_key()) Add(5, request.past_key(), message);
    if (request.has_past_value()) Add(6, request.past_value(), message);
    message.Integers(7, request.valid_lengths());
    message.Integers(8, request.query_starts());
    message.Integers(9, request.key_starts());
    if (request.has_options()) message.Message(10, request.options());
    if (request.has_outputs()) Add(11, request.outputs(), message);
    if (request.has_indices()) Add(12, request.indices(), message);
    if (request.has_sinks()) Add(13, request.sinks(), message);
    EXPECT_EQ(message.bytes(), request.ByteSizeLong());
    return std::move(message).Finish();
  }

 private:
  void Add(int field, const v1::Tensor& tensor, MessageWriter& message) {
    MessageWriter writer = StartTensor(
        tensor.data_type(),
        {tensor.shape().data(), static_cast<size_t>(tensor.shape().size())});
    AddPayload(v1::Tensor::kDataFieldNumber, tensor.data(), writer);
    AddPayload(
        v1::Tensor::kFloatValuesFieldNumber,
        std::string(reinterpret_cast<const char*>(tensor.float_values().data()),
                    tensor.float_values_size() * sizeof(float)),
        writer);
    if (tensor.has_shared_memory()) {
      Add(v1::Tensor::kSharedMemoryFieldNumber, tensor.shared_memory(), writer);
    }
    message.Message(field, std::move(writer));
  }

  static void Add(int field, const v1::SharedMemory& place,
                  MessageWriter& message) {
    WriteSharedMemory(field, place.region(), place.offset(), message);
  }

  static void Add(int field, const v1::OutputMemory& outputs,
                  MessageWriter& message) {
    MessageWriter writer;
    if (outputs.has_output()) Add(1, outputs.output(), writer);
    if (outputs.has_log_sum_exp()) Add(2, outputs.log_sum_exp(), writer);
    if (outputs.has_scores()) Add(3, outputs.scores(), writer);
    if (outputs.has_present_key()) Add(4, outputs.present_key(), writer);
    if (outputs.has_present_value()) Add(5, outputs.present_value(), writer);
    message.Message(field, std::move(writer));
  }

  void AddPayload(int field, const std::string& bytes, MessageWriter& writer) {
    switch (static_cast<How>(random_() % 4)) {
      case How::kCopy:
        return writer.Copy(field, bytes);
      case How::kBorrow:
        return writer.Borrow(field, grpc::Slice(bytes));
      case How::kPlace:
        return Place(field, bytes, random_() % 200, random_() % 80, writer);
      case How::kPlaceWithoutRoom:
        return Place(field, bytes, 0, 0, writer);
    }
  }

  void Place(int field, const std::string& bytes, size_t before, size_t after,
             MessageWriter& writer) {
    Payload payload{pool_->Allocate(before + bytes.size() + after), before,
                    before + bytes.size()};
    std::byte* target = payload.memory.data() + before;
    writer.Place(field, std::move(payload));
    // Only now: it may be written until the end.
    if (!bytes.empty()) std::memcpy(target, bytes.data(), bytes.size());
  }

  std::mt19937& random_;
  const std::shared_ptr<BufferPool> pool_ = BufferPool::Create(0);
};

TEST(MessageWriterTest, WritesTheBytesThatProtobufWrites) {
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) {
    SCOPED_TRACE(i);
    const ComputeAttentionRequest request = AnyRequest(random);
    EXPECT_EQ(BytesOf(Writer(random).Write(request)),
              request.SerializeAsString());
    if (HasFailure()) break;
  }
}

TEST(MessageWriterTest, AnEmptyMessageHasNoBytes) {
  grpc::ByteBuffer message = MessageWriter().Finish();
  EXPECT_TRUE(message.Valid());
  EXPECT_EQ(message.Length(), 0u);
}

TEST(MessageWriterTest, EmptyMessagesAreThere) {
  MessageWriter message;
  message.Message(1, MessageWriter());
  message.Message(10, v1::AttentionOptions());
  EXPECT_EQ(BytesOf(std::move(message).Finish()),
            std::string("\x0a\x00\x52\x00", 4));
}

TEST(MessageWriterTest, NegativeNumbersTakeTenBytes) {
  v1::Tensor tensor;
  tensor.set_data_type(static_cast<v1::DataType>(-3));
  tensor.add_shape(-1);
  MessageWriter writer = StartTensor(-3, {-1});
  EXPECT_EQ(BytesOf(std::move(writer).Finish()), tensor.SerializeAsString());
}

TEST(MessageWriterTest, BorrowsWithoutACopyAndLetsGo) {
  std::string memory(kMega, 'x');
  int released = 0;
  MessageWriter message;
  message.Borrow(
      3, grpc::Slice(
             memory.data(), memory.size(),
             [](void* count) { ++*static_cast<int*>(count); }, &released));
  {
    const grpc::ByteBuffer buffer = std::move(message).Finish();
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(buffer.Dump(&slices).ok());
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(static_cast<const void*>(slices[1].begin()), memory.data());
    EXPECT_EQ(released, 0);
  }
  EXPECT_EQ(released, 1);
}

TEST(MessageWriterTest, AWriterThatIsDroppedLetsGo) {
  std::string memory(kMega, 'x');
  int released = 0;
  {
    MessageWriter message;
    message.Borrow(
        3, grpc::Slice(
               memory.data(), memory.size(),
               [](void* count) { ++*static_cast<int*>(count); }, &released));
  }
  EXPECT_EQ(released, 1);
}

TEST(MessageWriterTest, SmallFieldsGoIntoThePayloadsMemory) {
  const auto pool = BufferPool::Create(0);
  MessageWriter message;
  for (int field : {3, 4}) {
    message.Integer(1, 7);
    message.Place(field, {pool->Allocate(1000), 100, 900});
  }
  message.Integer(5, 8);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(std::move(message).Finish().Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(slices[0].size(), 2 + 3 + 800u);
  EXPECT_EQ(slices[1].size(), 2 + 3 + 800u + 2);
}

}  // namespace
}  // namespace attention::wire
