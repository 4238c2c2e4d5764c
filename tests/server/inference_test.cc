// The Open Inference Protocol, inference.GRPCInferenceService: unary methods.
// ModelStreamInfer has a file of its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "inference/inference.grpc.pb.h"
#include "tests/support/infer_messages.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using v1::ComputeAttentionRequest;

constexpr char kModelInfer[] = "/inference.GRPCInferenceService/ModelInfer";

class InferenceTest : public ::testing::Test {
 protected:
  explicit InferenceTest(
      const server::Options& options = TestServer::DefaultOptions())
      : server_(options),
        channel_(server_.Channel(Transport::kLoopback)),
        stub_(GRPCInferenceService::NewStub(channel_)),
        own_(v1::AttentionService::NewStub(channel_)) {}

  // Calls `method`; `status_` says how it ended.
  template <typename Request, typename Response>
  Response Call(grpc::Status (GRPCInferenceService::Stub::*method)(
                    grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    grpc::ClientContext context;
    Response response;
    status_ = (*stub_.*method)(&context, request, &response);
    return response;
  }
  ModelInferResponse Infer(const ModelInferRequest& request) {
    return Call(&GRPCInferenceService::Stub::ModelInfer, request);
  }
  v1::ComputeAttentionResponse Compute(const ComputeAttentionRequest& request) {
    grpc::ClientContext context;
    v1::ComputeAttentionResponse response;
    const grpc::Status status =
        own_->ComputeAttention(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  void ExpectOk() { EXPECT_TRUE(status_.ok()) << status_.error_message(); }
  void ExpectSameAsCompute(const ComputeAttentionRequest& request,
                           Elements elements = Elements::kRaw) {
    const ModelInferResponse got = Infer(InferRequestOf(request, elements));
    ExpectOk();
    ExpectSameOutputs(got, Compute(request));
  }

  TestServer server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
  std::unique_ptr<v1::AttentionService::Stub> own_;
  grpc::Status status_;
};

// A request of any shapes, types and options that fit together.
ComputeAttentionRequest RandomRequest(std::mt19937& random) {
  const auto integer = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const auto one_of = [&](std::vector<v1::DataType> types) {
    return types[integer(0, static_cast<int64_t>(types.size()) - 1)];
  };
  const std::vector<v1::DataType> floats = {
      v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16,
      v1::DATA_TYPE_FLOAT64};
  const v1::DataType type = one_of(floats), value_type = one_of(floats);
  const int64_t batch = integer(1, 2), kv_heads = integer(1, 3),
                group = integer(1, 4), queries = integer(1, 20),
                keys = integer(1, 300), past = integer(0, 1) * integer(0, 40),
                size = integer(1, 40), value_size = integer(1, 40);
  const int64_t heads = kv_heads * group, all_keys = past + keys;
  ComputeAttentionRequest request;
  const auto set = [&](v1::Tensor* tensor, v1::DataType type,
                       const std::vector<int64_t>& shape) {
    *tensor = RandomTensor(type, shape, random());
  };
  set(request.mutable_query(), type, {batch, heads, queries, size});
  set(request.mutable_key(), type, {batch, kv_heads, keys, size});
  set(request.mutable_value(), value_type, {batch, kv_heads, keys, value_size});
  if (past > 0) {
    set(request.mutable_past_key(), type, {batch, kv_heads, past, size});
    set(request.mutable_past_value(), value_type,
        {batch, kv_heads, past, value_size});
  } else if (integer(0, 2) == 0) {
    for (int64_t b = 0; b < batch; ++b) {
      request.add_valid_lengths(integer(0, keys));
    }
  }
  if (integer(0, 1) == 0) {
    set(request.mutable_mask(),
        one_of({v1::DATA_TYPE_BOOL, v1::DATA_TYPE_FLOAT32,
                v1::DATA_TYPE_FLOAT64, v1::DATA_TYPE_INT8, v1::DATA_TYPE_INT32,
                v1::DATA_TYPE_INT64, v1::DATA_TYPE_BFLOAT16}),
        {batch, integer(0, 1) == 0 ? heads : 1, queries, all_keys});
  }
  if (all_keys > 1 && integer(0, 2) == 0) {
    // Of the first two keys.
    set(request.mutable_indices(),
        one_of({v1::DATA_TYPE_INT32, v1::DATA_TYPE_INT64}),
        {batch, heads, queries, integer(1, 3)});
  }
  v1::AttentionOptions& options = *request.mutable_options();
  options.set_causal(static_cast<v1::Causal>(integer(0, 2)));
  if (integer(0, 1) == 0) options.set_scale(0.125 * integer(-4, 8));
  if (integer(0, 1) == 0) options.set_softcap(0.5 * integer(1, 8));
  if (integer(0, 2) == 0) options.mutable_window()->set_left(integer(0, 50));
  if (integer(0, 2) == 0) options.mutable_window()->set_right(integer(-1, 5));
  if (integer(0, 2) == 0) {
    for (int64_t h = 0; h < heads; ++h) {
      options.add_alibi_slopes(0.25 * static_cast<double>(h));
      options.add_sinks(-0.5 * static_cast<double>(h));
    }
  } else if (integer(0, 2) == 0) {
    set(request.mutable_sinks(), one_of(floats), {batch, heads, queries});
  }
  if (integer(0, 3) == 0) {
    options.set_softmax_precision(v1::DATA_TYPE_FLOAT64);
  }
  options.set_return_log_sum_exp(integer(0, 1) == 0);
  options.set_return_scores(static_cast<v1::Scores>(integer(0, 4)));
  options.set_return_present(integer(0, 1) == 0);
  return request;
}

TEST_F(InferenceTest, TheSameBitsAsComputeAttention) {
  std::mt19937 random(20261201);
  for (int i = 0; i < 150; ++i) {
    SCOPED_TRACE(i);
    ExpectSameAsCompute(RandomRequest(random));
  }
}

TEST_F(InferenceTest, ElementsAsNumbers) {
  for (v1::DataType type : {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT64}) {
    for (v1::DataType mask :
         {v1::DATA_TYPE_BOOL, v1::DATA_TYPE_INT8, v1::DATA_TYPE_INT32,
          v1::DATA_TYPE_INT64, v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT64}) {
      SCOPED_TRACE(absl::StrCat(type, " ", mask));
      ComputeAttentionRequest request;
      *request.mutable_query() = RandomTensor(type, {1, 4, 3, 8}, 1);
      *request.mutable_key() = RandomTensor(type, {1, 2, 9, 8}, 2);
      *request.mutable_value() = RandomTensor(type, {1, 2, 9, 5}, 3);
      *request.mutable_mask() = RandomTensor(mask, {3, 9}, 4);
      ExpectSameAsCompute(request, Elements::kNumbers);
    }
  }
}

// Lists that are not packed, as no stock client sends them, are lists too.
TEST_F(InferenceTest, NumbersOneByOne) {
  ComputeAttentionRequest own;
  *own.mutable_query() = DataTensor({1, 2}, {1, 0});
  *own.mutable_key() = DataTensor({1, 2}, {1, 0});
  *own.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT64, {1, 1}, 3);
  ModelInferRequest request = InferRequestOf(own);
  request.clear_raw_input_contents();
  for (int i = 0; i < 2; ++i) {
    auto* contents = request.mutable_inputs(i)->mutable_contents();
    contents->add_fp32_contents(1);
    contents->add_fp32_contents(0);
  }
  // Field 7, wire type 1, then the eight bytes.
  const std::string number = std::string("\x39") + own.value().data();
  std::string bytes = request.SerializeAsString();
  request.mutable_inputs(2)->mutable_contents()->ParseFromString(number);
  EXPECT_EQ(request.inputs(2).contents().fp64_contents_size(), 1);
  // The contents of the last input, by hand: inputs (5) { contents (5) }.
  ModelInferRequest last;
  *last.add_inputs() = request.inputs(2);
  last.mutable_inputs(0)->clear_contents();
  request.mutable_inputs()->RemoveLast();
  std::string input = last.inputs(0).SerializeAsString();
  input += std::string("\x2a\x09") + number;
  bytes = request.SerializeAsString() + '\x2a' +
          static_cast<char>(input.size()) + input;
  const RawAnswer answer = RawUnaryCall(channel_, kModelInfer, bytes);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ModelInferResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.message));
  ExpectSameOutputs(response, Compute(own));
}

