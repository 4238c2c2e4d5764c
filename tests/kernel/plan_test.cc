// PlanAttention: what it accepts, the sizes it tells, and every error it gives.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernel/attention.h"
#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int64_t kHuge = int64_t{1} << 62;

// A request of views alone: memory that no check may read is not there.
struct Views {
  AttentionInputs inputs;
  AttentionOptions options;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  std::vector<uint8_t> bools;

  absl::StatusOr<AttentionPlan> Plan() {
    inputs.valid_lengths = valid_lengths;
    inputs.query_starts = query_starts;
    inputs.key_starts = key_starts;
    return PlanAttention(inputs, options);
  }
};

ConstTensorView View(DataType type, Shape shape) {
  return {type, std::move(shape), {}, nullptr};
}

ConstTensorView Floats(Shape shape) {
  return View(DataType::kFloat32, std::move(shape));
}

// B 2, Hq 4, Hkv 2, S 3, L 5, D 8, Dv 6.
Views Bhsd() {
  Views views;
  views.inputs.query = Floats({2, 4, 3, 8});
  views.inputs.key = Floats({2, 2, 5, 8});
  views.inputs.value = Floats({2, 2, 5, 6});
  return views;
}

Views Packed() {
  Views views;
  views.inputs.query = Floats({2, 3, 32});
  views.inputs.key = Floats({2, 5, 16});
  views.inputs.value = Floats({2, 5, 12});
  views.options.query_heads = 4;
  views.options.kv_heads = 2;
  return views;
}

Views Ragged() {
  Views views;
  views.options.layout = Layout::kRagged;
  views.inputs.query = Floats({3, 4, 8});
  views.inputs.key = Floats({5, 2, 8});
  views.inputs.value = Floats({5, 2, 6});
  views.query_starts = {0, 1, 3};
  views.key_starts = {0, 5, 5};
  return views;
}

Views WithPast() {
  Views views = Bhsd();
  views.inputs.past_key = Floats({2, 2, 7, 8});
  views.inputs.past_value = Floats({2, 2, 7, 6});
  return views;
}

Views WithMask(DataType type, Shape shape) {
  Views views = Bhsd();
  views.inputs.mask = View(type, std::move(shape));
  return views;
}

struct Bad {
  std::string name;
  std::function<Views()> base;
  std::function<void(Views&)> damage;
  std::string field;
  std::string description;
};

// Names of parameters in test output.
std::ostream& operator<<(std::ostream& out, const Bad& bad) {
  return out << bad.name;
}

class BadRequestTest : public ::testing::TestWithParam<Bad> {};

TEST_P(BadRequestTest, IsRefusedByField) {
  const Bad& bad = GetParam();
  Views views = bad.base();
  ASSERT_TRUE(views.Plan().ok()) << views.Plan().status();
  bad.damage(views);
  const absl::Status status = views.Plan().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorField(status), bad.field);
  EXPECT_EQ(status.message(), bad.field + ": " + bad.description);
}

std::vector<Bad> BadTypes() {
  const std::string floats = "wanted FLOAT32, FLOAT16, BFLOAT16 or FLOAT64";
  return {
      {"query_type", Bhsd,
       [](Views& v) { v.inputs.query.type = DataType::kInt8; },
       "query.data_type", "got INT8, " + floats},
      {"value_type", Bhsd,
       [](Views& v) { v.inputs.value.type = DataType::kBool; },
       "value.data_type", "got BOOL, " + floats},
      {"key_type", Bhsd,
       [](Views& v) { v.inputs.key.type = DataType::kFloat16; },
       "key.data_type", "got FLOAT16, wanted query's FLOAT32"},
      {"past_key_type", WithPast,
       [](Views& v) { v.inputs.past_key->type = DataType::kFloat64; },
       "past_key.data_type", "got FLOAT64, wanted key's FLOAT32"},
      {"past_value_type", WithPast,
       [](Views& v) { v.inputs.past_value->type = DataType::kBFloat16; },
       "past_value.data_type", "got BFLOAT16, wanted value's FLOAT32"},
      {"precision", Bhsd,
       [](Views& v) { v.options.softmax_precision = DataType::kInt64; },
       "options.softmax_precision", "got INT64, " + floats},
  };
}

