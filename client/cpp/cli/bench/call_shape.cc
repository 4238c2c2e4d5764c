#include "client/cpp/cli/bench/call_shape.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace attention::cli {
namespace {

constexpr char kWanted[] =
    "B,Hq,Hkv,S,T,D[,Dv] or names such as S=128,T=128,H=8,D=64";

absl::Status Wrong(absl::string_view text, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("got '", text, "', wanted ", wanted));
}

// Sizes as the text gives them; nothing where it does not.
struct GivenSizes {
  std::optional<int64_t> batch, query_heads, kv_heads, queries, keys, head_size,
      value_head_size;
};

bool SetByName(absl::string_view name, int64_t size, GivenSizes& given) {
  if (name == "H") {
    given.query_heads = given.kv_heads = size;
    return true;
  }
  const std::pair<absl::string_view, std::optional<int64_t>*> names[] = {
      {"B", &given.batch},
      {"Hq", &given.query_heads},
      {"Hkv", &given.kv_heads},
      {"S", &given.queries},
      {"T", &given.keys},
      {"D", &given.head_size},
      {"Dv", &given.value_head_size}};
  for (const auto& [known, target] : names) {
    if (name != known) continue;
    *target = size;
    return true;
  }
  return false;
}

absl::StatusOr<GivenSizes> ParseNames(absl::string_view text) {
  GivenSizes given;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(item, absl::MaxSplits('=', 1));
    int64_t size = 0;
    if (!absl::SimpleAtoi(parts.second, &size) ||
        !SetByName(parts.first, size, given)) {
      return Wrong(text, kWanted);
    }
  }
  if (!given.queries) return Wrong(text, "a shape that gives S");
  return given;
}

absl::StatusOr<GivenSizes> ParseNumbers(absl::string_view text) {
  std::vector<int64_t> sizes;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    if (!absl::SimpleAtoi(item, &sizes.emplace_back())) {
      return Wrong(text, kWanted);
    }
  }
  if (sizes.size() != 6 && sizes.size() != 7) return Wrong(text, kWanted);
  GivenSizes given{sizes[0], sizes[1], sizes[2],    sizes[3],
                   sizes[4], sizes[5], std::nullopt};
  if (sizes.size() == 7) given.value_head_size = sizes[6];
  return given;
}

CallShape FillIn(const GivenSizes& given) {
  CallShape shape;
  shape.batch = given.batch.value_or(1);
  shape.query_heads = given.query_heads.value_or(given.kv_heads.value_or(1));
  shape.kv_heads = given.kv_heads.value_or(shape.query_heads);
  shape.queries = *given.queries;
  shape.keys = given.keys.value_or(shape.queries);
  shape.head_size = given.head_size.value_or(64);
  shape.value_head_size = given.value_head_size.value_or(shape.head_size);
  return shape;
}

// Whether query, key, value and output each have at most 2^28 elements, which
// is 2 GiB of the widest type; no product overflows.
bool FitsMessages(const CallShape& shape) {
  constexpr int64_t kMost = int64_t{1} << 28;
  const auto fits = [](std::initializer_list<int64_t> sizes) {
    int64_t product = 1;
    for (const int64_t size : sizes) {
      if (size > kMost / product) return false;
      product *= size;
    }
    return true;
  };
  const auto& [b, hq, hkv, s, t, d, dv] = shape;
  return fits({b, hq, s, d}) && fits({b, hkv, t, d}) && fits({b, hkv, t, dv}) &&
         fits({b, hq, s, dv});
}

}  // namespace

absl::StatusOr<CallShape> ParseShape(absl::string_view text) {
  absl::StatusOr<GivenSizes> given =
      text.find('=') == text.npos ? ParseNumbers(text) : ParseNames(text);
  if (!given.ok()) return given.status();
  const CallShape shape = FillIn(*given);
  const auto& [b, hq, hkv, s, t, d, dv] = shape;
  for (const int64_t size : {b, hq, hkv, s, t, d, dv}) {
    if (size < 1) return Wrong(text, "sizes of at least 1");
  }
  if (hq % hkv != 0) return Wrong(text, "Hq a multiple of Hkv");
  if (!FitsMessages(shape)) {
    return Wrong(text, "tensors of at most 2^28 elements");
  }
  return shape;
}

absl::StatusOr<std::vector<WeightedShape>> ParseMix(absl::string_view text) {
  std::vector<WeightedShape> mix;
  std::vector<absl::string_view> sizes;  // Of the shape being read.
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(item, absl::MaxSplits(':', 1));
    sizes.push_back(parts.first);
    if (item.find(':') == item.npos) continue;
    absl::StatusOr<CallShape> shape = ParseShape(absl::StrJoin(sizes, ","));
    if (!shape.ok()) return shape.status();
    double weight = 0;
    if (!absl::SimpleAtod(parts.second, &weight) || !(weight > 0) ||
        weight > 1e9) {
      return Wrong(item, "a weight above 0 after ':'");
    }
    mix.push_back({*shape, weight});
    sizes.clear();
  }
  if (!sizes.empty()) return Wrong(text, "SHAPE:WEIGHT,SHAPE:WEIGHT");
  return mix;
}

std::string FormatShape(const CallShape& shape) {
  std::string text;
  if (shape.batch != 1) absl::StrAppend(&text, "B=", shape.batch, ",");
  absl::StrAppend(&text, "S=", shape.queries, ",T=", shape.keys);
  if (shape.query_heads == shape.kv_heads) {
    absl::StrAppend(&text, ",H=", shape.query_heads);
  } else {
    absl::StrAppend(&text, ",Hq=", shape.query_heads, ",Hkv=", shape.kv_heads);
  }
  absl::StrAppend(&text, ",D=", shape.head_size);
  if (shape.value_head_size != shape.head_size) {
    absl::StrAppend(&text, ",Dv=", shape.value_head_size);
  }
  return text;
}

}  // namespace attention::cli
