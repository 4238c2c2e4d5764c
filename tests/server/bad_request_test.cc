// Every kind of bad request, over each transport, checked for its whole status.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using v1::ComputeAttentionRequest;

struct BadRequest {
  const char* name;
  // Applied to SmallRequest().
  std::function<void(ComputeAttentionRequest&)> damage;
  std::string field;
  std::string description;
};

void PrintTo(const BadRequest& bad, std::ostream* out) { *out << bad.name; }

class BadRequestTest
    : public ::testing::TestWithParam<std::tuple<Transport, BadRequest>> {
 protected:
  static void SetUpTestSuite() { server_ = std::make_unique<TestServer>(); }
  static void TearDownTestSuite() { server_.reset(); }
  static std::unique_ptr<TestServer> server_;
};

std::unique_ptr<TestServer> BadRequestTest::server_;

TEST_P(BadRequestTest, IsToldWhatIsWrong) {
  const auto& [transport, bad] = GetParam();
  ComputeAttentionRequest request = SmallRequest();
  bad.damage(request);
  const auto stub = v1::AttentionService::NewStub(server_->Channel(transport));
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  const grpc::Status status =
      stub->ComputeAttention(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), bad.field + ": " + bad.description);
  const Details details = DetailsOf(status);
  EXPECT_EQ(details.field, bad.field);
  EXPECT_EQ(details.description, bad.description);
  EXPECT_EQ(details.reason, "INVALID_FIELD");
  EXPECT_FALSE(details.retry_delay.has_value());
}

using Request = ComputeAttentionRequest;

v1::Tensor WithShape(std::vector<int64_t> shape) {
  v1::Tensor tensor;
  tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  return tensor;
}

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