std::vector<Bad> BadShapes() {
  return {
      {"rank_0", Bhsd, [](Views& v) { v.inputs.query.shape = {}; },
       "query.shape", "got (), wanted 2, 3 or 4 dimensions"},
      {"rank_1", Bhsd, [](Views& v) { v.inputs.query.shape = {8}; },
       "query.shape", "got (8), wanted 2, 3 or 4 dimensions"},
      {"rank_5", Bhsd, [](Views& v) { v.inputs.query.shape = {1, 1, 1, 1, 1}; },
       "query.shape", "got (1, 1, 1, 1, 1), wanted 2, 3 or 4 dimensions"},
      {"matrix_rank", Bhsd,
       [](Views& v) { v.options.layout = Layout::kMatrix; }, "query.shape",
       "got (2, 4, 3, 8), wanted 2 dimensions (length, head size) in layout "
       "MATRIX"},
      {"packed_rank", Bhsd,
       [](Views& v) { v.options.layout = Layout::kPacked; }, "query.shape",
       "got (2, 4, 3, 8), wanted 3 dimensions (batch, length, heads * head "
       "size) in layout PACKED"},
      {"ragged_rank", Bhsd,
       [](Views& v) { v.options.layout = Layout::kRagged; }, "query.shape",
       "got (2, 4, 3, 8), wanted 3 dimensions (sum of lengths, heads, head "
       "size) in layout RAGGED"},
      {"bhsd_rank", Packed, [](Views& v) { v.options.layout = Layout::kBHSD; },
       "query.shape",
       "got (2, 3, 32), wanted 4 dimensions (batch, heads, length, head size) "
       "in layout BHSD"},
      {"bshd_rank", Packed, [](Views& v) { v.options.layout = Layout::kBSHD; },
       "query.shape",
       "got (2, 3, 32), wanted 4 dimensions (batch, length, heads, head size) "
       "in layout BSHD"},
      {"key_rank", Bhsd, [](Views& v) { v.inputs.key.shape = {5, 8}; },
       "key.shape",
       "got (5, 8), wanted 4 dimensions (batch, heads, length, head size) in "
       "layout BHSD"},
      {"value_rank", Bhsd, [](Views& v) { v.inputs.value.shape = {2, 5, 6}; },
       "value.shape",
       "got (2, 5, 6), wanted 4 dimensions (batch, heads, length, head size) "
       "in layout BHSD"},
      {"negative_query", Bhsd, [](Views& v) { v.inputs.query.shape[2] = -3; },
       "query.shape", "got (2, 4, -3, 8), wanted no negative dimension"},
      {"negative_key", Bhsd, [](Views& v) { v.inputs.key.shape[0] = -1; },
       "key.shape", "got (-1, 2, 5, 8), wanted no negative dimension"},
      {"negative_value", Bhsd, [](Views& v) { v.inputs.value.shape[3] = -6; },
       "value.shape", "got (2, 2, 5, -6), wanted no negative dimension"},
      {"query_size", Bhsd, [](Views& v) { v.inputs.query.shape[3] = 0; },
       "query.shape", "got (2, 4, 3, 0), wanted a head size of at least 1"},
      {"value_size", Bhsd, [](Views& v) { v.inputs.value.shape[3] = 0; },
       "value.shape", "got (2, 2, 5, 0), wanted a head size of at least 1"},
      {"query_heads", Bhsd, [](Views& v) { v.inputs.query.shape[1] = 0; },
       "query.shape", "got (2, 0, 3, 8), wanted at least 1 head"},
      {"key_heads", Bhsd, [](Views& v) { v.inputs.key.shape[1] = 0; },
       "key.shape", "got (2, 0, 5, 8), wanted at least 1 head"},
      {"key_size", Bhsd, [](Views& v) { v.inputs.key.shape[3] = 9; },
       "key.shape", "got (2, 2, 5, 9), wanted query's head size 8"},
      {"key_batch", Bhsd, [](Views& v) { v.inputs.key.shape[0] = 1; },
       "key.shape", "got (1, 2, 5, 8), wanted query's batch size 2"},
      {"value_batch", Bhsd, [](Views& v) { v.inputs.value.shape[0] = 3; },
       "value.shape", "got (3, 2, 5, 6), wanted query's batch size 2"},
      {"value_heads", Bhsd, [](Views& v) { v.inputs.value.shape[1] = 4; },
       "value.shape", "got (2, 4, 5, 6), wanted key's 2 heads"},
      {"value_length", Bhsd, [](Views& v) { v.inputs.value.shape[2] = 4; },
       "value.shape", "got (2, 2, 4, 6), wanted key's length 5"},
      {"group", Bhsd, [](Views& v) { v.inputs.query.shape[1] = 5; },
       "key.shape",
       "got (2, 2, 5, 8), wanted a number of heads that divides query's 5"},
      {"stated_query_heads", Bhsd, [](Views& v) { v.options.query_heads = 2; },
       "options.query_heads", "got 2, wanted 0 or the shape's 4"},
      {"stated_kv_heads", Bhsd, [](Views& v) { v.options.kv_heads = -2; },
       "options.kv_heads", "got -2, wanted 0 or the shape's 2"},
      {"packed_query_heads", Packed,
       [](Views& v) { v.options.query_heads = 0; }, "options.query_heads",
       "got 0, wanted at least 1 with layout PACKED"},
      {"packed_kv_heads", Packed, [](Views& v) { v.options.kv_heads = -1; },
       "options.kv_heads", "got -1, wanted at least 1 with layout PACKED"},
      {"packed_query_columns", Packed,
       [](Views& v) { v.inputs.query.shape[2] = 33; }, "query.shape",
       "got (2, 3, 33), wanted a last dimension that options.query_heads 4 "
       "divides"},
      {"packed_key_columns", Packed,
       [](Views& v) { v.inputs.key.shape[2] = 17; }, "key.shape",
       "got (2, 5, 17), wanted a last dimension that options.kv_heads 2 "
       "divides"},
      {"packed_value_columns", Packed,
       [](Views& v) { v.inputs.value.shape[2] = 13; }, "value.shape",
       "got (2, 5, 13), wanted a last dimension that options.kv_heads 2 "
       "divides"},
      {"packed_key_size", Packed, [](Views& v) { v.inputs.key.shape[2] = 18; },
       "key.shape", "got (2, 5, 18), wanted query's head size 8"},
      {"packed_group", Packed,
       [](Views& v) {
         v.inputs.key.shape[2] = 24;
         v.inputs.value.shape[2] = 18;
         v.options.kv_heads = 3;
       },
       "options.kv_heads", "got 3, wanted a divisor of query_heads 4"},
      {"stride_count", Bhsd, [](Views& v) { v.inputs.query.strides = {8, 1}; },
       "query.strides",
       "got (8, 1), wanted one an axis, none negative, the last 1"},
      {"last_stride", Bhsd,
       [](Views& v) { v.inputs.key.strides = {80, 40, 8, 2}; }, "key.strides",
       "got (80, 40, 8, 2), wanted one an axis, none negative, the last 1"},
      {"negative_stride", Bhsd,
       [](Views& v) { v.inputs.value.strides = {60, 30, -6, 1}; },
       "value.strides",
       "got (60, 30, -6, 1), wanted one an axis, none negative, the last 1"},
  };
}

