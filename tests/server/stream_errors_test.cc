// Streams that are wrong: each gets its error at the first wrong message, which
// names the field, what came and what was wanted.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/stream_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using v1::StreamAttentionRequest;
using Messages = std::vector<StreamAttentionRequest>;

// 5 tokens with a mask, in chunks of 2, 2 and 1.
Messages Good() {
  v1::ComputeAttentionRequest request = SmallRequest();
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {3, 5}, 4);
  return MessagesOf(StreamOf(request), [](int64_t) { return 2; });
}

v1::ComputeAttentionRequest& Header(Messages& messages) {
  return *messages[0].mutable_header();
}
v1::KeyValueChunk& Chunk(Messages& messages, int i) {
  return *messages[i].mutable_chunk();
}

struct Wrong {
  const char* name;
  std::function<void(Messages&)> change;
  const char* reason;
  const char* message;
  grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT;
};

const Wrong kWrong[] = {
    // What follows what.
    {"NoMessage", [](Messages& m) { m.clear(); }, "MALFORMED_MESSAGE",
     "got no message, wanted a header and chunks"},
    {"EmptyMessage", [](Messages& m) { m[0].Clear(); }, "MALFORMED_MESSAGE",
     "got an empty message, wanted the header"},
    {"EmptyMessageLater", [](Messages& m) { m[2].Clear(); },
     "MALFORMED_MESSAGE", "got an empty message, wanted a chunk"},
    {"ChunkFirst", [](Messages& m) { m.erase(m.begin()); }, "INVALID_FIELD",
     "chunk: came first, wanted the header before it"},
    {"TwoHeaders", [](Messages& m) { m[2] = m[0]; }, "INVALID_FIELD",
     "header: got a second one, wanted a chunk"},
    {"HeaderAlone", [](Messages& m) { m.resize(1); }, "MALFORMED_MESSAGE",
     "the stream ended after 0 tokens, wanted 5"},
    {"TooFewTokens", [](Messages& m) { m.pop_back(); }, "MALFORMED_MESSAGE",
     "the stream ended after 4 tokens, wanted 5"},
    {"TooManyTokens", [](Messages& m) { m[3] = m[2]; }, "INVALID_FIELD",
     "chunk.key.shape: got 2 tokens, wanted at most 1: 4 of 5 have come"},
    {"ChunkTwice", [](Messages& m) { m.push_back(m[3]); }, "INVALID_FIELD",
     "chunk.key.shape: got 1 token, wanted at most 0: 5 of 5 have come"},
    {"NoTokens",
     [](Messages& m) {
       Chunk(m, 1).mutable_key()->set_shape(2, 0);
       Chunk(m, 1).mutable_key()->clear_data();
     },
     "INVALID_FIELD", "chunk.key.shape: got 0 tokens, wanted at least 1"},

    // The header.
    {"KeysInTheHeader",
     [](Messages& m) { Header(m).mutable_key()->set_data(std::string(80, 0)); },
     "INVALID_FIELD",
     "header.key.data: got 80 bytes, wanted none: they come in chunks"},
    {"FloatsInTheHeader",
     [](Messages& m) { Header(m).mutable_value()->add_float_values(1); },
     "INVALID_FIELD",
     "header.value.float_values: got 1 numbers, wanted none: they come in "
     "chunks"},
    {"MaskInTheHeader",
     [](Messages& m) {
       Header(m).mutable_mask()->set_data(std::string(15, 0));
     },
     "INVALID_FIELD",
     "header.mask.data: got 15 bytes, wanted none: they come in chunks"},
    {"HeaderMaskOfBits",
     [](Messages& m) {
       Header(m).mutable_mask()->set_data_type(v1::DATA_TYPE_BITS);
     },
     "INVALID_FIELD",
     "header.mask.data_type: got BITS, wanted another type: only for masks, "
     "and not of StreamAttention"},
    {"HeaderIndexOfNoKey",
     [](Messages& m) {
       v1::Tensor& indices = *Header(m).mutable_indices();
       indices.set_data_type(v1::DATA_TYPE_INT32);
       for (int64_t dim : {1, 3, 1}) indices.add_shape(dim);
       const int32_t keys[] = {0, 5, 1};
       indices.set_data(keys, sizeof(keys));
     },
     "INVALID_FIELD",
     "header.indices.data: got 5 at element 1, wanted -1, for none, to 4, the "
     "sequence's last key"},
    {"NoQuery", [](Messages& m) { Header(m).clear_query(); }, "INVALID_FIELD",
     "header.query: missing"},
    {"QueryWithoutData",
     [](Messages& m) { Header(m).mutable_query()->clear_data(); },
     "INVALID_FIELD",
     "header.query.data: got 0 bytes, wanted 96 for shape (1, 2, 3, 4) of "
     "FLOAT32"},
    {"NoKey", [](Messages& m) { Header(m).clear_key(); }, "INVALID_FIELD",
     "header.key: missing"},
    {"HeadSizesDiffer",
     [](Messages& m) { Header(m).mutable_key()->set_shape(3, 5); },
     "INVALID_FIELD",
     "header.key.shape: got (1, 1, 5, 5), wanted query's head size 4"},
    {"UnknownLayout",
     [](Messages& m) {
       Header(m).mutable_options()->set_layout(static_cast<v1::Layout>(9));
     },
     "INVALID_FIELD", "header.options.layout: got 9, wanted 0 to 5"},
    {"TooLargeHeads",
     [](Messages& m) { Header(m).mutable_value()->set_shape(3, 1 << 20); },
     "LIMIT_EXCEEDED",
     "header.value.shape: got (1, 1, 5, 1048576), wanted a head size of at "
     "most 4096"},
    {"Scores",
     [](Messages& m) {
       Header(m).mutable_options()->set_return_scores(v1::SCORES_RAW);
     },
     "UNIMPLEMENTED",
     "header.options.return_scores: not with StreamAttention, which never has "
     "all keys",
     grpc::StatusCode::UNIMPLEMENTED},
    {"Present",
     [](Messages& m) { Header(m).mutable_options()->set_return_present(true); },
     "UNIMPLEMENTED",
     "header.options.return_present: not with StreamAttention, which never has "
     "all keys",
     grpc::StatusCode::UNIMPLEMENTED},

    // Chunks.
    {"NoChunkKey", [](Messages& m) { Chunk(m, 2).clear_key(); },
     "INVALID_FIELD", "chunk.key: missing"},
    {"NoChunkValue", [](Messages& m) { Chunk(m, 2).clear_value(); },
     "INVALID_FIELD", "chunk.value: missing"},
    {"OtherType",
     [](Messages& m) {
       *Chunk(m, 2).mutable_key() =
           RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 1, 2, 4}, 1);
     },
     "INVALID_FIELD",
     "chunk.key.data_type: got FLOAT16, wanted the header's FLOAT32"},
    {"UnknownType",
     [](Messages& m) {
       Chunk(m, 2).mutable_key()->set_data_type(static_cast<v1::DataType>(77));
     },
     "INVALID_FIELD",
     "chunk.key.data_type: got 77, wanted a value of DataType"},
    {"OtherRank",
     [](Messages& m) {
       *Chunk(m, 2).mutable_value() =
           RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 2}, 1);
     },
     "INVALID_FIELD",
     "chunk.value.shape: got (2, 2), wanted the header's (1, 1, n, 2) with any "
     "number of tokens n"},
    {"OtherHeadSize",
     [](Messages& m) {
       *Chunk(m, 1).mutable_key() =
           RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 2, 5}, 1);
     },
     "INVALID_FIELD",
     "chunk.key.shape: got (1, 1, 2, 5), wanted the header's (1, 1, n, 4) with "
     "any number of tokens n"},
    {"NegativeLength",
     [](Messages& m) { Chunk(m, 1).mutable_key()->set_shape(2, -1); },
     "INVALID_FIELD",
     "chunk.key.shape: got (1, 1, -1, 4), wanted no negative dimension"},
    {"OtherLengths",
     [](Messages& m) {
       *Chunk(m, 1).mutable_value() =
           RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 1, 2}, 1);
     },
     "INVALID_FIELD", "chunk.value.shape: got 1 token, wanted chunk.key's 2"},
    {"TooFewBytes",
     [](Messages& m) {
       Chunk(m, 3).mutable_value()->mutable_data()->pop_back();
     },
     "INVALID_FIELD",
     "chunk.value.data: got 7 bytes, wanted 8 for shape (1, 1, 1, 2) of "
     "FLOAT32"},
    {"NoMask", [](Messages& m) { Chunk(m, 2).clear_mask(); }, "INVALID_FIELD",
     "chunk.mask: missing, wanted shape (3, 2)"},
    {"UnexpectedMask", [](Messages& m) { Header(m).clear_mask(); },
     "INVALID_FIELD", "chunk.mask: got one, wanted none: the header has none"},
    {"MaskOfOtherType",
     [](Messages& m) {
       *Chunk(m, 2).mutable_mask() =
           RandomTensor(v1::DATA_TYPE_INT8, {3, 2}, 1);
     },
     "INVALID_FIELD",
     "chunk.mask.data_type: got INT8, wanted the header's BOOL"},
    {"MaskOfOtherShape",
     [](Messages& m) {
       *Chunk(m, 2).mutable_mask() =
           RandomTensor(v1::DATA_TYPE_BOOL, {3, 3}, 1);
     },
     "INVALID_FIELD", "chunk.mask.shape: got (3, 3), wanted (3, 2)"},
    {"MaskOfNoBools",
     [](Messages& m) { (*Chunk(m, 2).mutable_mask()->mutable_data())[3] = 7; },
     "INVALID_FIELD",
     "chunk.mask.data: got byte 7 at element 3, wanted 0 or 1"},
};

class StreamErrorTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(StreamErrorTest, NamesWhatCameAndWhatWasWanted) {
  TestServer server;
  Messages messages = Good();
  GetParam().change(messages);
  const auto channel = server.Channel(Transport::kLoopback);
  const StreamResult result = SendStream(channel, messages);
  EXPECT_EQ(result.status.error_code(), GetParam().code);
  EXPECT_EQ(result.status.error_message(), GetParam().message);
  const Details details = DetailsOf(result.status);
  EXPECT_EQ(details.reason, GetParam().reason);
  const std::string text = GetParam().message;
  if (details.reason == "INVALID_FIELD" || details.reason == "LIMIT_EXCEEDED") {
    EXPECT_EQ(details.field, text.substr(0, text.find(": ")));
  }
  EXPECT_TRUE(WaitUntil([&] { return server.server().running_calls() == 0; }));
  // The connection serves what follows.
  EXPECT_TRUE(SendStream(channel, Good()).status.ok());
}

INSTANTIATE_TEST_SUITE_P(All, StreamErrorTest, ::testing::ValuesIn(kWrong),
                         [](const auto& info) { return info.param.name; });

TEST(StreamErrorsTest, MessagesThatAreNoProtobuf) {
  TestServer server;
  for (int place : {0, 1}) {
    RawStream stream(server.Channel(Transport::kLoopback), kStreamAttention);
    if (place == 1) stream.Write(Good()[0].SerializeAsString());
    stream.Write("\xff\xff");
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(DetailsOf(status).reason, "MALFORMED_MESSAGE");
  }
}

