#include "wire/message_reader.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "tests/wire/differential.h"

namespace attention::wire {
namespace {

// Merges `options` of the bytes of a request.
absl::Status MergeOptions(const std::string& options,
                          v1::AttentionOptions* merged) {
  const std::string bytes =
      Nested(v1::ComputeAttentionRequest::kOptionsFieldNumber, options);
  const std::vector<grpc::Slice> slices = Cut(bytes, nullptr);
  const auto pool = BufferPool::Create(0);
  MemoryMeter meter;
  Decoding decoding("request", "attention.v1.ComputeAttentionRequest", *pool,
                    meter);
  MessageReader reader(SliceReader(slices), decoding);
  SliceReader part;
  EXPECT_TRUE(reader.Next() && reader.Bytes(&part));
  reader.Merge(part, merged);
  return decoding.status();
}

// softcap = 1.
const std::string kSoftcap("\x29\0\0\0\0\0\0\xf0\x3f", 9);

TEST(MessageReaderTest, MergesWellFormedFields) {
  v1::AttentionOptions options;
  options.set_chunk_size(7);
  // Also a text and a group that nobody knows.
  const absl::Status status = MergeOptions(
      kSoftcap + std::string("\xa2\x06\x02xy\xab\x06\x08\x05\xac\x06"),
      &options);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(options.softcap(), 1);
  EXPECT_EQ(options.chunk_size(), 7);
}

// protobuf would take the memory that these lengths promise.
TEST(MessageReaderTest, MergesNothingThatIsLongerThanItsBytes) {
  // 2^25 - 1, in four bytes.
  const std::string length = "\xff\xff\xff\x0f";
  const std::pair<const char*, std::string> cases[] = {
      {"a text", "\xa2\x06" + length + "x"},
      {"a text without a byte", "\xa2\x06" + length},
      {"sinks", "\x4a" + length + std::string(16, '\0')},
      {"a message", "\x3a" + length + "\x08\x01"},
      {"a text in a group", "\xab\x06\xa2\x06" + length + "x\xac\x06"},
      {"one byte more", std::string("\xa2\x06\x02x")},
  };
  for (const auto& [what, field] : cases) {
    SCOPED_TRACE(what);
    v1::AttentionOptions options;
    const absl::Status status = MergeOptions(kSoftcap + field, &options);
    EXPECT_EQ(status.message(),
              "the request is not a valid attention.v1.ComputeAttentionRequest "
              "message");
    // Not even what stands before it: protobuf has not been asked.
    EXPECT_EQ(options.softcap(), 0);
    EXPECT_LT(options.SpaceUsedLong(), 4096);
  }
}

TEST(MessageReaderTest, NestedLengthsEndWithTheirMessage) {
  // In `window`, whose own length is right.
  v1::AttentionOptions options;
  const std::string text = "\xa2\x06\xff\xff\xff\x0fx";
  const absl::Status status = MergeOptions(
      kSoftcap + "\x3a" + static_cast<char>(text.size()) + text, &options);
  EXPECT_FALSE(status.ok());
  EXPECT_LT(options.SpaceUsedLong(), 4096);
}

}  // namespace
}  // namespace attention::wire
