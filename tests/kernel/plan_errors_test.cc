// PlanAttention: every error it gives.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernel/attention.h"
#include "tests/kernel/plan_views.h"
#include "tests/support/tensor.h"

namespace attention::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int64_t kHuge = int64_t{1} << 62;

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
       "got (8, 1), wanted one per axis, none negative, the last 1"},
      {"last_stride", Bhsd,
       [](Views& v) { v.inputs.key.strides = {80, 40, 8, 2}; }, "key.strides",
       "got (80, 40, 8, 2), wanted one per axis, none negative, the last 1"},
      {"negative_stride", Bhsd,
       [](Views& v) { v.inputs.value.strides = {60, 30, -6, 1}; },
       "value.strides",
       "got (60, 30, -6, 1), wanted one per axis, none negative, the last 1"},
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
         v.inputs.query.shape = {int64_t{1} << 50, 1};
         v.inputs.value.shape = {0, 4096};
       },
       "value.shape",
       "got (1125899906842624, 4096), wanted fewer than 2^60 elements"},
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

// Each is one above a limit.
std::vector<Bad> BeyondLimits() {
  const auto limited = [](const std::function<Views()>& base) {
    return [=] {
      Views views = base();
      views.limits.head_size = 8;
      views.limits.heads = 4;
      views.limits.batch = 2;
      views.limits.batch_heads = 4;
      return views;
    };
  };
  const auto empty = [] {
    Views views = Bhsd();
    views.inputs.query = Floats({2, 4, 3, 1});
    views.inputs.key = Floats({2, 2, 0, 1});
    views.inputs.value = Floats({2, 2, 0, 1});
    return views;
  };
  return {
      {"head_size", limited(empty),
       [](Views& v) { v.inputs.query.shape[3] = v.inputs.key.shape[3] = 9; },
       "query.shape", "got (2, 4, 3, 9), wanted a head size of at most 8"},
      {"value_head_size", limited(empty),
       [](Views& v) { v.inputs.value.shape[3] = 9; }, "value.shape",
       "got (2, 2, 0, 9), wanted a head size of at most 8"},
      {"query_heads", limited(Bhsd),
       [](Views& v) { v.inputs.query.shape[1] = 5; }, "query.shape",
       "got (2, 5, 3, 8), wanted at most 4 heads"},
      {"kv_heads", limited(Bhsd), [](Views& v) { v.inputs.key.shape[1] = 5; },
       "key.shape", "got (2, 5, 5, 8), wanted at most 4 heads"},
      {"packed_query_heads", limited(Packed),
       [](Views& v) { v.options.query_heads = 8; }, "options.query_heads",
       "got 8, wanted at most 4"},
      {"packed_kv_heads", limited(Packed),
       [](Views& v) {
         v.inputs.key.shape[2] = 64;
         v.inputs.value.shape[2] = 64;
         v.options.kv_heads = 8;
       },
       "options.kv_heads", "got 8, wanted at most 4"},
      {"batch", limited(empty),
       [](Views& v) {
         for (ConstTensorView* tensor :
              {&v.inputs.query, &v.inputs.key, &v.inputs.value}) {
           tensor->shape[0] = 3;
         }
       },
       "query.shape", "got (3, 4, 3, 1), wanted a batch size of at most 2"},
      {"batch_heads", limited(Bhsd),
       [](Views& v) { v.inputs.key.shape[1] = v.inputs.value.shape[1] = 4; },
       "key.shape",
       "got (2, 4, 5, 8), wanted batch size times heads of at most 4, not "
       "2 * 4"},
      {"sequences", limited(Ragged),
       [](Views& v) { v.query_starts = {0, 1, 2, 3}; }, "query_starts",
       "got 4 numbers, wanted at most 3, for 2 sequences"},
      {"key_sequences", limited(Ragged),
       [](Views& v) { v.key_starts = {0, 1, 2, 5}; }, "key_starts",
       "got 4 numbers, wanted at most 3, for 2 sequences"},
  };
}

