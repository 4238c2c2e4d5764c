// PlanAttention: what it accepts, and the sizes it tells.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/kernel/plan_views.h"
#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

TEST(PlanTest, ErrorFieldOfOtherStatusesIsEmpty) {
  EXPECT_EQ(ErrorField(absl::OkStatus()), "");
  EXPECT_EQ(ErrorField(absl::InternalError("query: broken")), "");
  const absl::Status status = FieldError("key.shape", "got nothing");
  EXPECT_EQ(status, FieldError("key.shape", "got nothing"));
  EXPECT_EQ(ErrorField(status), "key.shape");
  EXPECT_EQ(status.message(), "key.shape: got nothing");
}

TEST(PlanTest, TellsSpecsInEveryLayout) {
  Views views = Bhsd();
  views.options.return_log_sum_exp = true;
  AttentionPlan plan = views.Plan().value();
  EXPECT_EQ(plan.output.shape, Shape({2, 4, 3, 6}));
  EXPECT_EQ(plan.output.type, DataType::kFloat32);
  EXPECT_EQ(plan.log_sum_exp->shape, Shape({2, 4, 3}));
  EXPECT_EQ(plan.log_sum_exp->type, DataType::kFloat32);
  EXPECT_FALSE(plan.scores || plan.present_key || plan.present_value);

  views = Packed();
  views.options.return_log_sum_exp = true;
  plan = views.Plan().value();
  EXPECT_EQ(plan.output.shape, Shape({2, 3, 24}));
  EXPECT_EQ(plan.log_sum_exp->shape, Shape({2, 4, 3}));

  views = Ragged();
  views.options.return_log_sum_exp = true;
  plan = views.Plan().value();
  EXPECT_EQ(plan.output.shape, Shape({3, 4, 6}));
  EXPECT_EQ(plan.log_sum_exp->shape, Shape({3, 4}));

  views = Views();
  views.inputs.query = Floats({3, 8});
  views.inputs.key = Floats({5, 8});
  views.inputs.value = Floats({5, 6});
  views.options.return_log_sum_exp = true;
  views.options.return_scores = Scores::kWeights;
  plan = views.Plan().value();
  EXPECT_EQ(plan.output.shape, Shape({3, 6}));
  EXPECT_EQ(plan.log_sum_exp->shape, Shape({3}));
  EXPECT_EQ(plan.scores->shape, Shape({1, 1, 3, 5}));

  views = Bhsd();
  views.options.layout = Layout::kBSHD;
  views.inputs.query.shape = {2, 3, 4, 8};
  views.inputs.key.shape = {2, 5, 2, 8};
  views.inputs.value.shape = {2, 5, 2, 6};
  EXPECT_EQ(views.Plan()->output.shape, Shape({2, 3, 4, 6}));
}

TEST(PlanTest, TellsPresentAndScores) {
  Views views = WithPast();
  views.inputs.value.type = DataType::kFloat16;
  views.inputs.past_value->type = DataType::kFloat16;
  views.options.return_present = true;
  views.options.return_scores = Scores::kBiased;
  const AttentionPlan plan = views.Plan().value();
  EXPECT_EQ(plan.present_key->shape, Shape({2, 2, 12, 8}));
  EXPECT_EQ(plan.present_key->type, DataType::kFloat32);
  EXPECT_EQ(plan.present_value->shape, Shape({2, 2, 12, 6}));
  EXPECT_EQ(plan.present_value->type, DataType::kFloat16);
  EXPECT_EQ(plan.scores->shape, Shape({2, 4, 3, 12}));
  EXPECT_EQ(plan.scores->type, DataType::kFloat32);
}

// The log-sum-exp has the precision of the computation.
TEST(PlanTest, LogSumExpIsDoubleWhereTheComputationIs) {
  Views views = Bhsd();
  views.options.return_log_sum_exp = true;
  views.inputs.query.type = views.inputs.key.type = DataType::kFloat16;
  EXPECT_EQ(views.Plan()->log_sum_exp->type, DataType::kFloat32);
  views.options.softmax_precision = DataType::kFloat64;
  EXPECT_EQ(views.Plan()->log_sum_exp->type, DataType::kFloat64);
  EXPECT_EQ(views.Plan()->output.type, DataType::kFloat16);
  views.options.softmax_precision.reset();
  views.inputs.value.type = DataType::kFloat64;
  EXPECT_EQ(views.Plan()->log_sum_exp->type, DataType::kFloat64);
}