TEST_F(InferenceTest, EveryLayout) {
  ComputeAttentionRequest matrix;
  *matrix.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {3, 8}, 1);
  *matrix.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {5, 8}, 2);
  *matrix.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {5, 4}, 3);
  ExpectSameAsCompute(matrix);
  ComputeAttentionRequest packed;
  *packed.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 3, 16}, 1);
  *packed.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 5, 8}, 2);
  *packed.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 5, 6}, 3);
  packed.mutable_options()->set_query_heads(4);
  packed.mutable_options()->set_kv_heads(2);
  ExpectSameAsCompute(packed);
  ComputeAttentionRequest ragged;
  *ragged.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {7, 2, 8}, 1);
  *ragged.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {9, 1, 8}, 2);
  *ragged.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {9, 1, 8}, 3);
  ragged.mutable_options()->set_layout(v1::LAYOUT_RAGGED);
  for (int64_t start : {0, 3, 7}) ragged.add_query_starts(start);
  for (int64_t start : {0, 4, 9}) ragged.add_key_starts(start);
  ExpectSameAsCompute(ragged);
}

TEST_F(InferenceTest, LargeMessagesGoThroughTheExecutor) {
  ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 4, 100, 64}, 1);
  *request.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 3000, 64}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 3000, 64}, 3);
  ExpectSameAsCompute(request);
  ExpectSameAsCompute(request, Elements::kNumbers);
}

TEST_F(InferenceTest, EmptyTensorsHaveTheirPlaceInTheAnswer) {
  ComputeAttentionRequest request;
  *request.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {0, 8}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {5, 8}, 2);
  *request.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {5, 4}, 3);
  request.mutable_options()->set_return_log_sum_exp(true);
  request.mutable_options()->set_return_present(true);
  ExpectSameAsCompute(request);
}