// Sizes whose products or sums overflow.
std::vector<Bad> HugeShapes() {
  return {
      {"huge_query", Bhsd,
       [](Views& v) { v.inputs.query.shape = {kHuge, 4, 3, 8}; }, "query.shape",
       "got (4611686018427387904, 4, 3, 8), wanted fewer than 2^60 elements"},
      {"huge_times_zero", Bhsd,
       [](Views& v) { v.inputs.key.shape = {kHuge, kHuge, 0, 8}; }, "key.shape",
       "got (4611686018427387904, 4611686018427387904, 0, 8), wanted fewer "
       "than 2^60 elements"},
      {"huge_value", Bhsd,
       [](Views& v) { v.inputs.value.shape[3] = int64_t{1} << 58; },
       "value.shape",
       "got (2, 2, 5, 288230376151711744), wanted fewer than 2^60 elements"},
      {"huge_mask", [] { return WithMask(DataType::kInt8, {3, 5}); },
       [](Views& v) { v.inputs.mask->shape = {kHuge, kHuge}; }, "mask.shape",
       "got (4611686018427387904, 4611686018427387904), wanted fewer than 2^60 "
       "elements"},
      {"huge_past", WithPast,
       [](Views& v) { v.inputs.past_key->shape[2] = kHuge; }, "past_key.shape",
       "got (2, 2, 4611686018427387904, 8), wanted fewer than 2^60 elements"},
      {"huge_output",
       [] {
         Views v;
         v.inputs.query = Floats({1 << 20, 1});
         v.inputs.key = Floats({0, 1});
         v.inputs.value = Floats({0, 1});
         return v;
       },
       [](Views& v) {
         v.inputs.query.shape = {int64_t{1} << 40, 1};
         v.inputs.value.shape = {0, int64_t{1} << 40};
       },
       "value.shape",
       "got (1099511627776, 1099511627776), wanted fewer than 2^60 elements"},
      {"huge_scores",
       [] {
         Views v;
         v.inputs.query = Floats({1 << 20, 1});
         v.inputs.key = Floats({1 << 20, 1});
         v.inputs.value = Floats({1 << 20, 1});
         v.options.return_scores = Scores::kRaw;
         return v;
       },
       [](Views& v) {
         v.inputs.query.shape = {int64_t{1} << 40, 1};
         v.inputs.key.shape = {int64_t{1} << 40, 1};
         v.inputs.value.shape = {int64_t{1} << 40, 1};
       },
       "options.return_scores",
       "got (1, 1, 1099511627776, 1099511627776), wanted fewer than 2^60 "
       "elements"},
  };
}