TEST(PlanTest, CountsVisiblePairs) {
  Views views = Bhsd();
  const double pair = 2 * (8 + 6) * 4;  // of all heads
  EXPECT_EQ(views.Plan()->flops, 2 * 15 * pair);
  views.options.causal = Causal::kTopLeft;
  EXPECT_EQ(views.Plan()->flops, 2 * (1 + 2 + 3) * pair);
  views.options.causal = Causal::kBottomRight;
  EXPECT_EQ(views.Plan()->flops, 2 * (3 + 4 + 5) * pair);
  views.options.window_left = 0;
  EXPECT_EQ(views.Plan()->flops, 2 * 3 * pair);
  views.valid_lengths = {5, 1};  // offsets 2 and -2: rows 0 and 1 see nothing
  EXPECT_EQ(views.Plan()->flops, (3 + 1) * pair);
}

TEST(PlanTest, AcceptsZeroSizes) {
  for (int axis : {0, 2}) {
    Views views = Bhsd();
    views.inputs.query.shape[axis] = 0;
    if (axis == 0) {
      views.inputs.key.shape[0] = views.inputs.value.shape[0] = 0;
    }
    EXPECT_EQ(views.Plan()->output.num_elements(), 0);
  }
  Views views = Bhsd();
  views.inputs.key.shape[2] = views.inputs.value.shape[2] = 0;
  EXPECT_EQ(views.Plan()->output.num_elements(), 2 * 4 * 3 * 6);
  EXPECT_EQ(views.Plan()->flops, 0);
  views = Ragged();
  views.inputs.query.shape[0] = views.inputs.key.shape[0] =
      views.inputs.value.shape[0] = 0;
  views.query_starts = views.key_starts = {0};
  EXPECT_EQ(views.Plan()->output.num_elements(), 0);
}

TEST(PlanTest, AcceptsAnyLongWindow) {
  Views views = Bhsd();
  views.options.window_left = std::numeric_limits<int64_t>::max();
  views.options.window_right = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(views.Plan()->flops, Bhsd().Plan()->flops);
}

// A mask's bytes are checked where they stand, padding between rows left alone.
TEST(PlanTest, ReadsBoolsThroughStrides) {
  Views views = WithMask(DataType::kBool, {3, 5});
  views.inputs.mask->strides = {8, 1};
  views.bools.assign(24, 77);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 5; ++j) views.bools[8 * i + j] = 1;
  }
  views.inputs.mask->data = views.bools.data();
  EXPECT_TRUE(views.Plan().ok());
  views.bools[8 + 3] = 3;
  EXPECT_EQ(views.Plan().status().message(),
            "mask.data: got byte 3 at element 8, wanted 0 or 1");
}

TEST(PlanTest, MatrixIsRefusedNothingByHugeLengthsAlone) {
  Views views;
  views.inputs.query = Floats({int64_t{1} << 40, 1});
  views.inputs.key = Floats({1, 1});
  views.inputs.value = Floats({1, 1});
  views.options.causal = Causal::kTopLeft;
  EXPECT_EQ(views.Plan()->output.num_elements(), int64_t{1} << 40);
  EXPECT_EQ(views.Plan()->flops, std::exp2(40) * 4);
}

int64_t RandomSize(Random& random) {
  switch (random.Integer(0, 9)) {
    case 0:
      return random.Integer(-2, 0);
    case 1:
      return int64_t{1} << random.Integer(0, 62);
    default:
      return random.Integer(1, 4);
  }
}

Shape RandomShape(Random& random, int64_t rank) {
  Shape shape;
  for (int64_t axis = 0; axis < rank; ++axis) {
    shape.push_back(RandomSize(random));
  }
  return shape;
}

