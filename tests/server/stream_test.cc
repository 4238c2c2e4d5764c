// Streams: the bits of the unary answer, whatever the chunks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/attention_case.h"
#include "tests/support/messages.h"
#include "tests/support/sanitizers.h"
#include "tests/support/stream_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using test::AttentionCase;
using test::Random;
using v1::ComputeAttentionRequest;
using v1::ComputeAttentionResponse;

class StreamTest : public ::testing::TestWithParam<Transport> {
 protected:
  StreamTest() : server_(Options()), channel_(server_.Channel(GetParam())) {}

  static server::Options Options() {
    server::Options options = TestServer::DefaultOptions();
    // Above what a page set holds.
    options.max_chunk_bytes = int64_t{32} << 20;
    return options;
  }

  ComputeAttentionResponse Compute(const ComputeAttentionRequest& request) {
    grpc::ClientContext context;
    ComputeAttentionResponse response;
    const grpc::Status status =
        v1::AttentionService::NewStub(channel_)->ComputeAttention(
            &context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    response.clear_timing();
    return response;
  }

  // Streamed in chunks of at most `most` tokens, it has the same bits.
  void ExpectSameBits(const ComputeAttentionRequest& request, int64_t most,
                      uint64_t seed = 1) {
    ExpectAnswer(StreamOf(request), Compute(request).SerializeAsString(), most,
                 seed);
  }

  void ExpectAnswer(const StreamOf& stream, const std::string& answer,
                    int64_t most, uint64_t seed = 1) {
    Random random(seed);
    const StreamResult result =
        SendStream(channel_, MessagesOf(stream, [&](int64_t) {
                     return random.Integer(1, std::max<int64_t>(1, most));
                   }));
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    ASSERT_FALSE(result.messages.empty());
    for (size_t i = 0; i < result.messages.size(); ++i) {
      EXPECT_EQ(result.messages[i].has_timing(),
                i + 1 == result.messages.size());
    }
    // Not EXPECT_EQ, which would print megabytes.
    EXPECT_TRUE(stream.Answer(result.messages).SerializeAsString() == answer);
  }

  TestServer server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_P(StreamTest, AnyRequestInAnyChunks) {
  // The thread sanitizer does not see how gRPC hands messages over within a
  // process. It looks up the suppression anew for half a second of each
  // request.
  const bool slow = kThreadSanitizer && GetParam() == Transport::kInProcess;
  const uint64_t seeds = slow ? 30 : 300;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    Random random(seed);
    AttentionCase c = RandomCase(random, {.strided = false});
    c.options.return_scores = Scores::kNone;
    c.options.return_present = false;
    SCOPED_TRACE(c.ToString());
    ExpectSameBits(RequestOf(c), random.Pick<int64_t>({1, 7, 100, 256, 1000}),
                   seed);
    if (HasFailure()) return;
  }
}

// Of several page sets, and chunks larger than one.
TEST_P(StreamTest, ManyPageSets) {
  for (Layout layout : {Layout::kMatrix, Layout::kPacked, Layout::kBHSD,
                        Layout::kBSHD, Layout::kRagged}) {
    for (v1::DataType mask : {v1::DATA_TYPE_UNSPECIFIED, v1::DATA_TYPE_BOOL,
                              v1::DATA_TYPE_FLOAT16}) {
      if (layout == Layout::kRagged && mask != 0) continue;
      SCOPED_TRACE(static_cast<int>(layout) * 100 + mask);
      Random random(1);
      const int64_t heads = layout == Layout::kMatrix ? 1 : 3;
      const int64_t batch =
          layout == Layout::kMatrix || layout == Layout::kRagged ? 1 : 2;
      const int64_t length = heads == 1 ? 9000 : 3000;
      AttentionCase c;
      const auto draw = [&](int64_t of, int64_t heads) {
        return random.NormalTensor(
            DataType::kFloat32,
            layout == Layout::kRagged
                ? Shape{of, heads, 64}
                : test::ShapeIn(layout, batch, heads, of, 64));
      };
      c.query = draw(40, 2 * heads * (heads > 1) + (heads == 1));
      c.key = draw(length, heads);
      c.value = draw(length, heads);
      c.options.layout = layout;
      c.options.query_heads = heads == 1 ? 1 : 2 * heads;
      c.options.kv_heads = heads;
      c.options.return_log_sum_exp = true;
      c.options.causal = Causal::kBottomRight;
      if (layout == Layout::kRagged) {
        c.query_starts = {0, 1, 1, 30, 40};
        c.key_starts = {0, 700, 701, 2957, 3000};
      }
      ComputeAttentionRequest request = RequestOf(c);
      if (mask != v1::DATA_TYPE_UNSPECIFIED) {
        *request.mutable_mask() = RandomTensor(mask, {40, length - 300}, 5);
      }
      const StreamOf stream(request);
      const std::string answer = Compute(request).SerializeAsString();
      for (int64_t most : {50, 300, 100000}) {
        ExpectAnswer(stream, answer, most);
      }
    }
  }
}

TEST_P(StreamTest, Prefill) {
  Random random(1);
  AttentionCase c = NormalCase(random, {.batch = 1,
                                        .query_heads = 4,
                                        .kv_heads = 2,
                                        .query_length = 2000,
                                        .key_length = 2000,
                                        .head_size = 64,
                                        .value_head_size = 64});
  c.options.causal = Causal::kTopLeft;
  ExpectSameBits(RequestOf(c), 600);
  c.options.window_left = 100;
  ExpectSameBits(RequestOf(c), 600);
}

// Rows that no key to come can change are sent while the client still writes.
TEST_P(StreamTest, RowsComeAsSoonAsTheyAreFinished) {
  Random random(1);
  AttentionCase c = NormalCase(random, {.query_heads = 2,
                                        .query_length = 4096,
                                        .key_length = 4096,
                                        .head_size = 128,
                                        .value_head_size = 128});
  c.options.causal = Causal::kTopLeft;
  const StreamOf streamed(RequestOf(c));
  grpc::ClientContext context;
  const auto stream =
      v1::AttentionService::NewStub(channel_)->StreamAttention(&context);
  ASSERT_TRUE(stream->Write(streamed.Header()));
  ASSERT_TRUE(stream->Write(streamed.Chunk(0, 2048)));
  v1::StreamAttentionResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_GT(message.output().shape(2), 0);
  context.TryCancel();
  stream->Finish();
}

TEST_P(StreamTest, WithoutKeysOrRows) {
  for (const auto& [rows, keys] :
       {std::pair<int64_t, int64_t>{3, 0}, {0, 5}, {0, 0}}) {
    ComputeAttentionRequest request = SmallRequest();
    *request.mutable_query() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, rows, 4}, 1);
    *request.mutable_key() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, keys, 4}, 2);
    *request.mutable_value() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, keys, 2}, 3);
    request.mutable_options()->set_return_log_sum_exp(true);
    ExpectSameBits(request, 3);
  }
}