// The defaults, without a byte behind the shapes.
std::vector<Bad> BeyondDefaults() {
  const auto huge = [](int axis, int64_t size) {
    return [=](Views& v) {
      for (ConstTensorView* tensor :
           {&v.inputs.query, &v.inputs.key, &v.inputs.value}) {
        tensor->shape[axis] = size;
      }
    };
  };
  const auto empty = [] {
    Views views;
    views.inputs.query = Floats({1, 1, 0, 1});
    views.inputs.key = Floats({1, 1, 0, 1});
    views.inputs.value = Floats({1, 1, 0, 1});
    return views;
  };
  return {
      {"head_size", empty, huge(3, 4097), "query.shape",
       "got (1, 1, 0, 4097), wanted a head size of at most 4096"},
      {"heads", empty, huge(1, 65537), "query.shape",
       "got (1, 65537, 0, 1), wanted at most 65536 heads"},
      {"batch", empty, huge(0, 131073), "query.shape",
       "got (131073, 1, 0, 1), wanted a batch size of at most 131072"},
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
       "got (1), wanted one per axis, none negative, the last 1"},
      {"valid_and_past", WithPast, [](Views& v) { v.valid_lengths = {1, 1}; },
       "valid_lengths", "not with past_key and past_value"},
      {"valid_count", Bhsd, [](Views& v) { v.valid_lengths = {1}; },
       "valid_lengths", "got 1 numbers, wanted one per batch entry, 2"},
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
      {"chunk_negative", Bhsd, [](Views& v) { v.options.chunk_size = -1; },
       "options.chunk_size", "got -1, wanted at least 0"},
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
       "options.alibi_slopes", "got 2 numbers, wanted one per query head, 4"},
      {"alibi_infinite", Bhsd,
       [](Views& v) { v.options.alibi_slopes = {1, 2, kInf, 4}; },
       "options.alibi_slopes[2]", "got inf, wanted a finite FLOAT32"},
      {"sinks_count", Bhsd, [](Views& v) { v.options.sinks = {1, 2, 3, 4, 5}; },
       "options.sinks", "got 5 numbers, wanted one per query head, 4"},
      {"sink_nan", Bhsd, [](Views& v) { v.options.sinks = {NAN, 0, 0, 0}; },
       "options.sinks[0]", "got nan, wanted a finite FLOAT32 or -inf"},
      {"sink_infinite", Bhsd,
       [](Views& v) { v.options.sinks = {-kInf, 0, 0, kInf}; },
       "options.sinks[3]", "got inf, wanted a finite FLOAT32 or -inf"},
  };
}