TEST_F(InferenceTest, ReturnsTheOutputsThatAreNamed) {
  const ComputeAttentionRequest own = SmallRequest();
  const auto infer = [&](const std::vector<std::string>& outputs,
                         const std::string& scores = "") {
    ModelInferRequest request = InferRequestOf(own);
    request.set_id("one");
    for (const std::string& name : outputs) {
      request.add_outputs()->set_name(name);
    }
    if (!scores.empty()) {
      (*request.mutable_parameters())["return_scores"].set_string_param(scores);
    }
    const ModelInferResponse response = Infer(request);
    ExpectOk();
    EXPECT_EQ(response.id(), "one");
    EXPECT_EQ(response.model_name(), "attention");
    EXPECT_EQ(response.model_version(), "1");
    return response;
  };
  const auto compute = [&](v1::Scores scores) {
    ComputeAttentionRequest request = own;
    request.mutable_options()->set_return_scores(scores);
    request.mutable_options()->set_return_log_sum_exp(true);
    request.mutable_options()->set_return_present(true);
    return Compute(request);
  };
  v1::ComputeAttentionResponse wanted = compute(v1::SCORES_WEIGHTS);
  ExpectSameOutputs(infer({"scores", "output", "log_sum_exp", "present_value",
                           "present_key"}),
                    wanted);
  wanted.clear_output();
  wanted.clear_log_sum_exp();
  wanted.clear_present_key();
  ExpectSameOutputs(infer({"present_value", "scores"}), wanted);
  wanted = compute(v1::SCORES_RAW);
  wanted.clear_log_sum_exp();
  wanted.clear_present_key();
  wanted.clear_present_value();
  ExpectSameOutputs(infer({"scores", "output"}, "raw"), wanted);
  wanted.clear_scores();
  // What is not named is not returned, whatever the parameters say.
  ExpectSameOutputs(infer({"output"}, "SCORES_RAW"), wanted);
}

TEST_F(InferenceTest, TritonsOwnParametersMeanNothing) {
  ModelInferRequest request = InferRequestOf(SmallRequest());
  auto& parameters = *request.mutable_parameters();
  parameters["triton_enable_empty_final_response"].set_bool_param(true);
  parameters["sequence_id"].set_int64_param(7);
  parameters["sequence_start"].set_bool_param(true);
  parameters["sequence_end"].set_bool_param(true);
  parameters["priority"].set_uint64_param(1);
  parameters["timeout"].set_int64_param(1);
  parameters["binary_data_output"].set_bool_param(true);
  (*request.mutable_inputs(0)->mutable_parameters())["binary_data_size"]
      .set_int64_param(8);
  auto* const output = request.add_outputs();
  output->set_name("output");
  (*output->mutable_parameters())["classification"].set_int64_param(0);
  ExpectSameOutputs(Infer(request), Compute(SmallRequest()));
  ExpectOk();
}

// Errors.

struct BadInference {
  const char* name;
  // Applied to the inference of SmallRequest(), whose inputs are key, query and
  // value.
  std::function<void(ModelInferRequest&)> damage;
  std::string field;
  std::string description;
  const char* reason = "INVALID_FIELD";
};

void PrintTo(const BadInference& bad, std::ostream* out) { *out << bad.name; }

class BadInferenceTest : public ::testing::TestWithParam<BadInference> {
 protected:
  static void SetUpTestSuite() { server_ = std::make_unique<TestServer>(); }
  static void TearDownTestSuite() { server_.reset(); }
  static std::unique_ptr<TestServer> server_;
};

std::unique_ptr<TestServer> BadInferenceTest::server_;

TEST_P(BadInferenceTest, IsToldWhatIsWrong) {
  const BadInference& bad = GetParam();
  ModelInferRequest request = InferRequestOf(SmallRequest());
  bad.damage(request);
  const auto stub =
      GRPCInferenceService::NewStub(server_->Channel(Transport::kLoopback));
  grpc::ClientContext context;
  ModelInferResponse response;
  const grpc::Status status = stub->ModelInfer(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), bad.field + ": " + bad.description);
  const Details details = DetailsOf(status);
  EXPECT_EQ(details.field, bad.field);
  EXPECT_EQ(details.description, bad.description);
  EXPECT_EQ(details.reason, bad.reason);
}

using Request = ModelInferRequest;

constexpr char kUnknownInput[] =
    "unknown, wanted query, key, value, mask, past_key, past_value, indices "
    "or sinks";
constexpr char kOptionNames[] =
    "unknown, wanted one of layout, query_heads, kv_heads, scale, softcap, "
    "causal, window.left, window.right, chunk_size, alibi_slopes, sinks, "
    "math_mode, "
    "softmax_precision, return_log_sum_exp, return_scores, return_present, "
    "valid_lengths, query_starts, key_starts";

inference::InferParameter& Parameter(Request& r, const std::string& name) {
  return (*r.mutable_parameters())[name];
}

