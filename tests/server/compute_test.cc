// Answers, over each transport.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "kernel/attention.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using v1::ComputeAttentionRequest;
using v1::ComputeAttentionResponse;

class ComputeTest : public ::testing::TestWithParam<Transport> {
 protected:
  ComputeTest()
      : stub_(v1::AttentionService::NewStub(server_.Channel(GetParam()))) {}

  ComputeAttentionResponse Compute(const ComputeAttentionRequest& request) {
    grpc::ClientContext context;
    ComputeAttentionResponse response;
    const grpc::Status status =
        stub_->ComputeAttention(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // The answer's bytes are those of the kernel called directly.
  void ExpectKernelAnswer(const ComputeAttentionRequest& request) {
    ComputeAttentionResponse response = Compute(request);
    EXPECT_TRUE(response.has_timing());
    response.clear_timing();
    // Not EXPECT_EQ, which would print megabytes.
    EXPECT_TRUE(response.SerializeAsString() ==
                KernelAnswer(request).SerializeAsString());
  }

  TestServer server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

void ExpectNear(const std::vector<float>& got,
                const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-6);
}

TEST_P(ComputeTest, IdentityExample) {
  ComputeAttentionRequest request;
  const v1::Tensor identity = DataTensor({2, 2}, {1, 0, 0, 1});
  *request.mutable_query() = identity;
  *request.mutable_key() = identity;
  *request.mutable_value() = identity;
  const v1::Tensor output = Compute(request).output();
  EXPECT_EQ(output.shape_size(), 2);
  ExpectNear(FloatsOf(output), {0.669762f, 0.330238f, 0.330238f, 0.669762f});
}

TEST_P(ComputeTest, OneQueryExampleByHand) {
  ComputeAttentionRequest request;
  *request.mutable_query() = FloatTensor({1, 2}, {1, 0});
  *request.mutable_key() = FloatTensor({2, 2}, {0.5, 0.5, 0.3f, 0.7f});
  *request.mutable_value() = FloatTensor({2, 2}, {1, 0, 0.5, 0.5});
  const ComputeAttentionResponse response = Compute(request);
  // What is asked in float_values is answered so.
  EXPECT_EQ(response.output().data(), "");
  EXPECT_EQ(response.output().data_type(), v1::DATA_TYPE_FLOAT32);
  const auto& values = response.output().float_values();
  ExpectNear({values.begin(), values.end()}, {0.767648f, 0.232352f});
}

TEST_P(ComputeTest, FloatValuesDoNotChangeTheBits) {
  ComputeAttentionRequest request = SmallRequest();
  request.mutable_options()->set_return_log_sum_exp(true);
  const ComputeAttentionResponse in_data = Compute(request);
  for (v1::Tensor* tensor : {request.mutable_query(), request.mutable_key(),
                             request.mutable_value()}) {
    *tensor = FloatTensor({tensor->shape().begin(), tensor->shape().end()},
                          FloatsOf(*tensor));
  }
  const ComputeAttentionResponse in_floats = Compute(request);
  const auto floats = [](const v1::Tensor& tensor) {
    return std::vector<float>(tensor.float_values().begin(),
                              tensor.float_values().end());
  };
  EXPECT_EQ(floats(in_floats.output()), FloatsOf(in_data.output()));
  EXPECT_EQ(floats(in_floats.log_sum_exp()), FloatsOf(in_data.log_sum_exp()));
}

TEST_P(ComputeTest, EveryPairOfTypes) {
  constexpr v1::DataType kTypes[] = {
      v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16,
      v1::DATA_TYPE_FLOAT64};
  for (v1::DataType query : kTypes) {
    for (v1::DataType value : kTypes) {
      SCOPED_TRACE(v1::DataType_Name(query) + " " + v1::DataType_Name(value));
      ComputeAttentionRequest request;
      *request.mutable_query() = RandomTensor(query, {1, 4, 3, 8}, 1);
      *request.mutable_key() = RandomTensor(query, {1, 2, 9, 8}, 2);
      *request.mutable_value() = RandomTensor(value, {1, 2, 9, 5}, 3);
      request.mutable_options()->set_return_log_sum_exp(true);
      ExpectKernelAnswer(request);
    }
  }
}

TEST_P(ComputeTest, EveryMaskType) {
  for (v1::DataType type :
       {v1::DATA_TYPE_BOOL, v1::DATA_TYPE_INT8, v1::DATA_TYPE_INT32,
        v1::DATA_TYPE_INT64, v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16,
        v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT64}) {
    SCOPED_TRACE(v1::DataType_Name(type));
    ComputeAttentionRequest request = SmallRequest();
    *request.mutable_mask() = RandomTensor(type, {3, 5}, 4);
    ExpectKernelAnswer(request);
  }
}

TEST_P(ComputeTest, MasksOfBits) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{3, 5}, {5}, {1, 2, 3, 5}, {3, 4}}) {
    ComputeAttentionRequest request = SmallRequest();
    *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, shape, 4);
    const v1::ComputeAttentionResponse wanted = KernelAnswer(request);
    *request.mutable_mask() = Packed(request.mask());
    EXPECT_TRUE(Compute(request).output().data() == wanted.output().data());
  }
}