std::vector<Bad> BadRagged() {
  const std::string not_ragged = "not with layout RAGGED";
  return {
      {"no_query_starts", Ragged, [](Views& v) { v.query_starts.clear(); },
       "query_starts", "missing, wanted with layout RAGGED"},
      {"no_key_starts", Ragged, [](Views& v) { v.key_starts.clear(); },
       "key_starts", "missing, wanted with layout RAGGED"},
      {"first_start", Ragged, [](Views& v) { v.query_starts[0] = 1; },
       "query_starts[0]", "got 1, wanted 0"},
      {"falling_starts", Ragged, [](Views& v) { v.key_starts = {0, 4, 3, 5}; },
       "key_starts[2]", "got 3, wanted at least the number before it, 4"},
      {"last_start", Ragged, [](Views& v) { v.query_starts[2] = 2; },
       "query_starts[2]", "got 2, wanted the sum of all lengths, 3"},
      {"last_key_start", Ragged, [](Views& v) { v.key_starts[2] = 6; },
       "key_starts[2]", "got 6, wanted the sum of all lengths, 5"},
      {"starts_count", Ragged, [](Views& v) { v.key_starts = {0, 5}; },
       "key_starts", "got 2 numbers, wanted as many as query_starts, 3"},
      {"ragged_mask", Ragged, [](Views& v) { v.inputs.mask = Floats({5}); },
       "mask", not_ragged},
      {"ragged_past_key", Ragged,
       [](Views& v) { v.inputs.past_key = Floats({2, 2, 7, 8}); }, "past_key",
       not_ragged},
      {"ragged_past_value", Ragged,
       [](Views& v) { v.inputs.past_value = Floats({2, 2, 7, 6}); },
       "past_value", not_ragged},
      {"ragged_valid", Ragged, [](Views& v) { v.valid_lengths = {1, 0}; },
       "valid_lengths", not_ragged},
      {"ragged_scores", Ragged,
       [](Views& v) { v.options.return_scores = Scores::kRaw; },
       "options.return_scores", not_ragged},
      {"ragged_present", Ragged,
       [](Views& v) { v.options.return_present = true; },
       "options.return_present", not_ragged},
      {"query_starts", Bhsd, [](Views& v) { v.query_starts = {0, 3}; },
       "query_starts", "only with layout RAGGED"},
      {"key_starts", Bhsd, [](Views& v) { v.key_starts = {0, 5}; },
       "key_starts", "only with layout RAGGED"},
  };
}