// The elements of key, 20, query, 24, and value, 10, as numbers.
void UseNumbers(Request& r) {
  r = InferRequestOf(SmallRequest(), Elements::kNumbers);
}

const BadInference kBadInferences[] = {
    // Inputs.
    {"NoInputs",
     [](Request& r) {
       r.clear_inputs();
       r.clear_raw_input_contents();
     },
     "inputs.query", "missing"},
    {"UnknownInput", [](Request& r) { r.mutable_inputs(0)->set_name("keys"); },
     "inputs.keys", kUnknownInput},
    {"NamelessInput", [](Request& r) { r.mutable_inputs(0)->clear_name(); },
     "inputs.", kUnknownInput},
    {"LongName",
     [](Request& r) { r.mutable_inputs(0)->set_name(std::string(999, 'k')); },
     "inputs." + std::string(64, 'k') + "...", kUnknownInput},
    {"UnprintableName", [](Request& r) { r.mutable_inputs(0)->set_name("\n"); },
     "inputs.\\n", kUnknownInput},
    {"TwoOfOne", [](Request& r) { r.mutable_inputs(0)->set_name("query"); },
     "inputs.query", "got two, wanted one"},
    {"ManyInputs",
     [](Request& r) {
       for (int i = 0; i < 1000; ++i) r.add_inputs();
     },
     "inputs", "got more than 16, wanted fewer"},
    {"MissingInput",
     [](Request& r) {
       r.mutable_inputs()->RemoveLast();
       r.mutable_raw_input_contents()->RemoveLast();
     },
     "inputs.value", "missing"},
    {"Datatype", [](Request& r) { r.mutable_inputs(1)->set_datatype("FP8"); },
     "inputs.query.datatype",
     "got \"FP8\", wanted FP32, FP16, BF16, FP64, BOOL, INT8, INT32 or INT64"},
    {"DatatypeOfAQuery",
     [](Request& r) { r.mutable_inputs(1)->set_datatype("INT32"); },
     "inputs.query.datatype",
     "got INT32, wanted FLOAT32, FLOAT16, BFLOAT16 or FLOAT64"},
    {"Shape", [](Request& r) { r.mutable_inputs(1)->set_shape(3, 3); },
     "inputs.query.data",
     "got 96 bytes, wanted 72 for shape (1, 2, 3, 3) of FLOAT32"},
    {"ShapesThatDoNotFit",
     [](Request& r) {
       r.mutable_inputs(1)->set_shape(3, 2);
       r.mutable_inputs(1)->set_shape(2, 6);
     },
     "inputs.key.shape", "got (1, 1, 5, 4), wanted query's head size 2"},
    {"NegativeShape", [](Request& r) { r.mutable_inputs(0)->set_shape(0, -1); },
     "inputs.key.shape", "got (-1, 1, 5, 4), wanted no negative dimension"},
    {"ManyDimensions",
     [](Request& r) {
       for (int i = 0; i < 100; ++i) r.mutable_inputs(0)->add_shape(1);
     },
     "inputs.key.shape", "got 104 dimensions, wanted at most 4"},
    // Elements.
    {"RawTooShort",
     [](Request& r) { r.mutable_raw_input_contents(0)->pop_back(); },
     "inputs.key.data",
     "got 79 bytes, wanted 80 for shape (1, 1, 5, 4) of FLOAT32"},
    {"OneRawTooFew",
     [](Request& r) { r.mutable_raw_input_contents()->RemoveLast(); },
     "raw_input_contents",
     "got 2, wanted 3: one for each of inputs that is not in shared "
     "memory, or none"},
    {"OneRawTooMany", [](Request& r) { r.add_raw_input_contents(); },
     "raw_input_contents",
     "got 4, wanted 3: one for each of inputs that is not in shared "
     "memory, or none"},
    {"ManyRaw",
     [](Request& r) {
       for (int i = 0; i < 1000; ++i) r.add_raw_input_contents();
     },
     "raw_input_contents", "got more than 16, wanted fewer"},
    {"RawAndNumbers",
     [](Request& r) {
       r.mutable_inputs(2)->mutable_contents()->add_fp32_contents(1);
     },
     "inputs.value.contents", "got both it and raw_input_contents, wanted one"},
    {"NoElements", [](Request& r) { r.clear_raw_input_contents(); },
     "inputs.query.data",
     "got 0 bytes, wanted 96 for shape (1, 2, 3, 4) of FLOAT32"},
    {"NumberTooMany",
     [](Request& r) {
       UseNumbers(r);
       r.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
     },
     "inputs.key.contents.fp32_contents",
     "got 21 numbers, wanted 20 for shape (1, 1, 5, 4) of FLOAT32"},
    {"NumbersOfAnotherType",
     [](Request& r) {
       UseNumbers(r);
       auto* const contents = r.mutable_inputs(0)->mutable_contents();
       contents->clear_fp32_contents();
       contents->add_int_contents(1);
     },
     "inputs.key.contents", "got int_contents, wanted fp32_contents for FP32"},
    {"NumbersOfTwoTypes",
     [](Request& r) {
       UseNumbers(r);
       r.mutable_inputs(0)->mutable_contents()->add_bytes_contents("a");
     },
     "inputs.key.contents",
     "got bytes_contents, wanted fp32_contents for FP32"},
    {"NumbersOfAHalf",
     [](Request& r) {
       UseNumbers(r);
       r.mutable_inputs(0)->set_datatype("FP16");
     },
     "inputs.key.contents", "got it for FP16, wanted raw_input_contents"},
    {"SmallIntegers",
     [](Request& r) {
       UseNumbers(r);
       auto* const mask = r.add_inputs();
       mask->set_name("mask");
       mask->set_datatype("INT8");
       mask->add_shape(5);
       for (int i = 0; i < 5; ++i)
         mask->mutable_contents()->add_int_contents(i);
       mask->mutable_contents()->set_int_contents(3, 128);
     },
     "inputs.mask.contents.int_contents",
     "got 128, wanted -128 to 127 for INT8"},
    {"BytesOfABool",
     [](Request& r) {
       auto* const mask = r.add_inputs();
       mask->set_name("mask");
       mask->set_datatype("BOOL");
       mask->add_shape(5);
       r.add_raw_input_contents(std::string("\1\0\2\0\1", 5));
     },
     "inputs.mask.data", "got byte 2 at element 2, wanted 0 or 1"},
    {"RegionWithoutAName",
     [](Request& r) {
       (*r.mutable_inputs(0)->mutable_parameters())["shared_memory_byte_size"]
           .set_int64_param(4);
     },
     "inputs.key.parameters.shared_memory_region",
     "missing, wanted it with the other shared_memory_ ones"},
    {"NegativeOffset",
     [](Request& r) {
       (*r.mutable_inputs(0)->mutable_parameters())["shared_memory_offset"]
           .set_int64_param(-4);
     },
     "inputs.key.parameters.shared_memory_offset",
     "got -4, wanted a number of bytes"},
    {"ParameterOfAnInput",
     [](Request& r) {
       (*r.mutable_inputs(0)->mutable_parameters())["scale"].set_double_param(
           1);
     },
     "inputs.key.parameters.scale", "unknown, wanted none"},
    // Outputs.
    {"UnknownOutput", [](Request& r) { r.add_outputs()->set_name("out"); },
     "outputs.out",
     "unknown, wanted output, log_sum_exp, scores, present_key or "
     "present_value"},
    {"TwoOfOneOutput",
     [](Request& r) {
       for (int i = 0; i < 2; ++i) r.add_outputs()->set_name("scores");
     },
     "outputs.scores", "got two, wanted one"},
    {"Classification",
     [](Request& r) {
       auto* const output = r.add_outputs();
       output->set_name("output");
       (*output->mutable_parameters())["classification"].set_int64_param(3);
     },
     "outputs.output.parameters.classification",
     "got it, wanted none: no output has classes"},
    // Parameters.
    {"UnknownParameter", [](Request& r) { Parameter(r, "casual"); },
     "parameters.casual", kOptionNames},
    {"PartOfAParameter", [](Request& r) { Parameter(r, "window"); },
     "parameters.window", kOptionNames},
    {"TooMuchOfAParameter", [](Request& r) { Parameter(r, "scale.left"); },
     "parameters.scale.left", kOptionNames},
    {"NoValue", [](Request& r) { Parameter(r, "scale"); }, "parameters.scale",
     "got no value, wanted a number"},
    {"NotANumber",
     [](Request& r) { Parameter(r, "scale").set_string_param("1 m"); },
     "parameters.scale", "got \"1 m\", wanted a number"},
    {"BoolForANumber",
     [](Request& r) { Parameter(r, "softcap").set_bool_param(true); },
     "parameters.softcap", "got true, wanted a number"},
    {"NumberForABool",
     [](Request& r) { Parameter(r, "return_present").set_int64_param(1); },
     "parameters.return_present", "got 1, wanted true or false"},
    {"FractionForAnInteger",
     [](Request& r) { Parameter(r, "kv_heads").set_double_param(1.5); },
     "parameters.kv_heads", "got 1.5, wanted an integer"},
    {"LargeInteger",
     [](Request& r) {
       Parameter(r, "kv_heads").set_uint64_param(~uint64_t{0});
     },
     "parameters.kv_heads", "got 18446744073709551615, wanted an integer"},
    {"NameOfAnEnum",
     [](Request& r) { Parameter(r, "causal").set_string_param("both"); },
     "parameters.causal", "got \"both\", wanted top_left, bottom_right"},
    {"NumberOfAnEnum",
     [](Request& r) { Parameter(r, "causal").set_int64_param(3); },
     "parameters.causal", "got 3, wanted 0 to 2"},
    {"LargeNumberOfAnEnum",
     [](Request& r) {
       Parameter(r, "causal").set_int64_param(int64_t{1} << 32);
     },
     "parameters.causal", "got 4294967296, wanted top_left, bottom_right"},
    {"List", [](Request& r) { Parameter(r, "sinks").set_string_param("1,,2"); },
     "parameters.sinks",
     "got \"1,,2\", wanted numbers with commas between them"},
    {"LengthOfAList",
     [](Request& r) { Parameter(r, "sinks").set_string_param("1,2,3"); },
     "parameters.sinks", "got 3 numbers, wanted one per query head, 2"},
    {"ListOfIntegers",
     [](Request& r) { Parameter(r, "valid_lengths").set_string_param("1.5"); },
     "parameters.valid_lengths",
     "got \"1.5\", wanted integers with commas between them"},
    {"ValueInAList",
     [](Request& r) { Parameter(r, "valid_lengths").set_int64_param(6); },
     "parameters.valid_lengths[0]", "got 6, wanted 0 to the number of keys, 5"},
    {"LongList",
     [](Request& r) {
       std::string list = "1";
       for (int i = 0; i < 400'000; ++i) list += ",1";
       Parameter(r, "query_starts").set_string_param(list);
     },
     "parameters.query_starts",
     absl::StrCat("got more than ", server::Options().max_batch + 1,
                  " numbers, the most there are"),
     "LIMIT_EXCEEDED"},
    {"LongText",
     [](Request& r) {
       Parameter(r, "sinks").set_string_param(std::string((1 << 20) + 1, '1'));
     },
     "parameters", "got 1048577 bytes, wanted at most 1048576",
     "LIMIT_EXCEEDED"},
    {"ManyParameters",
     [](Request& r) {
       for (int i = 0; i < 300; ++i) Parameter(r, absl::StrCat("triton_", i));
     },
     "parameters", "got more than 256, the most there may be"},
    // The rest.
    {"LongId", [](Request& r) { r.set_id(std::string(1025, 'i')); }, "id",
     "got more than 1024 bytes, the most there may be"},
};

INSTANTIATE_TEST_SUITE_P(All, BadInferenceTest,
                         ::testing::ValuesIn(kBadInferences),
                         [](const auto& info) { return info.param.name; });

TEST_F(InferenceTest, AnIdComesBackOrIsRefused) {
  ModelInferRequest request = InferRequestOf(SmallRequest());
  request.set_id(std::string(1022, 'i') + "\u00fc");
  EXPECT_EQ(Infer(request).id(), request.id());
  ExpectOk();
  request.clear_id();
  // By hand: protobuf writes no string that is none.
  const RawAnswer answer =
      RawUnaryCall(channel_, kModelInfer,
                   request.SerializeAsString() + std::string("\x1a\x01\xfc"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer.status.error_message(), "id: got bytes, wanted UTF-8");
}

TEST_F(InferenceTest, AnotherModelIsNotFound) {
  ModelInferRequest request = InferRequestOf(SmallRequest());
  request.set_model_version("1");
  Infer(request);
  ExpectOk();
  const auto expect_unknown = [&](const std::string& message) {
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(status_.error_message(), message);
    EXPECT_EQ(DetailsOf(status_).reason, "MODEL_UNKNOWN");
  };
  request.set_model_version("2");
  Infer(request);
  expect_unknown("model version: got \"2\", wanted \"1\"");
  request.set_model_name("other");
  Infer(request);
  expect_unknown("model name: got \"other\", wanted \"attention\"");
  inference::ModelMetadataRequest metadata;
  metadata.set_name("other");
  Call(&GRPCInferenceService::Stub::ModelMetadata, metadata);
  expect_unknown("model name: got \"other\", wanted \"attention\"");
}

// Whatever bytes come, they are answered, and by an error that says why.
TEST_F(InferenceTest, MutatedMessages) {
  ComputeAttentionRequest own = SmallRequest();
  *own.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {3, 5}, 4);
  own.mutable_options()->set_causal(v1::CAUSAL_TOP_LEFT);
  own.mutable_options()->add_sinks(1);
  own.mutable_options()->add_sinks(2);
  std::mt19937 random(7);
  int failed = 0;
  for (const Elements elements : {Elements::kRaw, Elements::kNumbers}) {
    ModelInferRequest request = InferRequestOf(own, elements);
    request.add_outputs()->set_name("output");
    request.set_id("id");
    const std::string valid = request.SerializeAsString();
    for (int i = 0; i < 1500; ++i) {
      std::string bytes = valid;
      for (int changes = 1 + static_cast<int>(random() % 3); changes > 0;
           --changes) {
        const size_t at = random() % bytes.size();
        switch (random() % 4) {
          case 0:
            bytes.erase(at, 1 + random() % 8);
            break;
          case 1:
            bytes.insert(at, bytes.substr(random() % bytes.size(), 12));
            break;
          case 2:
            bytes.resize(at + 1);
            break;
          default:
            bytes[at] = static_cast<char>(random());
        }
      }
      const RawAnswer answer = RawUnaryCall(channel_, kModelInfer, bytes);
      if (answer.status.ok()) {
        ModelInferResponse response;
        EXPECT_TRUE(response.ParseFromString(answer.message));
        continue;
      }
      ++failed;
      if (answer.status.error_code() == grpc::StatusCode::NOT_FOUND) {
        EXPECT_EQ(DetailsOf(answer.status).reason, "MODEL_UNKNOWN");
        continue;
      }
      EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << answer.status.error_message();
      const Details details = DetailsOf(answer.status);
      EXPECT_EQ(details.field.empty(), details.reason == "MALFORMED_MESSAGE")
          << answer.status.error_message();
    }
  }
  EXPECT_GT(failed, 1000);
  ExpectSameAsCompute(own);
}

// What protobuf's parser takes is taken, what it does not take is not.
TEST_F(InferenceTest, MalformedMessages) {
  const std::string valid = InferRequestOf(SmallRequest()).SerializeAsString();
  const std::string malformed[] = {
      "\xff", valid + "\x2a\x05", valid + std::string(1, '\0'),
      valid + "\x22\x03\x0a\x05", valid.substr(0, valid.size() - 1)};
  for (const std::string& bytes : malformed) {
    ModelInferRequest request;
    EXPECT_FALSE(request.ParseFromString(bytes));
    const grpc::Status status =
        RawUnaryCall(channel_, kModelInfer, bytes).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(),
              "the request is not a valid inference.ModelInferRequest message");
    EXPECT_EQ(DetailsOf(status).reason, "MALFORMED_MESSAGE");
  }
  // Unknown fields, and known ones of another wire type, are neither here nor
  // there.
  for (const char* more : {"\xf8\x01\x07", "\x28\x01", "\x0d\1\1\1\1"}) {
    EXPECT_TRUE(RawUnaryCall(channel_, kModelInfer, valid + more).status.ok());
  }
}