std::vector<Bad> BadIndicesAndSinks() {
  const auto selected = [] {
    Views v = Bhsd();
    v.indices = std::vector<int64_t>(12, -1);
    v.inputs.indices = View(DataType::kInt64, {2, 3, 2});
    return v;
  };
  const auto numbers = [=] {
    Views v = selected();
    v.inputs.indices->data = v.indices.data();
    return v;
  };
  const auto ragged = [] {
    Views v = Ragged();
    v.key_starts = {0, 2, 5};
    v.indices = {0, 1, 2, 2, 0, 1};
    v.inputs.indices = View(DataType::kInt64, {3, 2});
    v.inputs.indices->data = nullptr;
    return v;
  };
  const auto sinks = [] {
    Views v = Bhsd();
    v.sinks = std::vector<float>(24, 1);
    v.inputs.sinks = Floats({2, 4, 3});
    v.inputs.sinks->data = v.sinks.data();
    return v;
  };
  const std::string shapes = ", wanted (2, 3, k), or (2, 4, 3, k) per head";
  return {
      {"indices_type", selected,
       [](Views& v) { v.inputs.indices->type = DataType::kFloat32; },
       "indices.data_type", "got FLOAT32, wanted INT32 or INT64"},
      {"indices_rank_0", selected,
       [](Views& v) { v.inputs.indices->shape = {}; }, "indices.shape",
       "got ()" + shapes},
      {"indices_rank_2", selected,
       [](Views& v) { v.inputs.indices->shape = {3, 4}; }, "indices.shape",
       "got (3, 4)" + shapes},
      {"indices_rows", selected,
       [](Views& v) { v.inputs.indices->shape = {2, 4, 2}; }, "indices.shape",
       "got (2, 4, 2)" + shapes},
      {"indices_heads", selected,
       [](Views& v) { v.inputs.indices->shape = {2, 2, 3, 2}; },
       "indices.shape", "got (2, 2, 3, 2)" + shapes},
      {"indices_negative", selected,
       [](Views& v) { v.inputs.indices->shape = {2, 3, -2}; }, "indices.shape",
       "got (2, 3, -2), wanted no negative dimension"},
      {"indices_strides", selected,
       [](Views& v) { v.inputs.indices->strides = {6, 2, 2}; },
       "indices.strides",
       "got (6, 2, 2), wanted one per axis, none negative, the last 1"},
      {"index_above", numbers,
       [](Views& v) {
         v.indices[7] = 5;
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got 5 at element 7, wanted -1, for none, to 4, the sequence's last "
       "key"},
      {"index_below", numbers,
       [](Views& v) {
         v.indices[11] = -2;
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got -2 at element 11, wanted -1, for none, to 4, the sequence's last "
       "key"},
      {"index_of_the_last_head", numbers,
       [](Views& v) {
         v.indices.assign(48, 0);
         v.indices[47] = 5;
         v.inputs.indices = View(DataType::kInt64, {2, 4, 3, 2});
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got 5 at element 47, wanted -1, for none, to 4, the sequence's last "
       "key"},
      {"index_of_32_bits", numbers,
       [](Views& v) {
         // Of which each holds two.
         v.indices[4] = int64_t{5} << 32;
         v.inputs.indices = View(DataType::kInt32, {2, 3, 4});
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got 5 at element 9, wanted -1, for none, to 4, the sequence's last "
       "key"},
      {"index_of_32_bits_of_another_sequence", ragged,
       [](Views& v) {
         v.indices.assign(12, 0);
         v.indices[3] = int64_t{2} << 32;
         v.inputs.indices = View(DataType::kInt32, {3, 4, 2});
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got 2 at element 7, wanted -1, for none, to 1, the sequence's last "
       "key"},
      {"index_of_another_sequence", ragged,
       [](Views& v) {
         v.indices[1] = 2;
         v.inputs.indices->data = v.indices.data();
       },
       "indices.data",
       "got 2 at element 1, wanted -1, for none, to 1, the sequence's last "
       "key"},
      {"ragged_indices", ragged,
       [](Views& v) { v.inputs.indices->shape = {1, 3, 2}; }, "indices.shape",
       "got (1, 3, 2), wanted (3, k), or (3, 4, k) per head"},
      {"row_sinks_type", sinks,
       [](Views& v) { v.inputs.sinks->type = DataType::kInt32; },
       "sinks.data_type",
       "got INT32, wanted FLOAT32, FLOAT16, BFLOAT16 or FLOAT64"},
      {"row_sinks_shape", sinks,
       [](Views& v) { v.inputs.sinks->shape = {2, 3, 4}; }, "sinks.shape",
       "got (2, 3, 4), wanted (2, 4, 3)"},
      {"row_sink_nan", sinks,
       [](Views& v) {
         v.sinks[20] = NAN;
         v.inputs.sinks->data = v.sinks.data();
       },
       "sinks.data", "got nan at element 20, wanted a finite FLOAT32 or -inf"},
      {"row_sink_infinite", sinks,
       [](Views& v) {
         v.sinks[0] = kInf;
         v.inputs.sinks->data = v.sinks.data();
       },
       "sinks.data", "got inf at element 0, wanted a finite FLOAT32 or -inf"},
      {"two_kinds_of_sinks", sinks,
       [](Views& v) { v.options.sinks = {1, 2, 3, 4}; }, "sinks",
       "not with options.sinks"},
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
       "got (2), wanted one per axis, none negative, the last 1"},
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

TEST(LimitsTest, WorkIsBounded) {
  Views views = Bhsd();
  const double work = views.Plan()->work;
  views.limits.work = work;
  EXPECT_TRUE(views.Plan().ok());
  views.limits.work = work - 1;
  const absl::Status status = views.Plan().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ErrorField(status), "query.shape");
  EXPECT_EQ(
      status.message(),
      absl::StrCat("query.shape: got (2, 4, 3, 8), wanted work of at most ",
                   work - 1, " multiply-adds, not ", work));
}

absl::Status StatusOf(const Bad& bad) {
  Views views = bad.base();
  bad.damage(views);
  return views.Plan().status();
}

TEST(LimitsTest, AreToldApartFromOtherErrors) {
  for (const auto& list : {BeyondLimits(), BeyondDefaults()}) {
    for (const Bad& bad : list) {
      EXPECT_TRUE(IsLimitError(StatusOf(bad))) << bad.name;
    }
  }
  for (const auto& list : {BadTypes(), BadShapes(), BadRagged(), BadLengths(),
                           BadNumbers(), BadIndicesAndSinks(), BadMasks()}) {
    for (const Bad& bad : list) {
      EXPECT_FALSE(IsLimitError(StatusOf(bad))) << bad.name;
    }
  }
  EXPECT_FALSE(IsLimitError(absl::OkStatus()));
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
INSTANTIATE_TEST_SUITE_P(Limits, BadRequestTest,
                         ::testing::ValuesIn(BeyondLimits()), NameOf);
INSTANTIATE_TEST_SUITE_P(DefaultLimits, BadRequestTest,
                         ::testing::ValuesIn(BeyondDefaults()), NameOf);
INSTANTIATE_TEST_SUITE_P(Ragged, BadRequestTest,
                         ::testing::ValuesIn(BadRagged()), NameOf);
INSTANTIATE_TEST_SUITE_P(Lengths, BadRequestTest,
                         ::testing::ValuesIn(BadLengths()), NameOf);
INSTANTIATE_TEST_SUITE_P(Numbers, BadRequestTest,
                         ::testing::ValuesIn(BadNumbers()), NameOf);
INSTANTIATE_TEST_SUITE_P(IndicesAndSinks, BadRequestTest,
                         ::testing::ValuesIn(BadIndicesAndSinks()), NameOf);
INSTANTIATE_TEST_SUITE_P(Masks, BadRequestTest, ::testing::ValuesIn(BadMasks()),
                         NameOf);

}  // namespace
}  // namespace attention::test