// Tokens of no sequence, which take no bytes.
TEST_P(StreamTest, AnyNumberOfTokensOfNoSequence) {
  constexpr int64_t kTokens = int64_t{1} << 59;
  v1::StreamAttentionRequest header, chunk;
  const auto set = [](v1::Tensor* tensor, std::vector<int64_t> shape) {
    tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
    tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  };
  set(header.mutable_header()->mutable_query(), {0, 1, 1, 4});
  for (v1::Tensor* tensor : {header.mutable_header()->mutable_key(),
                             header.mutable_header()->mutable_value(),
                             chunk.mutable_chunk()->mutable_key(),
                             chunk.mutable_chunk()->mutable_value()}) {
    set(tensor, {0, 1, kTokens, 4});
  }
  const StreamResult result = SendStream(channel_, {header, chunk});
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  // With a mask, which masks nothing of nobody.
  header.mutable_header()->mutable_mask()->set_data_type(v1::DATA_TYPE_BOOL);
  header.mutable_header()->mutable_mask()->add_shape(5);
  chunk.mutable_chunk()->mutable_mask()->set_data_type(v1::DATA_TYPE_BOOL);
  chunk.mutable_chunk()->mutable_mask()->add_shape(5);
  chunk.mutable_chunk()->mutable_mask()->set_data(std::string(5, '\1'));
  const StreamResult masked = SendStream(channel_, {header, chunk});
  EXPECT_TRUE(masked.status.ok()) << masked.status.error_message();
}

TEST_P(StreamTest, AChunkOfNoTokensWhereThereAreNone) {
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 0, 4}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 0, 2}, 3);
  const StreamOf stream(request);
  EXPECT_TRUE(
      SendStream(channel_, {stream.Header(), stream.Chunk(0, 0)}).status.ok());
  EXPECT_EQ(SendStream(channel_, {stream.Header(), stream.Chunk(0, 0),
                                  stream.Chunk(0, 0)})
                .status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

v1::Tensor AsFloats(const v1::Tensor& tensor) {
  return FloatTensor({tensor.shape().begin(), tensor.shape().end()},
                     FloatsOf(tensor));
}

TEST_P(StreamTest, FloatValues) {
  ComputeAttentionRequest request = SmallRequest();
  request.mutable_options()->set_return_log_sum_exp(true);
  request.mutable_options()->set_softmax_precision(v1::DATA_TYPE_FLOAT64);
  const StreamOf stream(request);
  std::vector<v1::StreamAttentionRequest> messages =
      MessagesOf(stream, [](int64_t) { return 2; });
  v1::Tensor& query = *messages[0].mutable_header()->mutable_query();
  query = AsFloats(query);
  for (size_t i = 1; i < messages.size(); ++i) {
    v1::KeyValueChunk& chunk = *messages[i].mutable_chunk();
    *chunk.mutable_key() = AsFloats(chunk.key());
    // Either, chunk by chunk.
    if (i % 2 == 1) *chunk.mutable_value() = AsFloats(chunk.value());
  }
  const StreamResult result = SendStream(channel_, messages);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  *request.mutable_query() = query;
  const ComputeAttentionResponse wanted = Compute(request);
  // Rows, in one message, and perhaps one more with the timing.
  EXPECT_EQ(result.messages[0].output().SerializeAsString(),
            wanted.output().SerializeAsString());
  EXPECT_EQ(result.messages[0].log_sum_exp().SerializeAsString(),
            wanted.log_sum_exp().SerializeAsString());
}

TEST_P(StreamTest, SeveralAtOnce) {
  const ComputeAttentionRequest request = LongRequest(4000);
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&, i] { ExpectSameBits(request, 900, i); });
  }
  for (std::thread& client : clients) client.join();
}

TEST_P(StreamTest, NothingIsHeldAfterwards) {
  ExpectSameBits(LongRequest(3000), 500);
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 0; }));
}

INSTANTIATE_TEST_SUITE_P(Transports, StreamTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