// More of them than a message may have fields.
TEST_F(InferenceTest, TooManyIntegers) {
  ModelInferRequest request =
      InferRequestOf(SmallRequest(), Elements::kNumbers);
  auto* const mask = request.add_inputs();
  mask->set_name("mask");
  mask->set_datatype("BOOL");
  mask->add_shape(5);
  mask->mutable_contents()->mutable_bool_contents()->Resize(600'000, true);
  Infer(request);
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status_.error_message(), HasSubstr("more than 524288 fields"));
}

// Descriptions.

TEST_F(InferenceTest, DescribesItself) {
  const auto server = Call(&GRPCInferenceService::Stub::ServerMetadata,
                           inference::ServerMetadataRequest());
  EXPECT_EQ(server.name(), "attention_server");
  EXPECT_FALSE(server.version().empty());
  inference::ModelMetadataRequest metadata_request;
  metadata_request.set_name("attention");
  const auto metadata =
      Call(&GRPCInferenceService::Stub::ModelMetadata, metadata_request);
  ExpectOk();
  std::vector<std::string> inputs;
  for (const auto& input : metadata.inputs()) inputs.push_back(input.name());
  EXPECT_EQ(inputs, (std::vector<std::string>{"query", "key", "value", "mask",
                                              "past_key", "past_value",
                                              "indices", "sinks"}));
  EXPECT_EQ(metadata.inputs(0).datatype(), "FP32");
  EXPECT_EQ(metadata.inputs(6).datatype(), "INT64");
  EXPECT_EQ(metadata.outputs_size(), 1);
  EXPECT_EQ(metadata.versions(0), "1");
  inference::ModelConfigRequest config_request;
  config_request.set_name("attention");
  const auto config =
      Call(&GRPCInferenceService::Stub::ModelConfig, config_request).config();
  ExpectOk();
  EXPECT_EQ(config.max_batch_size(), 0);
  EXPECT_EQ(config.input_size(), 8);
  EXPECT_FALSE(config.input(2).optional());
  EXPECT_TRUE(config.input(3).optional());
  EXPECT_EQ(config.input(6).data_type(), inference::TYPE_INT64);
  const auto index = Call(&GRPCInferenceService::Stub::RepositoryIndex,
                          inference::RepositoryIndexRequest());
  ASSERT_EQ(index.models_size(), 1);
  EXPECT_EQ(index.models(0).state(), "READY");
}