std::vector<Bad> BadLengths() {
  return {
      {"no_past_key", WithPast, [](Views& v) { v.inputs.past_key.reset(); },
       "past_key", "missing, wanted with past_value"},
      {"no_past_value", WithPast, [](Views& v) { v.inputs.past_value.reset(); },
       "past_value", "missing, wanted with past_key"},
      {"past_key_rank", WithPast,
       [](Views& v) { v.inputs.past_key->shape = {2, 7, 16}; },
       "past_key.shape",
       "got (2, 7, 16), wanted 4 dimensions (batch, kv heads, past length, "
       "head size)"},
      {"past_key_shape", WithPast,
       [](Views& v) { v.inputs.past_key->shape[1] = 4; }, "past_key.shape",
       "got (2, 4, 7, 8), wanted (2, 2, 7, 8)"},
      {"past_value_shape", WithPast,
       [](Views& v) { v.inputs.past_value->shape[3] = 8; }, "past_value.shape",
       "got (2, 2, 7, 8), wanted (2, 2, 7, 6)"},
      {"past_value_length", WithPast,
       [](Views& v) { v.inputs.past_value->shape[2] = 6; }, "past_value.shape",
       "got (2, 2, 6, 6), wanted past_key's length 7"},
      {"past_negative", WithPast,
       [](Views& v) { v.inputs.past_value->shape[2] = -1; }, "past_value.shape",
       "got (2, 2, -1, 6), wanted no negative dimension"},
      {"past_strides", WithPast,
       [](Views& v) { v.inputs.past_key->strides = {1}; }, "past_key.strides",
       "got (1), wanted one an axis, none negative, the last 1"},
      {"valid_and_past", WithPast, [](Views& v) { v.valid_lengths = {1, 1}; },
       "valid_lengths", "not with past_key and past_value"},
      {"valid_count", Bhsd, [](Views& v) { v.valid_lengths = {1}; },
       "valid_lengths", "got 1 numbers, wanted one a batch entry, 2"},
      {"valid_negative", Bhsd, [](Views& v) { v.valid_lengths = {5, -1}; },
       "valid_lengths[1]", "got -1, wanted 0 to the number of keys, 5"},
      {"valid_too_long", Bhsd, [](Views& v) { v.valid_lengths = {6, 0}; },
       "valid_lengths[0]", "got 6, wanted 0 to the number of keys, 5"},
  };
}

std::vector<Bad> BadNumbers() {
  const auto doubles = [] {
    Views v = Bhsd();
    v.options.softmax_precision = DataType::kFloat64;
    return v;
  };
  return {
      {"scale_nan", Bhsd, [](Views& v) { v.options.scale = NAN; },
       "options.scale", "got nan, wanted a finite FLOAT32"},
      {"scale_infinite", Bhsd, [](Views& v) { v.options.scale = -kInf; },
       "options.scale", "got -inf, wanted a finite FLOAT32"},
      {"scale_too_large", Bhsd, [](Views& v) { v.options.scale = 1e39; },
       "options.scale", "got 1e+39, wanted a finite FLOAT32"},
      {"scale_double", doubles, [](Views& v) { v.options.scale = kInf; },
       "options.scale", "got inf, wanted a finite FLOAT64"},
      {"softcap_negative", Bhsd, [](Views& v) { v.options.softcap = -1; },
       "options.softcap", "got -1, wanted a finite FLOAT32 of at least 0"},
      {"softcap_nan", Bhsd, [](Views& v) { v.options.softcap = NAN; },
       "options.softcap", "got nan, wanted a finite FLOAT32 of at least 0"},
      {"softcap_infinite", doubles, [](Views& v) { v.options.softcap = kInf; },
       "options.softcap", "got inf, wanted a finite FLOAT64 of at least 0"},
      {"window_left", Bhsd, [](Views& v) { v.options.window_left = -2; },
       "options.window.left", "got -2, wanted at least -1"},
      {"window_right", Bhsd,
       [](Views& v) {
         v.options.window_right = std::numeric_limits<int64_t>::min();
       },
       "options.window.right", "got -9223372036854775808, wanted at least -1"},
      {"alibi_count", Bhsd, [](Views& v) { v.options.alibi_slopes = {1, 2}; },
       "options.alibi_slopes", "got 2 numbers, wanted one a query head, 4"},
      {"alibi_infinite", Bhsd,
       [](Views& v) { v.options.alibi_slopes = {1, 2, kInf, 4}; },
       "options.alibi_slopes[2]", "got inf, wanted a finite FLOAT32"},
      {"sinks_count", Bhsd, [](Views& v) { v.options.sinks = {1, 2, 3, 4, 5}; },
       "options.sinks", "got 5 numbers, wanted one a query head, 4"},
      {"sink_nan", Bhsd, [](Views& v) { v.options.sinks = {NAN, 0, 0, 0}; },
       "options.sinks[0]", "got nan, wanted a finite FLOAT32 or -inf"},
      {"sink_infinite", Bhsd,
       [](Views& v) { v.options.sinks = {-kInf, 0, 0, kInf}; },
       "options.sinks[3]", "got inf, wanted a finite FLOAT32 or -inf"},
  };
}

