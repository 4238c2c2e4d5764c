#include "client/cpp/cli/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/fake_service.h"

namespace attention::cli {
namespace {

using ::testing::ElementsAre;

void Fill(const std::vector<int64_t>& shape, double first, v1::Tensor& tensor) {
  std::vector<float> values(ElementCount(shape).value());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(first + static_cast<double>(i));
  }
  tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  tensor.set_data(values.data(), values.size() * sizeof(float));
}

// B = 2, Hq = 2, S = 2, T = 1, Dv = 2. Element i of a tensor is i, scores add
// 100 times their stage and 1000 times the scale.
class ExplainTest : public ::testing::Test {
 protected:
  ExplainTest()
      : service_([](auto&, const auto& request, auto& response) {
          const v1::AttentionOptions& options = request.options();
          const auto& shape = request.query().shape();
          Fill({shape.begin(), shape.end()}, 0, *response.mutable_output());
          Fill({2, 2, 2, 1},
               100 * options.return_scores() + 1000 * options.scale(),
               *response.mutable_scores());
          return grpc::Status::OK;
        }) {}

  ComputeRequest Request(std::vector<int64_t> shape) {
    ComputeRequest request;
    request.query = TensorSpan::Of<float>(query_, std::move(shape));
    request.options.set_return_scores(v1::SCORES_WEIGHTS);
    return request;
  }

  Explanation Explained(const ComputeRequest& request, int64_t batch,
                        int64_t head) {
    const Client client(service_.address());
    const auto result = client.Compute(request);
    EXPECT_TRUE(result.ok()) << result.status();
    const auto explanation = Explain(client, request, *result, {}, batch, head);
    EXPECT_TRUE(explanation.ok()) << explanation.status();
    return *explanation;
  }

  // The stages asked for, in order.
  std::vector<v1::Scores> Stages() {
    std::vector<v1::Scores> stages;
    for (const auto& request : service_.requests()) {
      stages.push_back(request.options().return_scores());
    }
    return stages;
  }

  FakeService service_;
  const std::vector<float> query_ = std::vector<float>(16);
};

TEST_F(ExplainTest, AsksForUnscaledSimilarities) {
  const Explanation explanation = Explained(Request({2, 2, 2, 2}), 1, 0);
  EXPECT_THAT(Stages(),
              ElementsAre(v1::SCORES_WEIGHTS, v1::SCORES_RAW, v1::SCORES_RAW));
  EXPECT_EQ(service_.requests()[1].options().scale(), 1);
  EXPECT_FALSE(service_.requests()[2].options().has_scale());
  EXPECT_THAT(explanation.similarity.values, ElementsAre(1104, 1105));
  EXPECT_THAT(explanation.scaled.values, ElementsAre(104, 105));
  EXPECT_THAT(explanation.weights.values, ElementsAre(404, 405));
  EXPECT_THAT(explanation.output.values, ElementsAre(8, 9, 10, 11));
  EXPECT_FALSE(explanation.capped);
  EXPECT_FALSE(explanation.biased);
  EXPECT_EQ(explanation.head_size, 2);
  EXPECT_TRUE(explanation.default_scale);
  EXPECT_NEAR(explanation.scale, 0.70710678, 1e-8);
  EXPECT_FALSE(explanation.has_sink);
}

TEST_F(ExplainTest, ShowsCapAndBiasWhereThereAre) {
  ComputeRequest request = Request({2, 2, 2, 2});
  request.options.set_scale(3);
  request.options.set_softcap(20);
  request.options.add_sinks(1);
  request.options.set_causal(v1::CAUSAL_TOP_LEFT);
  const Explanation explanation = Explained(request, 0, 1);
  EXPECT_THAT(Stages(),
              ElementsAre(v1::SCORES_WEIGHTS, v1::SCORES_RAW, v1::SCORES_RAW,
                          v1::SCORES_CAPPED, v1::SCORES_BIASED));
  EXPECT_EQ(explanation.scale, 3);
  EXPECT_TRUE(explanation.has_sink);
  EXPECT_FALSE(explanation.default_scale);
  EXPECT_THAT(explanation.similarity.values, ElementsAre(1102, 1103));
  EXPECT_THAT(explanation.scaled.values, ElementsAre(3102, 3103));
  EXPECT_THAT(explanation.capped->values, ElementsAre(3202, 3203));
  EXPECT_THAT(explanation.biased->values, ElementsAre(3302, 3303));
}

TEST_F(ExplainTest, ShowsEveryKindOfBias) {
  const ComputeRequest plain = Request({2, 2, 2, 2});
  std::vector<ComputeRequest> biased(5, plain);
  biased[0].mask = plain.query;
  biased[1].valid_lengths = {1, 1};
  biased[2].options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
  biased[3].options.mutable_window()->set_left(1);
  biased[4].options.add_alibi_slopes(0.5);
  for (const ComputeRequest& request : biased) {
    EXPECT_TRUE(Explained(request, 0, 0).biased);
  }
}

TEST_F(ExplainTest, FindsTheHeadsOutputInEveryLayout) {
  ComputeRequest request = Request({2, 2, 4});
  EXPECT_THAT(Explained(request, 1, 1).output.values,
              ElementsAre(10, 11, 14, 15));
  request.options.set_layout(v1::LAYOUT_PACKED);
  EXPECT_THAT(Explained(request, 1, 1).output.values,
              ElementsAre(10, 11, 14, 15));
  request = Request({2, 2, 2, 2});
  request.options.set_layout(v1::LAYOUT_BSHD);
  EXPECT_THAT(Explained(request, 0, 1).output.values, ElementsAre(2, 3, 6, 7));
  request.options.set_layout(v1::LAYOUT_BHSD);
  EXPECT_THAT(Explained(request, 0, 1).output.values, ElementsAre(4, 5, 6, 7));
}

TEST_F(ExplainTest, ChecksTheChoice) {
  const Client client(service_.address());
  const auto result = client.Compute(Request({2, 2, 2, 2}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(CheckChoice(*result, 1, 1).ok());
  EXPECT_EQ(CheckChoice(*result, 2, 0).message(),
            "--batch: got 2, wanted 0 to 1");
  EXPECT_EQ(CheckChoice(*result, 0, -1).message(),
            "--head: got -1, wanted 0 to 1");
}

TEST_F(ExplainTest, MissingScoresAreMalformed) {
  FakeService service([](auto&, const auto&, auto& response) {
    Fill({1}, 0, *response.mutable_output());
    return grpc::Status::OK;
  });
  const Client client(service.address());
  const auto result = client.Compute(Request({1, 16}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(CheckChoice(*result, 0, 0).ok());
  EXPECT_EQ(
      Explain(client, Request({1, 16}), *result, {}, 0, 0).status().code(),
      absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace attention::cli
