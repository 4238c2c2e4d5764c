// Large requests: cut into chunks, sent as a stream, put together again.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/client.h"
#include "attention/internal/answer_rows.h"
#include "attention/internal/key_chunks.h"
#include "attention/internal/stream_call.h"
#include "tests/client/fake_service.h"
#include "tests/support/test_server.h"

namespace attention {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::TestServer;
using testing::Transport;

std::mt19937& Engine() {
  static auto* const engine = new std::mt19937(7);
  return *engine;
}

Tensor RandomTensor(v1::DataType type, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  std::vector<double> numbers(count);
  std::normal_distribution<double> normal;
  for (double& number : numbers) number = normal(Engine());
  return Tensor::Rounded(type, numbers, std::move(shape));
}

Tensor RandomBools(std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  std::vector<double> numbers(count);
  for (double& number : numbers) {
    number = static_cast<double>(Engine()() % 4 != 0);
  }
  return Tensor::Rounded(v1::DATA_TYPE_BOOL, numbers, std::move(shape));
}

// A request and its tensors.
struct Case {
  Tensor query, key, value;
  std::optional<Tensor> mask, past_key, past_value;
  ComputeRequest request;

  ComputeRequest& Made() {
    request.query = query;
    request.key = key;
    request.value = value;
    if (mask) request.mask = *mask;
    if (past_key) request.past_key = *past_key;
    if (past_value) request.past_value = *past_value;
    return request;
  }
};

constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kQueries = 5,
                  kKeys = 700, kPast = 300, kSize = 8, kValueSize = 12;

// Every layout; with past keys and a mask where the layout has them.
Case CaseOf(v1::Layout layout, v1::DataType type, bool past, bool mask) {
  Case c;
  const auto make = [&](int64_t heads, int64_t length, int64_t size) {
    switch (layout) {
      case v1::LAYOUT_MATRIX:
        return RandomTensor(type, {length, size});
      case v1::LAYOUT_PACKED:
        return RandomTensor(type, {kBatch, length, heads * size});
      case v1::LAYOUT_BSHD:
        return RandomTensor(type, {kBatch, length, heads, size});
      case v1::LAYOUT_RAGGED:
        return RandomTensor(type, {length, heads, size});
      default:
        return RandomTensor(type, {kBatch, heads, length, size});
    }
  };
  const bool matrix = layout == v1::LAYOUT_MATRIX;
  const int64_t batch = matrix ? 1 : kBatch;
  const int64_t kv_heads = matrix ? 1 : kKvHeads;
  c.query = make(kHeads, kQueries, kSize);
  c.key = make(kKvHeads, kKeys, kSize);
  c.value = make(kKvHeads, kKeys, kValueSize);
  v1::AttentionOptions& options = c.request.options;
  options.set_layout(layout);
  options.set_return_log_sum_exp(true);
  if (layout == v1::LAYOUT_PACKED) {
    options.set_query_heads(kHeads);
    options.set_kv_heads(kKvHeads);
  }
  if (layout == v1::LAYOUT_RAGGED) {
    c.request.query_starts = {0, 2, kQueries};
    c.request.key_starts = {0, 450, kKeys};
    return c;
  }
  if (past) {
    c.past_key = RandomTensor(type, {batch, kv_heads, kPast, kSize});
    c.past_value = RandomTensor(type, {batch, kv_heads, kPast, kValueSize});
  }
  // It ends before the keys do.
  if (mask) c.mask = RandomBools({kQueries, kKeys + (past ? kPast : 0) - 20});
  return c;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const v1::Layout layout :
       {v1::LAYOUT_MATRIX, v1::LAYOUT_PACKED, v1::LAYOUT_BHSD, v1::LAYOUT_BSHD,
        v1::LAYOUT_RAGGED}) {
    for (const bool past : {false, true}) {
      for (const bool mask : {false, true}) {
        cases.push_back(CaseOf(
            layout, past ? v1::DATA_TYPE_FLOAT32 : v1::DATA_TYPE_BFLOAT16, past,
            mask));
      }
    }
  }
  return cases;
}

