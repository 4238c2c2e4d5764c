// Inferences whose tensors lie in shared memory with a name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "grpcpp/client_context.h"
#include "inference/inference.grpc.pb.h"
#include "tests/support/certificates.h"
#include "tests/support/infer_messages.h"
#include "tests/support/messages.h"
#include "tests/support/named_memory.h"
#include "tests/support/raw_call.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using ::testing::ElementsAre;

constexpr int64_t kMemoryBytes = int64_t{1} << 20;
// Where outputs go.
constexpr int64_t kOutputAt = kMemoryBytes / 2;

ModelInferRequest Small() {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 4, 5, 8}, 1);
  *request.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 300, 8}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 2, 300, 6}, 3);
  return InferRequestOf(request);
}

// Sets where a tensor of a request lies.
template <typename Tensor>
void SetPlace(Tensor& tensor, const std::string& region, int64_t offset,
              int64_t bytes) {
  auto& parameters = *tensor.mutable_parameters();
  parameters["shared_memory_region"].set_string_param(region);
  parameters["shared_memory_byte_size"].set_int64_param(bytes);
  if (offset != 0) {
    parameters["shared_memory_offset"].set_int64_param(offset);
  }
}

class InferenceMemoryTest : public ::testing::Test {
 protected:
  InferenceMemoryTest()
      : server_(WithSharedMemory(folder_)),
        channel_(server_.Channel(Transport::kLoopback)),
        stub_(GRPCInferenceService::NewStub(channel_)),
        memory_(kMemoryBytes) {}

  static server::Options WithSharedMemory(const TestFolder& folder) {
    server::Options options = TestServer::DefaultOptions();
    options.shared_memory = "unix:" + folder.Path("memory");
    return options;
  }

  grpc::Status Register(const std::string& name, const std::string& key,
                        int64_t bytes, int64_t offset = 0) {
    grpc::ClientContext context;
    inference::SystemSharedMemoryRegisterRequest request;
    request.set_name(name);
    request.set_key(key);
    request.set_byte_size(static_cast<uint64_t>(bytes));
    request.set_offset(static_cast<uint64_t>(offset));
    inference::SystemSharedMemoryRegisterResponse response;
    return stub_->SystemSharedMemoryRegister(&context, request, &response);
  }
  ModelInferResponse Infer(const ModelInferRequest& request) {
    grpc::ClientContext context;
    ModelInferResponse response;
    status_ = stub_->ModelInfer(&context, request, &response);
    return response;
  }
  void ExpectField(const ModelInferRequest& request, const std::string& field) {
    Infer(request);
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(DetailsOf(status_).field, field) << status_.error_message();
  }

  // The same request with inputs `moved` in the memory, one behind the other,
  // and the output there too.
  ModelInferRequest Moved(const ModelInferRequest& request,
                          const std::vector<int>& moved) {
    ModelInferRequest there = request;
    there.clear_raw_input_contents();
    int64_t at = 0;
    for (int i = 0; i < request.inputs_size(); ++i) {
      const std::string& bytes = request.raw_input_contents(i);
      if (std::find(moved.begin(), moved.end(), i) == moved.end()) {
        there.add_raw_input_contents(bytes);
        continue;
      }
      memory_.Set(at, bytes);
      SetPlace(*there.mutable_inputs(i), "r", at,
               static_cast<int64_t>(bytes.size()));
      at += static_cast<int64_t>(bytes.size());
    }
    auto& output = *there.add_outputs();
    output.set_name("output");
    SetPlace(output, "r", kOutputAt, kMemoryBytes - kOutputAt);
    return there;
  }

  TestFolder folder_;
  TestServer server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
  NamedMemory memory_;
  grpc::Status status_;
};

TEST_F(InferenceMemoryTest, GivesTheSameBits) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  const ModelInferRequest request = Small();
  const std::string wanted = RawOutput(Infer(request), "output");
  for (const std::vector<int>& moved :
       std::vector<std::vector<int>>{{0, 1, 2}, {1, 2}, {0}, {}}) {
    memory_.Set(kOutputAt, std::string(wanted.size() + 1, '?'));
    const ModelInferResponse response = Infer(Moved(request, moved));
    ASSERT_TRUE(status_.ok()) << status_.error_message();
    EXPECT_EQ(memory_.Bytes(kOutputAt, wanted.size()), wanted);
    EXPECT_EQ(memory_.At(kOutputAt + wanted.size()), '?');
    ASSERT_EQ(response.outputs_size(), 1);
    EXPECT_THAT(response.outputs(0).shape(), ElementsAre(1, 4, 5, 6));
    const auto& parameters = response.outputs(0).parameters();
    EXPECT_EQ(parameters.at("shared_memory_region").string_param(), "r");
    EXPECT_EQ(parameters.at("shared_memory_offset").int64_param(), kOutputAt);
    EXPECT_EQ(parameters.at("shared_memory_byte_size").int64_param(),
              static_cast<int64_t>(wanted.size()));
    EXPECT_THAT(response.raw_output_contents(), ElementsAre(""));
  }
}