// A request that is often nearly right.
Views RandomViews(Random& random) {
  Views views = random.Pick<std::function<Views()>>(
      {Bhsd, Packed, Ragged, WithPast,
       [] { return WithMask(DataType::kInt8, {4, 3, 5}); }})();
  AttentionInputs& in = views.inputs;
  std::vector<ConstTensorView*> tensors = {&in.query, &in.key, &in.value};
  if (in.mask) tensors.push_back(&*in.mask);
  if (in.past_key) tensors.push_back(&*in.past_key);
  if (in.past_value) tensors.push_back(&*in.past_value);
  for (int64_t n = random.Integer(0, 3); n > 0; --n) {
    ConstTensorView* const tensor = random.Pick(tensors);
    const auto rank = static_cast<int64_t>(tensor->shape.size());
    switch (random.Integer(0, 3)) {
      case 0:
        *tensor = View(static_cast<DataType>(random.Integer(0, 7)),
                       RandomShape(random, random.Integer(0, 5)));
        break;
      case 1:
        tensor->strides = RandomShape(random, rank);
        break;
      default:
        if (rank > 0) {
          tensor->shape[random.Integer(0, rank - 1)] = RandomSize(random);
        }
    }
  }
  // No data stands behind the views, so no bools can be checked.
  if (in.mask && in.mask->type == DataType::kBool) {
    in.mask->type = DataType::kInt8;
  }
  const auto maybe = [&](auto set) {
    if (random.Chance(0.07)) set();
  };
  AttentionOptions& o = views.options;
  maybe([&] { o.layout = static_cast<Layout>(random.Integer(0, 5)); });
  maybe([&] { o.query_heads = RandomSize(random); });
  maybe([&] { o.kv_heads = RandomSize(random); });
  maybe([&] { o.scale = random.Pick<double>({0, -1, 1e300, NAN, INFINITY}); });
  maybe([&] { o.softcap = random.Pick<double>({1, -1, 1e300, NAN}); });
  maybe([&] { o.causal = static_cast<Causal>(random.Integer(0, 2)); });
  maybe([&] { o.window_left = RandomSize(random); });
  maybe([&] { o.window_right = RandomSize(random); });
  maybe([&] { o.alibi_slopes.assign(random.Integer(0, 5), 0.5); });
  maybe([&] { o.sinks.assign(random.Integer(0, 5), -1); });
  maybe([&] {
    o.softmax_precision = static_cast<DataType>(random.Integer(0, 7));
  });
  maybe([&] { o.return_scores = static_cast<Scores>(random.Integer(0, 4)); });
  o.return_log_sum_exp = random.Chance(0.5);
  maybe([&] { o.return_present = true; });
  maybe([&] { views.valid_lengths = {RandomSize(random), 2}; });
  maybe([&] { views.query_starts = {0, RandomSize(random), 3}; });
  maybe([&] { views.key_starts = {0, RandomSize(random)}; });
  return views;
}

// The elements the four-axis tensor (b, heads, length, size) has.
int64_t Product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    EXPECT_FALSE(__builtin_mul_overflow(product, size, &product));
  }
  return product;
}

void ExpectSpecs(const Views& views, const AttentionPlan& plan) {
  const Shape& q = views.inputs.query.shape;
  const Shape& k = views.inputs.key.shape;
  const Shape& v = views.inputs.value.shape;
  const AttentionOptions& o = views.options;
  Layout layout = o.layout;
  if (layout == Layout::kByRank) {
    layout = q.size() == 2   ? Layout::kMatrix
             : q.size() == 3 ? Layout::kPacked
                             : Layout::kBHSD;
  }
  int64_t rows = 0;  // b, h, i
  int64_t value_size = v.back();
  switch (layout) {
    case Layout::kMatrix:
      rows = q[0];
      break;
    case Layout::kPacked:
      rows = Product({q[0], q[1], o.query_heads});
      value_size = v[2] / o.kv_heads;
      break;
    case Layout::kRagged:
      rows = Product({q[0], q[1]});
      break;
    default:
      rows = Product({q[0], q[1], q[2]});
  }
  EXPECT_EQ(plan.output.num_elements(), Product({rows, value_size}));
  EXPECT_EQ(plan.log_sum_exp.has_value(), o.return_log_sum_exp);
  if (plan.log_sum_exp) {
    EXPECT_EQ(plan.log_sum_exp->num_elements(), rows);
  }
  const int64_t past =
      views.inputs.past_key ? views.inputs.past_key->shape[2] : 0;
  const int64_t keys = past + (layout == Layout::kMatrix ? k[0]
                               : layout == Layout::kBHSD ? k[2]
                                                         : k[1]);
  EXPECT_EQ(plan.scores.has_value(), o.return_scores != Scores::kNone);
  if (plan.scores) {
    EXPECT_EQ(plan.scores->num_elements(), Product({rows, keys}));
  }
  EXPECT_EQ(plan.present_key.has_value(), o.return_present);
  EXPECT_EQ(plan.present_value.has_value(), o.return_present);
  EXPECT_GE(plan.flops, 0);
}

TEST(PlanTest, RefusesOrPlansAnything) {
  Random random(20240601);
  int planned = 0;
  constexpr int kRounds = 100000;
  for (int round = 0; round < kRounds; ++round) {
    Views views = RandomViews(random);
    const absl::StatusOr<AttentionPlan> plan = views.Plan();
    SCOPED_TRACE(round);
    if (plan.ok()) {
      ++planned;
      ExpectSpecs(views, *plan);
    } else {
      ASSERT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
      ASSERT_NE(ErrorField(plan.status()), "");
      ASSERT_EQ(plan.status().message().substr(
                    0, ErrorField(plan.status()).size() + 2),
                ErrorField(plan.status()) + ": ");
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(planned, kRounds / 10);
  EXPECT_LT(planned, kRounds / 2);
}

}  // namespace
}  // namespace attention::test