std::vector<Bad> BadMasks() {
  const auto bools = [] {
    Views v = WithMask(DataType::kBool, {3, 5});
    v.bools.assign(15, 1);
    v.inputs.mask->data = v.bools.data();
    return v;
  };
  const auto any = [] { return WithMask(DataType::kInt32, {5}); };
  return {
      {"mask_rank_0", any, [](Views& v) { v.inputs.mask->shape = {}; },
       "mask.shape", "got (), wanted 1 to 4 dimensions"},
      {"mask_rank_5", any,
       [](Views& v) { v.inputs.mask->shape = {1, 1, 1, 1, 5}; }, "mask.shape",
       "got (1, 1, 1, 1, 5), wanted 1 to 4 dimensions"},
      {"mask_negative", any, [](Views& v) { v.inputs.mask->shape = {-1, 5}; },
       "mask.shape", "got (-1, 5), wanted no negative dimension"},
      {"mask_strides", any, [](Views& v) { v.inputs.mask->strides = {2}; },
       "mask.strides",
       "got (2), wanted one an axis, none negative, the last 1"},
      {"mask_too_long", any, [](Views& v) { v.inputs.mask->shape = {6}; },
       "mask.shape",
       "got (6), wanted a last dimension of at most 5, the number of keys"},
      {"mask_last_1", any, [](Views& v) { v.inputs.mask->shape = {3, 1}; },
       "mask.shape",
       "got (3, 1), wanted a last dimension of 5: 1 could mean broadcast or "
       "padding"},
      {"mask_rows", any, [](Views& v) { v.inputs.mask->shape = {2, 5}; },
       "mask.shape",
       "got (2, 5), wanted a shape that broadcasts to (2, 4, 3, 5)"},
      {"mask_batch_for_heads", any,
       [](Views& v) { v.inputs.mask->shape = {2, 3, 5}; }, "mask.shape",
       "got (2, 3, 5), wanted a shape that broadcasts to (2, 4, 3, 5)"},
      {"mask_batch", any, [](Views& v) { v.inputs.mask->shape = {3, 1, 1, 5}; },
       "mask.shape",
       "got (3, 1, 1, 5), wanted a shape that broadcasts to (2, 4, 3, 5)"},
      {"mask_zero_rows", any, [](Views& v) { v.inputs.mask->shape = {0, 5}; },
       "mask.shape",
       "got (0, 5), wanted a shape that broadcasts to (2, 4, 3, 5)"},
      {"mask_byte", bools, [](Views& v) { v.bools[7] = 2; }, "mask.data",
       "got byte 2 at element 7, wanted 0 or 1"},
      {"mask_last_byte", bools, [](Views& v) { v.bools[14] = 255; },
       "mask.data", "got byte 255 at element 14, wanted 0 or 1"},
  };
}

std::string NameOf(const ::testing::TestParamInfo<Bad>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Types, BadRequestTest, ::testing::ValuesIn(BadTypes()),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Shapes, BadRequestTest,
                         ::testing::ValuesIn(BadShapes()), NameOf);
INSTANTIATE_TEST_SUITE_P(HugeShapes, BadRequestTest,
                         ::testing::ValuesIn(HugeShapes()), NameOf);
INSTANTIATE_TEST_SUITE_P(Ragged, BadRequestTest,
                         ::testing::ValuesIn(BadRagged()), NameOf);
INSTANTIATE_TEST_SUITE_P(Lengths, BadRequestTest,
                         ::testing::ValuesIn(BadLengths()), NameOf);
INSTANTIATE_TEST_SUITE_P(Numbers, BadRequestTest,
                         ::testing::ValuesIn(BadNumbers()), NameOf);
INSTANTIATE_TEST_SUITE_P(Masks, BadRequestTest, ::testing::ValuesIn(BadMasks()),
                         NameOf);

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
  maybe([&] { o.scale = random.Pick<double>({0, -1, 1e300, NAN, kInf}); });
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