const BadRequest kBadRequests[] = {
    // What the server checks: payloads and numbers of enums.
    {"NoQuery", [](Request& r) { r.clear_query(); }, "query", "missing"},
    {"NoKey", [](Request& r) { r.clear_key(); }, "key", "missing"},
    {"NoValue", [](Request& r) { r.clear_value(); }, "value", "missing"},
    {"NoType", [](Request& r) { r.mutable_query()->clear_data_type(); },
     "query.data_type", "missing, wanted the type of the elements in data"},
    {"UnknownType",
     [](Request& r) {
       r.mutable_key()->set_data_type(static_cast<v1::DataType>(99));
     },
     "key.data_type", "got 99, wanted a value of DataType"},
    {"NegativeType",
     [](Request& r) {
       r.mutable_key()->set_data_type(static_cast<v1::DataType>(-1));
     },
     "key.data_type", "got -1, wanted a value of DataType"},
    {"DataAndFloats",
     [](Request& r) { r.mutable_value()->add_float_values(1); }, "value",
     "got both data and float_values, wanted one"},
    {"FloatsOfAnotherType",
     [](Request& r) {
       *r.mutable_key() = FloatTensor({1, 1, 1, 1}, {1});
       r.mutable_key()->set_data_type(v1::DATA_TYPE_FLOAT16);
     },
     "key.data_type", "got FLOAT16 with float_values, wanted FLOAT32 or none"},
    {"DataTooShort",
     [](Request& r) { r.mutable_query()->mutable_data()->pop_back(); },
     "query.data", "got 95 bytes, wanted 96 for shape (1, 2, 3, 4) of FLOAT32"},
    {"DataTooLong",
     [](Request& r) { r.mutable_value()->mutable_data()->push_back(0); },
     "value.data", "got 41 bytes, wanted 40 for shape (1, 1, 5, 2) of FLOAT32"},
    {"NoData", [](Request& r) { r.mutable_key()->clear_data(); }, "key.data",
     "got 0 bytes, wanted 80 for shape (1, 1, 5, 4) of FLOAT32"},
    {"DataOfAnotherType",
     [](Request& r) {
       r.mutable_mask()->set_data_type(v1::DATA_TYPE_INT64);
       r.mutable_mask()->add_shape(5);
       r.mutable_mask()->set_data(std::string(20, 0));
     },
     "mask.data", "got 20 bytes, wanted 40 for shape (5) of INT64"},
    {"TooFewBits",
     [](Request& r) {
       r.mutable_mask()->set_data_type(v1::DATA_TYPE_BITS);
       r.mutable_mask()->add_shape(3);
       r.mutable_mask()->add_shape(5);
       r.mutable_mask()->set_data("x");
     },
     "mask.data", "got 1 bytes, wanted 2 for shape (3, 5) of BITS"},
    {"BitsOfKeys",
     [](Request& r) { r.mutable_key()->set_data_type(v1::DATA_TYPE_BITS); },
     "key.data_type",
     "got BITS, wanted another type: only for masks, and not of "
     "StreamAttention"},
    {"IndexOfNoKey",
     [](Request& r) {
       v1::Tensor& indices = *r.mutable_indices();
       indices.set_data_type(v1::DATA_TYPE_INT32);
       for (int64_t dim : {1, 3, 1}) indices.add_shape(dim);
       const int32_t keys[] = {0, -1, 5};
       indices.set_data(keys, sizeof(keys));
     },
     "indices.data",
     "got 5 at element 2, wanted -1, for none, to 4, the sequence's last key"},
    {"IndicesOfOtherRows",
     [](Request& r) {
       v1::Tensor& indices = *r.mutable_indices();
       indices.set_data_type(v1::DATA_TYPE_INT32);
       for (int64_t dim : {1, 4, 0}) indices.add_shape(dim);
     },
     "indices.shape",
     "got (1, 4, 0), wanted (1, 3, k), or (1, 2, 3, k) per head"},
    {"SinksOfRowsAndOfHeads",
     [](Request& r) {
       *r.mutable_sinks() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 3}, 1);
       r.mutable_options()->add_sinks(1);
       r.mutable_options()->add_sinks(1);
     },
     "sinks", "not with options.sinks"},
    {"DataOfAnEmptyTensor",
     [](Request& r) { r.mutable_query()->set_shape(0, 0); }, "query.data",
     "got 96 bytes, wanted 0 for shape (0, 2, 3, 4) of FLOAT32"},
    {"FloatCount",
     [](Request& r) { *r.mutable_key() = FloatTensor({1, 1, 5, 4}, {1, 2}); },
     "key.float_values",
     "got 2 numbers, wanted 20 for shape (1, 1, 5, 4) of FLOAT32"},
    {"ScalarShape", [](Request& r) { *r.mutable_query() = WithShape({}); },
     "query.data", "got 0 bytes, wanted 4 for shape () of FLOAT32"},
    {"NegativeDimension",
     [](Request& r) { *r.mutable_mask() = WithShape({3, -5}); }, "mask.shape",
     "got (3, -5), wanted no negative dimension"},
    {"Overflow", [](Request& r) { *r.mutable_mask() = WithShape({kHuge, 2}); },
     "mask.shape",
     "got (9223372036854775807, 2), wanted fewer than 2^60 elements"},
    {"OverflowInBytes",
     [](Request& r) { *r.mutable_past_key() = WithShape({kHuge}); },
     "past_key.shape",
     "got (9223372036854775807), wanted fewer than 2^60 elements"},
    {"ManyDimensions",
     [](Request& r) {
       *r.mutable_key() = WithShape(std::vector<int64_t>(1000, 0));
     },
     "key.shape", "got 1000 dimensions, wanted at most 4"},
    {"Layout",
     [](Request& r) {
       r.mutable_options()->set_layout(static_cast<v1::Layout>(6));
     },
     "options.layout", "got 6, wanted 0 to 5"},
    {"Causal",
     [](Request& r) {
       r.mutable_options()->set_causal(static_cast<v1::Causal>(3));
     },
     "options.causal", "got 3, wanted 0 to 2"},
    {"NegativeCausal",
     [](Request& r) {
       r.mutable_options()->set_causal(static_cast<v1::Causal>(-1));
     },
     "options.causal", "got -1, wanted 0 to 2"},
    {"MathMode",
     [](Request& r) {
       r.mutable_options()->set_math_mode(static_cast<v1::MathMode>(3));
     },
     "options.math_mode", "got 3, wanted 0 to 2"},
    {"SoftmaxPrecision",
     [](Request& r) {
       r.mutable_options()->set_softmax_precision(static_cast<v1::DataType>(9));
     },
     "options.softmax_precision", "got 9, wanted 0 to 8"},
    {"Scores",
     [](Request& r) {
       r.mutable_options()->set_return_scores(static_cast<v1::Scores>(5));
     },
     "options.return_scores", "got 5, wanted 0 to 4"},
    // What the kernel checks arrives the same way; a few of each kind.
    {"Rank", [](Request& r) { *r.mutable_query() = WithShape({0}); },
     "query.shape", "got (0), wanted 2, 3 or 4 dimensions"},
    {"IntegerQuery",
     [](Request& r) {
       *r.mutable_query() = RandomTensor(v1::DATA_TYPE_INT8, {1, 2, 3, 4}, 1);
     },
     "query.data_type",
     "got INT8, wanted FLOAT32, FLOAT16, BFLOAT16 or FLOAT64"},
    {"KeyType",
     [](Request& r) {
       *r.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 1, 5, 4}, 1);
     },
     "key.data_type", "got FLOAT16, wanted query's FLOAT32"},
    {"HeadSize",
     [](Request& r) {
       *r.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 5, 3}, 1);
     },
     "key.shape", "got (1, 1, 5, 3), wanted query's head size 4"},
    {"MaskShape",
     [](Request& r) {
       *r.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 5}, 1);
     },
     "mask.shape",
     "got (2, 5), wanted a shape that broadcasts to (1, 2, 3, 5)"},
    {"MaskByte",
     [](Request& r) {
       *r.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {5}, 1);
       (*r.mutable_mask()->mutable_data())[3] = 2;
     },
     "mask.data", "got byte 2 at element 3, wanted 0 or 1"},
    {"HalfAPast",
     [](Request& r) {
       *r.mutable_past_value() =
           RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 1, 2}, 1);
     },
     "past_key", "missing, wanted with past_value"},
    {"ValidLengths", [](Request& r) { r.add_valid_lengths(6); },
     "valid_lengths[0]", "got 6, wanted 0 to the number of keys, 5"},
    {"QueryStarts", [](Request& r) { r.add_query_starts(0); }, "query_starts",
     "only with layout RAGGED"},
    {"Softcap", [](Request& r) { r.mutable_options()->set_softcap(-1); },
     "options.softcap", "got -1, wanted a finite FLOAT32 of at least 0"},
    {"Window",
     [](Request& r) { r.mutable_options()->mutable_window()->set_left(-2); },
     "options.window.left", "got -2, wanted at least -1"},
    {"Sinks", [](Request& r) { r.mutable_options()->add_sinks(0); },
     "options.sinks", "got 1 numbers, wanted one per query head, 2"},
};