// Elements of a tensor [outer, length, inner], chunk after chunk.
void Append(const v1::Tensor& chunk, size_t axis, int64_t length,
            int64_t* filled, std::string* whole) {
  int64_t outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= chunk.shape(i);
  const int64_t count = chunk.shape(static_cast<int>(axis));
  const auto run = static_cast<int64_t>(chunk.data().size()) / outer;
  whole->resize(outer * run / count * length);
  for (int64_t o = 0; o < outer; ++o) {
    std::memcpy(whole->data() + (o * length + *filled) * (run / count),
                chunk.data().data() + o * run, run);
  }
  *filled += count;
}

v1::StreamAttentionRequest Parsed(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::StreamAttentionRequest request;
  EXPECT_TRUE(request.ParseFromString(bytes));
  // As protobuf itself would write it.
  EXPECT_EQ(request.SerializeAsString(), bytes);
  return request;
}

std::string BytesOf(const TensorSpan& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes.data()),
          tensor.bytes.size()};
}

TEST(KeyChunksTest, TogetherAreTheTensors) {
  for (Case& c : AllCases()) {
    const ComputeRequest& request = c.Made();
    const internal::LayoutAxes axes = *internal::AxesOf(request);
    for (const int64_t chunk_bytes : {1000, 10000, 60000, 10000000}) {
      internal::Lease lease;
      auto chunks = internal::KeyChunks::Of(request, chunk_bytes);
      ASSERT_TRUE(chunks) << request.options.layout();
      std::string key, value, mask;
      int64_t keys = 0, values = 0, columns = 0, past = 0;
      const int64_t past_length = c.past_key ? kPast : 0;
      while (const auto message = chunks->Next(lease)) {
        EXPECT_LE(message->Length(), chunk_bytes + 200);
        const v1::KeyValueChunk chunk = Parsed(*message).chunk();
        if (past < past_length) {
          past += chunk.key().shape(static_cast<int>(axes.length_axis));
        } else {
          Append(chunk.key(), axes.length_axis, kKeys, &keys, &key);
          Append(chunk.value(), axes.length_axis, kKeys, &values, &value);
        }
        if (chunk.has_mask()) {
          Append(chunk.mask(), 1, c.mask->shape()[1], &columns, &mask);
        }
      }
      EXPECT_EQ(past, past_length);
      EXPECT_EQ(key, BytesOf(request.key));
      EXPECT_EQ(value, BytesOf(request.value));
      if (c.mask) {
        EXPECT_EQ(mask, BytesOf(*request.mask));
      }
      EXPECT_EQ(chunks->sent_bytes(), chunks->total_bytes());
    }
  }
}

TEST(KeyChunksTest, TheHeaderIsTheRequestWithoutKeys) {
  Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT16, true, true);
  internal::Lease lease;
  const v1::ComputeAttentionRequest header =
      Parsed(internal::EncodeHeader(c.Made(), lease)).header();
  EXPECT_EQ(header.query().data(), BytesOf(c.request.query));
  for (const v1::Tensor& tensor : {header.key(), header.value(), header.mask(),
                                   header.past_key(), header.past_value()}) {
    EXPECT_THAT(tensor.shape(), ::testing::Not(SizeIs(0)));
    EXPECT_EQ(tensor.data(), "");
  }
  EXPECT_EQ(header.key().data_type(), v1::DATA_TYPE_FLOAT16);
  EXPECT_EQ(header.options().layout(), v1::LAYOUT_BHSD);
}

TEST(KeyChunksTest, OneTokenMayBeMoreThanAChunk) {
  Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT32, false, false);
  auto chunks = internal::KeyChunks::Of(c.Made(), 100);
  ASSERT_TRUE(chunks);
  internal::Lease lease;
  EXPECT_EQ(Parsed(*chunks->Next(lease)).chunk().key().shape(2), 1);
}