TEST_F(InferenceTest, SharesNoMemoryUnlessItIsAllowed) {
  EXPECT_EQ(Call(&GRPCInferenceService::Stub::SystemSharedMemoryStatus,
                 inference::SystemSharedMemoryStatusRequest())
                .regions_size(),
            0);
  ExpectOk();
  Call(&GRPCInferenceService::Stub::SystemSharedMemoryUnregister,
       inference::SystemSharedMemoryUnregisterRequest());
  ExpectOk();
  Call(&GRPCInferenceService::Stub::CudaSharedMemoryUnregister,
       inference::CudaSharedMemoryUnregisterRequest());
  ExpectOk();
  Call(&GRPCInferenceService::Stub::CudaSharedMemoryStatus,
       inference::CudaSharedMemoryStatusRequest());
  ExpectOk();
  inference::SystemSharedMemoryRegisterRequest request;
  request.set_name("secret_name");
  request.set_key("/etc/passwd");
  Call(&GRPCInferenceService::Stub::SystemSharedMemoryRegister, request);
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status_.error_message(), StartsWith("memory is not shared here"));
  EXPECT_THAT(status_.error_message(),
              ::testing::Not(HasSubstr("secret_name")));
  const RawAnswer other = RawUnaryCall(
      channel_, "/inference.GRPCInferenceService/RepositoryModelLoad", "");
  EXPECT_EQ(other.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(DetailsOf(other.status).reason, "UNKNOWN_METHOD");
}