TEST_F(InferenceMemoryTest, OneOutputThereAndOneInTheMessage) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  ModelInferRequest request = Small();
  request.add_outputs()->set_name("output");
  request.add_outputs()->set_name("log_sum_exp");
  const ModelInferResponse wanted = Infer(request);
  SetPlace(*request.mutable_outputs(0), "r", 0, 1000);
  const ModelInferResponse got = Infer(request);
  ASSERT_TRUE(status_.ok()) << status_.error_message();
  const std::string output = RawOutput(wanted, "output");
  EXPECT_EQ(memory_.Bytes(0, output.size()), output);
  EXPECT_THAT(got.raw_output_contents(),
              ElementsAre("", RawOutput(wanted, "log_sum_exp")));
}

TEST_F(InferenceMemoryTest, OnAStreamToo) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  const ModelInferRequest request = Small();
  const std::string wanted = RawOutput(Infer(request), "output");
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(stream->Write(Moved(request, {0, 1, 2})));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.error_message(), "");
  EXPECT_EQ(memory_.Bytes(kOutputAt, wanted.size()), wanted);
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(InferenceMemoryTest, PlacesAreChecked) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  const ModelInferRequest good = Moved(Small(), {0, 1, 2});
  const auto with = [&](const auto& change) {
    ModelInferRequest request = good;
    change(request);
    return request;
  };
  const std::string query = "inputs." + good.inputs(0).name();
  ExpectField(with([](auto& r) {
                SetPlace(*r.mutable_inputs(0), "r", kMemoryBytes, 4);
              }),
              query + ".parameters.shared_memory_byte_size");
  // Other bytes than the shape says.
  ExpectField(with([](auto& r) { SetPlace(*r.mutable_inputs(0), "r", 4, 4); }),
              query + ".data");
  ExpectField(
      with([](auto& r) { SetPlace(*r.mutable_outputs(0), "r", kOutputAt, 4); }),
      "outputs.output.parameters.shared_memory_byte_size");
  ExpectField(with([](auto& r) { r.add_raw_input_contents("x"); }),
              "raw_input_contents");
  Infer(with([](auto& r) { SetPlace(*r.mutable_inputs(0), "s", 0, 4); }));
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(status_).reason, "REGION_UNKNOWN");
  Infer(good);
  EXPECT_TRUE(status_.ok()) << status_.error_message();
}

// What its owner cuts off is missed, and ends nothing but the call.
TEST_F(InferenceMemoryTest, MemoryMayBecomeSmaller) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  const ModelInferRequest request = Moved(Small(), {0, 1, 2});
  memory_.Resize(10);
  ExpectField(request, "inputs." + request.inputs(0).name() +
                           ".parameters.shared_memory_byte_size");
  ModelInferRequest output = Small();
  output.add_outputs()->set_name("output");
  SetPlace(*output.mutable_outputs(0), "r", 0, 5000);
  ExpectField(output, "outputs.output.parameters.shared_memory_byte_size");
  EXPECT_TRUE(Infer(Small()).outputs_size() == 1 && status_.ok());
}

TEST_F(InferenceMemoryTest, RegionsAreListedAndForgotten) {
  ASSERT_TRUE(Register("r", memory_.key(), 100, 50).ok());
  EXPECT_EQ(Register("r", memory_.key(), 100).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  const auto status = [&] {
    grpc::ClientContext context;
    inference::SystemSharedMemoryStatusResponse response;
    EXPECT_TRUE(stub_->SystemSharedMemoryStatus(&context, {}, &response).ok());
    return response;
  };
  const auto before = status();
  ASSERT_EQ(before.regions_size(), 1);
  EXPECT_EQ(before.regions().at("r").key(), memory_.key());
  EXPECT_EQ(before.regions().at("r").offset(), 50);
  EXPECT_EQ(before.regions().at("r").byte_size(), 100);
  grpc::ClientContext context;
  inference::SystemSharedMemoryUnregisterRequest request;
  inference::SystemSharedMemoryUnregisterResponse response;
  request.set_name("r");
  EXPECT_TRUE(
      stub_->SystemSharedMemoryUnregister(&context, request, &response).ok());
  EXPECT_EQ(status().regions_size(), 0);
}

// Memory is for callers on the server's own machine; its HTTP side says so of
// those who are elsewhere.
TEST_F(InferenceMemoryTest, NotForCallersElsewhere) {
  ASSERT_TRUE(Register("r", memory_.key(), kMemoryBytes).ok());
  const ModelInferRequest request = Moved(Small(), {0, 1, 2});
  grpc::ClientContext infer, other;
  for (grpc::ClientContext* context : {&infer, &other}) {
    context->AddMetadata("attention-from-elsewhere", "1");
  }
  ModelInferResponse response;
  EXPECT_EQ(stub_->ModelInfer(&infer, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  inference::SystemSharedMemoryStatusResponse status;
  EXPECT_EQ(stub_->SystemSharedMemoryStatus(&other, {}, &status).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

}  // namespace
}  // namespace attention::testing