INSTANTIATE_TEST_SUITE_P(
    All, BadRequestTest,
    ::testing::Combine(::testing::Values(Transport::kLoopback,
                                         Transport::kInProcess),
                       ::testing::ValuesIn(kBadRequests)),
    [](const auto& info) {
      return TransportName(std::get<0>(info.param)) +
             std::get<1>(info.param).name;
    });

TEST(MalformedRequestTest, IsAnInvalidArgument) {
  TestServer server;
  for (Transport transport : {Transport::kLoopback, Transport::kInProcess}) {
    const RawAnswer answer = RawUnaryCall(
        server.Channel(transport),
        "/attention.v1.AttentionService/ComputeAttention", "\x0a\x05no");
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(answer.status.error_message(),
              "the request is not a valid "
              "attention.v1.ComputeAttentionRequest message");
    EXPECT_EQ(DetailsOf(answer.status).field, "");
    EXPECT_EQ(DetailsOf(answer.status).reason, "MALFORMED_MESSAGE");
  }
}

TEST(MalformedRequestTest, AnEmptyMessageLacksItsQuery) {
  TestServer server;
  const RawAnswer answer =
      RawUnaryCall(server.Channel(Transport::kLoopback),
                   "/attention.v1.AttentionService/ComputeAttention", "");
  EXPECT_EQ(answer.status.error_message(), "query: missing");
}

TEST(UnknownMethodTest, IsUnimplemented) {
  TestServer server;
  const RawAnswer answer =
      RawUnaryCall(server.Channel(Transport::kLoopback),
                   "/attention.v1.AttentionService/NoSuchMethod", "");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(answer.status.error_message(),
            "there is no method /attention.v1.AttentionService/NoSuchMethod");
  EXPECT_EQ(DetailsOf(answer.status).reason, "UNKNOWN_METHOD");
}

}  // namespace
}  // namespace attention::testing