TEST_F(InferenceTest, StatisticsCountInferences) {
  const auto statistics = [&] {
    inference::ModelStatisticsRequest request;
    const auto response =
        Call(&GRPCInferenceService::Stub::ModelStatistics, request);
    ExpectOk();
    EXPECT_EQ(response.model_stats_size(), 1);
    return response.model_stats(0);
  };
  EXPECT_EQ(statistics().inference_stats().success().count(), 0);
  EXPECT_EQ(statistics().last_inference(), 0);
  for (int i = 0; i < 3; ++i) ExpectSameAsCompute(SmallRequest());
  Infer(ModelInferRequest());
  EXPECT_FALSE(status_.ok());
  const inference::ModelStatistics after = statistics();
  EXPECT_EQ(after.name(), "attention");
  EXPECT_EQ(after.inference_count(), 3);
  EXPECT_EQ(after.execution_count(), 3);
  EXPECT_GT(after.last_inference(), 0);
  const inference::InferStatistics& stats = after.inference_stats();
  EXPECT_EQ(stats.fail().count(), 1);
  for (const auto& sum : {stats.success(), stats.queue(), stats.compute_input(),
                          stats.compute_infer(), stats.compute_output()}) {
    EXPECT_EQ(sum.count(), 3);
    EXPECT_GT(sum.ns(), 0);
  }
  EXPECT_GE(stats.success().ns(), stats.queue().ns() +
                                      stats.compute_input().ns() +
                                      stats.compute_infer().ns());
}

