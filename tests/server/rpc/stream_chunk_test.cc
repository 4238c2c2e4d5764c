// What is copied at a time, and that all of it is.
#include "server/rpc/stream_chunk.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "kernel/attention.h"
#include "server/stream_format.h"
#include "sessions/page_set.h"
#include "tests/support/messages.h"
#include "wire/memory_meter.h"

namespace attention::server {
namespace {

using testing::RandomTensor;

ConstTensorView Declared(DataType type, const Shape& shape) {
  ConstTensorView view;
  view.type = type;
  view.shape = shape;
  return view;
}

// Tokens of many sequences, or with many rows of a mask, whose rows are tiny.
TEST(StreamChunkTest, NoTaskCopiesManyRows) {
  constexpr int64_t kBatch = 70'000, kTokens = 3, kMostRows = 1 << 16;
  v1::StreamAttentionRequest message;
  v1::KeyValueChunk& sent = *message.mutable_chunk();
  *sent.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {kBatch, 1, kTokens, 1}, 1);
  *sent.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {kBatch, 1, kTokens, 1}, 2);
  *sent.mutable_mask() =
      RandomTensor(v1::DATA_TYPE_BOOL, {kBatch, 1, 2, kTokens}, 3);
  AttentionInputs inputs;
  inputs.query = Declared(DataType::kFloat32, {kBatch, 1, 2, 1});
  inputs.key = Declared(DataType::kFloat32, {kBatch, 1, kTokens, 1});
  inputs.value = inputs.key;
  inputs.mask = Declared(DataType::kBool, {kBatch, 1, 2, kTokens});
  const StreamFormat format(inputs, AttentionOptions());
  const auto pool = BufferPool::Create(0);
  PageSet pages(format.geometry(),
                pool->Allocate(PageSet::Bytes(format.geometry())));
  pages.Begin(0);
  const grpc::Slice slice(message.SerializeAsString());
  StreamChunk chunk(format, grpc::ByteBuffer(&slice, 1));
  wire::MemoryMeter meter;
  ASSERT_TRUE(chunk.Decode(0, *pool, meter, 1).ok());
  const int64_t tasks = chunk.Prepare(pages, {0, kTokens});
  // Two for each token of key and value, and for all columns of 140'000 rows
  // of the mask.
  EXPECT_EQ(tasks, 2 * 2 * kTokens + (2 * kBatch + kMostRows - 1) / kMostRows);
  for (int64_t i = tasks - 1; i >= 0; --i) chunk.Copy(i);
  EXPECT_TRUE(chunk.CheckMask().ok());
  // Row by row, as one comes after the other.
  for (int64_t i = 0; i < kBatch; ++i) {
    const auto& block = pages.views()[i].blocks[0];
    constexpr size_t kBytes = kTokens * sizeof(float);
    ASSERT_EQ(
        std::memcmp(block.key, sent.key().data().data() + i * kBytes, kBytes),
        0);
    ASSERT_EQ(std::memcmp(block.value, sent.value().data().data() + i * kBytes,
                          kBytes),
              0);
  }
  ASSERT_EQ(pages.mask_stride(), kTokens);
  EXPECT_EQ(std::memcmp(pages.mask(), sent.mask().data().data(),
                        sent.mask().data().size()),
            0);
}

}  // namespace
}  // namespace attention::server