// Nothing more is read: the error need not wait for the end of the stream.
TEST(StreamErrorsTest, ComeAtTheFirstWrongMessage) {
  TestServer server;
  RawStream stream(server.Channel(Transport::kLoopback), kStreamAttention);
  stream.Write(Good()[0].SerializeAsString());
  stream.Write(Good()[3].SerializeAsString());
  stream.Write(Good()[0].SerializeAsString());
  EXPECT_EQ(stream.Finish().error_message(),
            "header: got a second one, wanted a chunk");
}

TEST(StreamErrorsTest, LargeMessages) {
  server::Options options = TestServer::DefaultOptions();
  options.max_request_bytes = 100'000;
  options.max_chunk_bytes = 20'000;
  TestServer server(options);
  const auto channel = server.Channel(Transport::kLoopback);
  const auto expect = [&](const Messages& messages, const std::string& text) {
    const grpc::Status status = SendStream(channel, messages).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(status.error_message(), text);
    EXPECT_EQ(DetailsOf(status).reason, "REQUEST_TOO_LARGE");
  };
  const StreamOf stream(LongRequest(4000));
  Messages messages = {stream.Header(), stream.Chunk(0, 4000)};
  expect(messages,
         "the message has " + std::to_string(messages[1].ByteSizeLong()) +
             " bytes, more than the 20000 that this server takes after a "
             "header (max_chunk_bytes)");
  // Chunks that fit.
  EXPECT_TRUE(
      SendStream(channel, MessagesOf(stream, [](int64_t) { return 1000; }))
          .status.ok());
  const StreamOf large(LongRequest(30000));
  messages = {large.Header()};
  expect(messages, "the request has " +
                       std::to_string(messages[0].ByteSizeLong()) +
                       " bytes, more than the 100000 that this server takes "
                       "(max_request_bytes)");
  // One token of 10 sequences and 100 heads.
  v1::ComputeAttentionRequest wide;
  *wide.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {10, 100, 1, 4}, 1);
  *wide.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {10, 100, 1, 4}, 1);
  *wide.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {10, 100, 1, 4}, 1);
  expect({StreamOf(wide).Header()},
         "one token of all sequences has 32000 bytes, more than the 20000 that "
         "this server takes in a message (max_chunk_bytes)");
}