TEST_P(ComputeTest, IndicesAndSinksOfRows) {
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_sinks() = RandomTensor(v1::DATA_TYPE_FLOAT16, {1, 2, 3}, 4);
  request.mutable_options()->set_return_log_sum_exp(true);
  ExpectKernelAnswer(request);
  *request.mutable_indices() = RandomTensor(v1::DATA_TYPE_INT64, {1, 3, 4}, 5);
  ExpectKernelAnswer(request);
  *request.mutable_indices() =
      RandomTensor(v1::DATA_TYPE_INT32, {1, 2, 3, 4}, 6);
  ExpectKernelAnswer(request);
}

TEST_P(ComputeTest, EveryOutput) {
  for (v1::Scores scores : {v1::SCORES_RAW, v1::SCORES_CAPPED,
                            v1::SCORES_BIASED, v1::SCORES_WEIGHTS}) {
    SCOPED_TRACE(v1::Scores_Name(scores));
    ComputeAttentionRequest request = SmallRequest();
    *request.mutable_past_key() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 2, 4}, 5);
    *request.mutable_past_value() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 2, 2}, 6);
    v1::AttentionOptions* options = request.mutable_options();
    options->set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    options->set_softcap(2);
    options->set_return_log_sum_exp(true);
    options->set_return_scores(scores);
    options->set_return_present(true);
    ExpectKernelAnswer(request);
  }
}

TEST_P(ComputeTest, Ragged) {
  ComputeAttentionRequest request;
  *request.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {6, 2, 4}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {9, 1, 4}, 2);
  *request.mutable_value() = RandomTensor(v1::DATA_TYPE_FLOAT32, {9, 1, 3}, 3);
  for (int64_t start : {0, 2, 2, 6}) request.add_query_starts(start);
  for (int64_t start : {0, 4, 5, 9}) request.add_key_starts(start);
  request.mutable_options()->set_layout(v1::LAYOUT_RAGGED);
  ExpectKernelAnswer(request);
}

TEST_P(ComputeTest, EmptyQuery) {
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 0, 4}, 1);
  const ComputeAttentionResponse response = Compute(request);
  EXPECT_EQ(response.output().data(), "");
  const auto& shape = response.output().shape();
  EXPECT_EQ(std::vector<int64_t>(shape.begin(), shape.end()),
            (std::vector<int64_t>{1, 2, 0, 2}));
}

TEST_P(ComputeTest, NoKeysGiveZeros) {
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 0, 4}, 1);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 0, 2}, 1);
  EXPECT_EQ(FloatsOf(Compute(request).output()), std::vector<float>(12, 0));
}

// Too large to be answered on gRPC's thread, by bytes and by work.
TEST_P(ComputeTest, LargeRequests) {
  ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 4, 130, 64}, 1);
  *request.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 2, 300, 64}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2, 2, 300, 48}, 3);
  ExpectKernelAnswer(request);
  EXPECT_GT(Compute(request).timing().compute_us(), 0);
  ExpectKernelAnswer(LongRequest(2000));
}

TEST_P(ComputeTest, ConcurrentCallsGetTheirOwnAnswers) {
  constexpr int kThreads = 8;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 10; ++i) {
        // From sizes that are answered at once to those that are queued.
        const int64_t length = 1 + 37 * (t + i) % 200;
        ComputeAttentionRequest request;
        *request.mutable_query() =
            RandomTensor(v1::DATA_TYPE_FLOAT32, {2, length, 64}, t);
        *request.mutable_key() =
            RandomTensor(v1::DATA_TYPE_FLOAT32, {2, length, 64}, i);
        *request.mutable_value() = request.key();
        request.mutable_options()->set_query_heads(2);
        request.mutable_options()->set_kv_heads(2);
        ExpectKernelAnswer(request);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(ComputeTest, Capabilities) {
  grpc::ClientContext context;
  v1::GetCapabilitiesResponse response;
  ASSERT_TRUE(
      stub_->GetCapabilities(&context, v1::GetCapabilitiesRequest(), &response)
          .ok());
  const server::Options options = TestServer::DefaultOptions();
  EXPECT_FALSE(response.version().empty());
  EXPECT_EQ(response.simd_target(), std::string(SimdTarget()));
  EXPECT_EQ(response.threads(), options.threads);
  EXPECT_EQ(response.data_types_size(), 4);
  EXPECT_EQ(response.math_modes_size(), HasFastMath() ? 2 : 1);
  EXPECT_EQ(response.max_request_bytes(), options.max_request_bytes);
  EXPECT_EQ(response.max_response_bytes(), options.max_response_bytes);
  EXPECT_EQ(response.max_chunk_bytes(), options.max_chunk_bytes);
  EXPECT_EQ(response.key_block(), kKeyBlock);
  EXPECT_EQ(response.max_head_size(), options.max_head_size);
  EXPECT_EQ(response.max_heads(), options.max_heads);
  EXPECT_EQ(response.max_batch(), options.max_batch);
  EXPECT_EQ(response.max_batch_heads(), options.max_batch_heads);
  EXPECT_EQ(response.max_work(), options.max_work);
}

INSTANTIATE_TEST_SUITE_P(Transports, ComputeTest,
                         ::testing::Values(Transport::kLoopback,
                                           Transport::kInProcess),
                         [](const auto& info) {
                           return TransportName(info.param);
                         });

}  // namespace
}  // namespace attention::testing