TEST(KeyChunksTest, AnEmptyPastIsNone) {
  Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT32, false, false);
  c.past_key = Tensor::FromBytes(v1::DATA_TYPE_FLOAT32, {},
                                 {kBatch, kKvHeads, 0, kSize});
  c.past_value = Tensor::FromBytes(v1::DATA_TYPE_FLOAT32, {},
                                   {kBatch, kKvHeads, 0, kValueSize});
  EXPECT_TRUE(internal::KeyChunks::Of(c.Made()));
}

TEST(KeyChunksTest, WhatCannotBeStreamed) {
  const auto chunks = [](const auto& change) {
    Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT32, true, true);
    c.Made();
    change(c.request);
    return internal::KeyChunks::Of(c.request).has_value();
  };
  EXPECT_TRUE(chunks([](ComputeRequest&) {}));
  EXPECT_FALSE(chunks([](ComputeRequest& r) {
    r.options.set_return_scores(v1::SCORES_WEIGHTS);
  }));
  EXPECT_FALSE(
      chunks([](ComputeRequest& r) { r.options.set_return_present(true); }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.key.shape[2] -= 1; }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.key.shape[0] = -2; }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.value.shape.pop_back(); }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.past_key.reset(); }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.past_key->shape[2] = 7; }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.mask->shape[1] += 1; }));
  EXPECT_FALSE(chunks([](ComputeRequest& r) { r.mask->shape.clear(); }));
  EXPECT_FALSE(
      chunks([](ComputeRequest& r) { r.query.shape = {1, 2, 3, 4, 5}; }));
  // Nobody can count the answer's elements.
  Case packed = CaseOf(v1::LAYOUT_PACKED, v1::DATA_TYPE_FLOAT32, false, false);
  EXPECT_TRUE(internal::KeyChunks::Of(packed.Made()));
  packed.request.options.set_query_heads(int64_t{1} << 62);
  EXPECT_FALSE(internal::KeyChunks::Of(packed.request));
}

// Nothing is sent of a tensor without elements but its shape, whichever axis is
// 0: the others still promise bytes.
TEST(KeyChunksTest, TensorsWithoutElementsHaveNoData) {
  const std::vector<std::byte> bytes(size_t{1} << 20, std::byte{1});
  for (const std::vector<int64_t>& whole :
       {std::vector<int64_t>{kKeys}, std::vector<int64_t>{kQueries, kKeys},
        std::vector<int64_t>{kBatch, kHeads, kQueries, kKeys},
        std::vector<int64_t>{int64_t{1} << 30, int64_t{1} << 20, 1, kKeys}}) {
    for (size_t zero = 0; zero < whole.size(); ++zero) {
      for (const v1::DataType type :
           {v1::DATA_TYPE_BOOL, v1::DATA_TYPE_FLOAT64}) {
        Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT32, false, false);
        ComputeRequest& request = c.Made();
        std::vector<int64_t> shape = whole;
        shape[zero] = 0;
        // What lies behind it must not be read.
        request.mask = TensorSpan{type, shape, std::span(bytes).first(0)};
        for (const int64_t chunk_bytes : {1000, 60000, 10000000}) {
          auto chunks = internal::KeyChunks::Of(request, chunk_bytes);
          ASSERT_TRUE(chunks);
          internal::Lease lease;
          int64_t columns = 0;
          while (const auto message = chunks->Next(lease)) {
            const v1::KeyValueChunk chunk = Parsed(*message).chunk();
            EXPECT_EQ(chunk.mask().data().size(), 0u);
            if (chunk.has_mask()) {
              columns += chunk.mask().shape(chunk.mask().shape_size() - 1);
            }
          }
          EXPECT_EQ(columns, shape.back());
        }
      }
    }
  }
}