// Admission.

class InferenceLimitsTest : public InferenceTest {
 protected:
  static server::Options Small() {
    server::Options options = TestServer::DefaultOptions();
    options.max_request_bytes = 1 << 20;
    options.max_response_bytes = 1 << 20;
    return options;
  }
  InferenceLimitsTest() : InferenceTest(Small()) {}
};

TEST_F(InferenceLimitsTest, AreThoseOfComputeAttention) {
  ModelInferRequest large = InferRequestOf(SmallRequest());
  large.set_raw_input_contents(0, std::string(2 << 20, 0));
  Infer(large);
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status_).reason, "REQUEST_TOO_LARGE");
  ComputeAttentionRequest long_rows = LongRequest(4000);
  ModelInferRequest scores = InferRequestOf(long_rows);
  scores.add_outputs()->set_name("scores");
  Infer(scores);
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status_).reason, "ANSWER_TOO_LARGE");
}

TEST_F(InferenceTest, ACancelledInferenceIsGivenUp) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(300));
  ModelInferResponse response;
  const grpc::Status status = stub_->ModelInfer(
      &context, InferRequestOf(LongCall::Request()), &response);
  // Refused at once, or given up.
  EXPECT_TRUE(status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
              status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED)
      << status.error_message();
  EXPECT_TRUE(WaitUntil([&] { return server_.server().running_calls() == 0; }));
}

class InferenceDrainTest : public InferenceTest {
 protected:
  static server::Options Delayed() {
    server::Options options = TestServer::DefaultOptions();
    options.drain_delay = absl::Hours(1);
    return options;
  }
  InferenceDrainTest() : InferenceTest(Delayed()) {}
};

TEST_F(InferenceDrainTest, ReadinessAgreesWithHealth) {
  const auto ready = [&] {
    inference::ModelReadyRequest model;
    model.set_name("attention");
    const bool model_ready =
        Call(&GRPCInferenceService::Stub::ModelReady, model).ready();
    ExpectOk();
    const bool server_ready = Call(&GRPCInferenceService::Stub::ServerReady,
                                   inference::ServerReadyRequest())
                                  .ready();
    ExpectOk();
    EXPECT_EQ(server_ready, model_ready);
    EXPECT_EQ(HealthOf(channel_, ""), server_ready ? "SERVING" : "NOT_SERVING");
    return server_ready;
  };
  const auto live = [&] {
    return Call(&GRPCInferenceService::Stub::ServerLive,
                inference::ServerLiveRequest())
        .live();
  };
  EXPECT_TRUE(ready());
  EXPECT_TRUE(live());
  server_.server().Shutdown(absl::InfiniteFuture());
  std::thread waiting([&] { server_.server().Wait(); });
  EXPECT_FALSE(ready());
  EXPECT_TRUE(live());
  inference::RepositoryIndexRequest index;
  EXPECT_EQ(Call(&GRPCInferenceService::Stub::RepositoryIndex, index)
                .models(0)
                .state(),
            "UNAVAILABLE");
  index.set_ready(true);
  EXPECT_EQ(
      Call(&GRPCInferenceService::Stub::RepositoryIndex, index).models_size(),
      0);
  // Everything is served as before, until the delay is over.
  ExpectSameAsCompute(SmallRequest());
  server_.server().Shutdown(absl::InfinitePast());
  waiting.join();
}

}  // namespace
}  // namespace attention::testing