// What a stream is charged for bounds its messages: 64 KiB and twice its
// tensors' bytes. Here these are 5 tokens of 4 + 2 numbers.
TEST(StreamErrorsTest, LargeMessagesOfSmallStreams) {
  TestServer server;
  const auto channel = server.Channel(Transport::kLoopback);
  const StreamOf stream(SmallRequest());
  const std::string header = stream.Header().SerializeAsString();
  const std::string chunk = stream.Chunk(0, 5).SerializeAsString();
  const int64_t stream_bytes = 5 * (4 + 2) * 4;
  const size_t limit = (size_t{64} << 10) + 2 * stream_bytes;
  // A field that no message has fills it up: the tag, the length.
  const auto filled = [&](size_t bytes) {
    const size_t more = bytes - chunk.size() - 5;
    std::string message = chunk + "\xfa\x01";
    for (size_t left = more; message.size() < chunk.size() + 5; left >>= 7) {
      message += static_cast<char>((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    }
    return message + std::string(more, 'x');
  };
  const auto send = [&](size_t bytes) {
    RawStream call(channel, kStreamAttention);
    EXPECT_TRUE(call.Write(header));
    call.Write(filled(bytes), /*last=*/true);
    while (call.Read()) {
    }
    return call.Finish();
  };
  EXPECT_TRUE(send(limit).ok());
  const grpc::Status status = send(limit + 1);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "REQUEST_TOO_LARGE");
  EXPECT_EQ(status.error_message(),
            "the message has 65777 bytes, more than the 65776 that one may "
            "have after a header of 120 bytes of keys, values and mask in all");
}

// Floats in several parts are put together, for which there is as much memory
// as for a message.
TEST(StreamErrorsTest, FloatsInSeveralParts) {
  TestServer server;
  const auto channel = server.Channel(Transport::kLoopback);
  const auto send = [&](int64_t tokens) {
    v1::ComputeAttentionRequest request;
    *request.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 16}, 1);
    *request.mutable_key() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {tokens, 16}, 2);
    *request.mutable_value() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {tokens, 1}, 3);
    const StreamOf stream(request);
    StreamAttentionRequest message = stream.Chunk(0, tokens);
    v1::Tensor& key = *message.mutable_chunk()->mutable_key();
    const std::string data = key.data();
    key.clear_data();
    auto* const fields = key.GetReflection()->MutableUnknownFields(&key);
    for (const size_t begin : {size_t{0}, data.size() / 2}) {
      fields->AddLengthDelimited(v1::Tensor::kFloatValuesFieldNumber,
                                 data.substr(begin, data.size() / 2));
    }
    return SendStream(channel, {stream.Header(), message}).status;
  };
  EXPECT_TRUE(send(40'000).ok());
  // 3.2 MB, and another 6.4 to join both parts, are more than 8 MiB.
  const grpc::Status status = send(100'000);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "REQUEST_TOO_LARGE");
}

TEST(StreamErrorsTest, WhatNeedsMoreThanTheBudgetIsRefusedBeforeItsKeys) {
  server::Options options = TestServer::DefaultOptions();
  options.max_request_bytes = options.max_response_bytes = 1 << 20;
  options.max_inflight_bytes = 3 << 20;
  TestServer server(options);
  RawStream stream(server.Channel(Transport::kLoopback), kStreamAttention);
  // Two page sets of a MiB, three messages.
  v1::ComputeAttentionRequest request = SmallRequest();
  request.mutable_key()->set_shape(2, 1 << 20);
  request.mutable_value()->set_shape(2, 1 << 20);
  request.mutable_key()->clear_data();
  request.mutable_value()->clear_data();
  v1::StreamAttentionRequest header;
  *header.mutable_header() = request;
  stream.Write(header.SerializeAsString());
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "MEMORY_TOO_LARGE");
}

}  // namespace
}  // namespace attention::testing