// What past tensors there are without elements is for one message.
TEST(KeyChunksTest, PastWithoutElementsIsNotStreamed) {
  for (size_t zero = 0; zero < 4; ++zero) {
    Case c = CaseOf(v1::LAYOUT_BHSD, v1::DATA_TYPE_FLOAT32, true, false);
    ComputeRequest& request = c.Made();
    for (auto* past : {&request.past_key, &request.past_value}) {
      (*past)->shape[zero] = 0;
      (*past)->bytes = {};
    }
    // Of no tokens it is as none.
    EXPECT_EQ(internal::KeyChunks::Of(request).has_value(), zero == 2);
  }
}

class ClientStreamTest : public ::testing::Test {
 protected:
  explicit ClientStreamTest(server::Options options = Options())
      : server_(options) {}

  static server::Options Options() {
    server::Options options = TestServer::DefaultOptions();
    options.max_request_bytes = int64_t{64} << 20;
    options.max_response_bytes = int64_t{64} << 20;
    options.max_inflight_bytes = int64_t{512} << 20;
    return options;
  }

  // The answer to the request as one message, from generated code.
  v1::ComputeAttentionResponse InOneMessage(const ComputeRequest& request) {
    v1::ComputeAttentionRequest message;
    const auto set = [](const TensorSpan& from, v1::Tensor* to) {
      to->set_data_type(from.type);
      to->mutable_shape()->Assign(from.shape.begin(), from.shape.end());
      to->set_data(from.bytes.data(), from.bytes.size());
    };
    set(request.query, message.mutable_query());
    set(request.key, message.mutable_key());
    set(request.value, message.mutable_value());
    if (request.mask) set(*request.mask, message.mutable_mask());
    if (request.past_key) set(*request.past_key, message.mutable_past_key());
    if (request.past_value) {
      set(*request.past_value, message.mutable_past_value());
    }
    for (const int64_t start : request.query_starts) {
      message.add_query_starts(start);
    }
    for (const int64_t start : request.key_starts) {
      message.add_key_starts(start);
    }
    *message.mutable_options() = request.options;
    v1::ComputeAttentionResponse response;
    grpc::ClientContext context;
    const auto stub = v1::AttentionService::NewStub(channel_);
    const grpc::Status status =
        stub->ComputeAttention(&context, message, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  static void ExpectSame(const ComputeResult& result,
                         const v1::ComputeAttentionResponse& expected) {
    EXPECT_THAT(result.output.shape(),
                ::testing::ElementsAreArray(expected.output().shape()));
    EXPECT_EQ(BytesOf(result.output), expected.output().data());
    ASSERT_EQ(result.log_sum_exp.has_value(), expected.has_log_sum_exp());
    if (result.log_sum_exp) {
      EXPECT_EQ(BytesOf(*result.log_sum_exp), expected.log_sum_exp().data());
      EXPECT_THAT(result.log_sum_exp->shape(),
                  ::testing::ElementsAreArray(expected.log_sum_exp().shape()));
    }
  }

  TestServer server_;
  const std::shared_ptr<grpc::Channel> channel_ =
      server_.Channel(Transport::kLoopback);
  const Connection connection_{channel_};
  const Client client_{channel_};
};

TEST_F(ClientStreamTest, GivesTheBitsOfOneMessage) {
  for (Case& c : AllCases()) {
    const ComputeRequest& request = c.Made();
    const v1::ComputeAttentionResponse expected = InOneMessage(request);
    for (const int64_t chunk_bytes : {2000, 50000, 10000000}) {
      const auto result =
          internal::RunStream(connection_, {}, request,
                              *internal::KeyChunks::Of(request, chunk_bytes));
      ASSERT_TRUE(result.ok()) << result.status();
      ExpectSame(*result, expected);
    }
  }
}

// A request of 8 MiB of keys and values.
Case LargeCase() {
  Case c;
  c.query = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 4, 20, 64});
  c.key = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 8192, 64});
  c.value = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 8192, 64});
  return c;
}

TEST_F(ClientStreamTest, ComputeStreamsWhatIsLarge) {
  Case c = LargeCase();
  const ComputeRequest& request = c.Made();
  const v1::ComputeAttentionResponse expected = InOneMessage(request);
  int64_t last = 0, total = 0;
  int calls = 0;
  CallOptions options;
  options.progress = [&](int64_t sent, int64_t all) {
    EXPECT_GE(sent, last);
    last = sent;
    total = all;
    ++calls;
  };
  const auto result = client_.Compute(request, options);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectSame(*result, expected);
  EXPECT_GT(calls, 2);
  EXPECT_EQ(total, 8 << 20);
  EXPECT_EQ(last, total);
  last = 0;
  const auto later = client_.ComputeAsync(request, options).get();
  ASSERT_TRUE(later.ok()) << later.status();
  ExpectSame(*later, expected);
}

TEST_F(ClientStreamTest, NoQueriesWithAMaskOfNoRows) {
  Case c = LargeCase();
  ComputeRequest& request = c.Made();
  request.query = {v1::DATA_TYPE_FLOAT32, {1, 4, 0, 64}, {}};
  request.mask = TensorSpan{v1::DATA_TYPE_BOOL, {0, 8192}, {}};
  auto result = client_.Compute(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->output.shape(), ::testing::ElementsAre(1, 4, 0, 64));
  // By mistake: refused as it is in one message.
  request.query = c.query;
  const absl::Status status = client_.Compute(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  ASSERT_THAT(FieldViolations(status), SizeIs(1));
  EXPECT_EQ(FieldViolations(status)[0].field, "mask.shape");
}

TEST_F(ClientStreamTest, AnswersIntoTheCallersMemory) {
  Case c = LargeCase();
  ComputeRequest& request = c.Made();
  const v1::ComputeAttentionResponse expected = InOneMessage(request);
  std::vector<std::byte> memory(expected.output().data().size());
  request.outputs.output = memory;
  const auto result = client_.Compute(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->output.bytes().data(), memory.data());
  ExpectSame(*result, expected);
  request.outputs.output = std::span(memory).first(memory.size() - 1);
  EXPECT_EQ(client_.Compute(request).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientStreamTest, LargeAnswersAreRefusedInPiecesToo) {
  Case c = LargeCase();
  // 20 KiB of output, and a little around it.
  const ComputeRequest& request = c.Made();
  ClientOptions options;
  options.use_shared_memory = false;
  options.max_receive_bytes = 24 << 10;
  const std::string address = server_.server().addresses().front();
  EXPECT_TRUE(Client(address, options).Compute(request).ok());
  options.max_receive_bytes = 20 << 10;
  const absl::Status status =
      Client(address, options).Compute(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(ErrorReason(status), "CLIENT_LIMIT");
}

// The user knows of no stream.
TEST_F(ClientStreamTest, ErrorsNameTheRequestsFields) {
  Case c = LargeCase();
  c.query = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 4, 20, 32});
  const auto result = client_.Compute(c.Made());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_THAT(FieldViolations(result.status()), SizeIs(1));
  EXPECT_EQ(FieldViolations(result.status())[0].field, "key.shape");
  EXPECT_THAT(std::string(result.status().message()),
              ::testing::StartsWith("key.shape: got (1, 2, 8192, 64)"));
  EXPECT_EQ(ErrorReason(result.status()), "INVALID_FIELD");
}

// A stream keeps the state of all rows: many rows are better off in one
// message, which needs no state.
TEST_F(ClientStreamTest, ManyRowsAreOneMessage) {
  Case c;
  c.query = RandomTensor(v1::DATA_TYPE_BFLOAT16, {1, 8, 2048, 64});
  c.key = RandomTensor(v1::DATA_TYPE_BFLOAT16, {1, 8, 2300, 64});
  c.value = RandomTensor(v1::DATA_TYPE_BFLOAT16, {1, 8, 2300, 64});
  int calls = 0;
  CallOptions options;
  options.progress = [&](int64_t, int64_t) { ++calls; };
  const auto result = client_.Compute(c.Made(), options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(calls, 0);
}

class SmallStreamTest : public ClientStreamTest {
 protected:
  SmallStreamTest() : ClientStreamTest(SmallOptions()) {}
  static server::Options SmallOptions() {
    server::Options options = Options();
    options.max_chunk_bytes = int64_t{1} << 20;
    return options;
  }
};

TEST_F(SmallStreamTest, ChunksThatTheServerDoesNotTakeAreOneMessage) {
  Case c = LargeCase();
  const ComputeRequest& request = c.Made();
  const v1::ComputeAttentionResponse expected = InOneMessage(request);
  const auto result = client_.Compute(request);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectSame(*result, expected);
  const auto later = client_.ComputeAsync(request).get();
  ASSERT_TRUE(later.ok()) << later.status();
  ExpectSame(*later, expected);
}

// Elements are counted within a chunk, of which the user knows nothing.
TEST_F(ClientStreamTest, ErrorsOfAMaskTellNoElement) {
  Case c = LargeCase();
  std::vector<std::byte> bytes(8192);
  bytes[8000] = std::byte{2};
  c.mask = Tensor::FromBytes(v1::DATA_TYPE_BOOL, bytes, {8192}).value();
  const absl::Status status = client_.Compute(c.Made()).status();
  EXPECT_EQ(status.message(), "mask.data: got byte 2, wanted 0 or 1");
  ASSERT_THAT(FieldViolations(status), SizeIs(1));
  EXPECT_EQ(FieldViolations(status)[0].field, "mask.data");
}

TEST_F(ClientStreamTest, CancelAndDeadlineEndIt) {
  Case c = LargeCase();
  const ComputeRequest& request = c.Made();
  std::stop_source stop;
  CallOptions options;
  options.stop = stop.get_token();
  options.progress = [&](int64_t, int64_t) { stop.request_stop(); };
  EXPECT_EQ(client_.Compute(request, options).status().code(),
            absl::StatusCode::kCancelled);
  CallOptions late;
  late.timeout = absl::Nanoseconds(1);
  // The server may be faster to say that there is no time.
  EXPECT_THAT(client_.Compute(request, late).status().code(),
              ::testing::AnyOf(absl::StatusCode::kDeadlineExceeded,
                               absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(testing::WaitUntil(
      [&] { return server_.server().running_calls() == 0; }));
  EXPECT_TRUE(client_.Compute(request).ok());
}

// Calls of a server that refuses every stream in that way.
int CallsAfterARefusedStream(const std::string& reason, absl::Status* status) {
  int calls = 0;
  FakeService service([&](grpc::ServerContext&,
                          const v1::ComputeAttentionRequest& request,
                          v1::ComputeAttentionResponse& response) {
    ++calls;
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  });
  service.RefuseStreams(reason);
  Case c = LargeCase();
  *status = Client(service.address()).Compute(c.Made()).status();
  return calls;
}

// It would get all of it a second time.
TEST(StreamFallbackTest, ABusyServerIsLeftAlone) {
  absl::Status status;
  EXPECT_EQ(CallsAfterARefusedStream("MEMORY_BUSY", &status), 0);
  EXPECT_EQ(ErrorReason(status), "MEMORY_BUSY");
  EXPECT_EQ(CallsAfterARefusedStream("MEMORY_TOO_LARGE", &status), 1);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(StreamFallbackTest, OlderServersGetOneMessage) {
  int calls = 0;
  FakeService service([&](grpc::ServerContext&,
                          const v1::ComputeAttentionRequest& request,
                          v1::ComputeAttentionResponse& response) {
    ++calls;
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  });
  const Client client(service.address());
  Case c = LargeCase();
  for (int i = 1; i <= 2; ++i) {
    const auto result = client.Compute(c.Made());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(calls, i);
  }
  const auto result = client.ComputeAsync(c.Made()).get();
  ASSERT_TRUE(result.ok()) << result.status();
}

grpc::ByteBuffer ToBuffer(const v1::StreamAttentionResponse& response) {
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

class AnswerRowsTest : public ::testing::Test {
 protected:
  AnswerRowsTest() : rows_(case_.Made()) {}

  static v1::StreamAttentionResponse Rows(int64_t count) {
    v1::StreamAttentionResponse response;
    v1::Tensor& output = *response.mutable_output();
    output.set_data_type(v1::DATA_TYPE_FLOAT32);
    for (const int64_t dim : {int64_t{1}, int64_t{4}, count, int64_t{64}}) {
      output.add_shape(dim);
    }
    output.set_data(std::string(4 * count * 64 * 4, 'x'));
    return response;
  }

  Case case_ = LargeCase();
  internal::AnswerRows rows_;
};

TEST_F(AnswerRowsTest, AreCompleteWithTheLastMessage) {
  EXPECT_TRUE(rows_.Add(ToBuffer(Rows(15))).ok());
  v1::StreamAttentionResponse last = Rows(5);
  last.mutable_timing()->set_compute_us(7);
  EXPECT_TRUE(rows_.Add(ToBuffer(last)).ok());
  const auto result = std::move(rows_).Finish();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->timing.compute_us(), 7);
  EXPECT_EQ(result->output.size(), 4 * 20 * 64);
}

TEST_F(AnswerRowsTest, MalformedAnswers) {
  const auto refused = [&](const v1::StreamAttentionResponse& response) {
    internal::AnswerRows rows(case_.request);
    EXPECT_TRUE(rows.Add(ToBuffer(Rows(10))).ok());
    return absl::IsInternal(rows.Add(ToBuffer(response)));
  };
  EXPECT_FALSE(refused(Rows(10)));
  EXPECT_TRUE(refused(Rows(11)));
  v1::StreamAttentionResponse wrong = Rows(1);
  wrong.mutable_output()->set_shape(1, 3);
  EXPECT_TRUE(refused(wrong));
  wrong = Rows(1);
  wrong.mutable_output()->mutable_data()->pop_back();
  EXPECT_TRUE(refused(wrong));
  wrong = Rows(2);
  wrong.mutable_output()->set_data_type(v1::DATA_TYPE_FLOAT64);
  wrong.mutable_output()->set_shape(2, 1);
  EXPECT_TRUE(refused(wrong));
  // Of the query's type from the first on.
  EXPECT_TRUE(absl::IsInternal(
      internal::AnswerRows(case_.request).Add(ToBuffer(wrong))));
  wrong = Rows(1);
  *wrong.mutable_log_sum_exp() = wrong.output();
  EXPECT_TRUE(refused(wrong));
}

TEST_F(AnswerRowsTest, AreNoMoreThanTheClientTakes) {
  const int64_t piece = static_cast<int64_t>(ToBuffer(Rows(10)).Length());
  internal::AnswerRows rows(case_.request, 2 * piece - 1);
  EXPECT_TRUE(rows.Add(ToBuffer(Rows(10))).ok());
  EXPECT_EQ(ErrorReason(rows.Add(ToBuffer(Rows(10)))), "CLIENT_LIMIT");
}

TEST_F(AnswerRowsTest, KnowWhatTheClientCannotTake) {
  const auto elements = static_cast<int64_t>(Rows(20).output().data().size());
  const internal::AnswerRows all(case_.request, elements + 1);
  EXPECT_TRUE(all.CheckLimit().ok());
  const internal::AnswerRows fewer(case_.request, elements);
  EXPECT_EQ(ErrorReason(fewer.CheckLimit()), "CLIENT_LIMIT");
  EXPECT_TRUE(internal::AnswerRows(case_.request).CheckLimit().ok());
}

TEST_F(AnswerRowsTest, RowsAreMissing) {
  EXPECT_TRUE(rows_.Add(ToBuffer(Rows(19))).ok());
  v1::StreamAttentionResponse last;
  last.mutable_timing();
  EXPECT_TRUE(rows_.Add(ToBuffer(last)).ok());
  EXPECT_THAT(std::string(std::move(rows_).Finish().status().message()),
              HasSubstr("output has 19 rows of 20"));
}

}  // namespace
}  // namespace attention
