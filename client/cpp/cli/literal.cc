#include "client/cpp/cli/literal.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "attention/float16.h"

namespace attention::cli {
namespace {

using Json = nlohmann::json;

// No layout has more axes; caps the recursion below.
constexpr size_t kMaxRank = 8;

bool IsWord(char c) { return absl::ascii_isalpha(c); }
bool IsNumberPart(char c) { return absl::ascii_isdigit(c) || c == '.'; }

// JSON has no infinities: "-inf" becomes the string "\"-inf\"". Python's True
// and False are let in as well.
struct Quoted {
  std::string text;
  // For each character of `text`, the one of the original it stands for.
  std::vector<size_t> origin;

  void Append(const std::string& part, size_t from) {
    text += part;
    origin.insert(origin.end(), part.size(), from);
  }
};

bool IsSpecialNumber(const std::string& lower) {
  return lower == "nan" || lower == "inf" || lower == "infinity";
}

Quoted QuoteWords(const std::string& text) {
  Quoted quoted;
  for (size_t i = 0; i < text.size();) {
    const bool exponent = i > 0 && IsNumberPart(text[i - 1]);
    if (!IsWord(text[i]) || exponent) {
      quoted.Append(std::string(1, text[i]), i);
      ++i;
      continue;
    }
    size_t end = i;
    while (end < text.size() && IsWord(text[end])) ++end;
    const std::string word = text.substr(i, end - i);
    const std::string lower = absl::AsciiStrToLower(word);
    const bool boolean = lower == "true" || lower == "false";
    if (IsSpecialNumber(lower)) {
      const char sign = quoted.text.empty() ? ' ' : quoted.text.back();
      const bool is_signed = sign == '-' || sign == '+';
      if (is_signed) {
        quoted.text.pop_back();
        quoted.origin.pop_back();
      }
      quoted.Append(absl::StrCat("\"", is_signed ? std::string(1, sign) : "",
                                 lower, "\""),
                    i);
    } else {
      quoted.Append(boolean ? lower : word, i);
    }
    i = end;
  }
  return quoted;
}

// Walks the nested arrays; collects shape and numbers.
class Collector {
 public:
  absl::Status Collect(const Json& json) { return Visit(json, 0); }

  std::vector<int64_t> TakeShape() { return std::move(shape_); }
  const std::vector<double>& numbers() const { return numbers_; }
  bool booleans() const { return kind_ == Kind::kBooleans; }

 private:
  enum class Kind { kNone, kNumbers, kBooleans };

  absl::Status Visit(const Json& json, size_t depth) {
    return json.is_array() ? VisitArray(json, depth) : VisitLeaf(json, depth);
  }

  absl::Status VisitArray(const Json& json, size_t depth) {
    if (depth == kMaxRank) {
      return absl::InvalidArgumentError(
          absl::StrCat("nested more than ", kMaxRank, " deep", Place()));
    }
    const auto length = static_cast<int64_t>(json.size());
    // A leaf fixes the rank: no array may stand beside it.
    if (rank_known_ && depth == shape_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("got an array, wanted a number", Place()));
    }
    if (depth == shape_.size()) {
      shape_.push_back(length);
    } else if (shape_[depth] != length) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows of different length: got ", length,
                       " elements, wanted ", shape_[depth], Place()));
    }
    for (size_t i = 0; i < json.size(); ++i) {
      path_.push_back(i);
      absl::Status status = Visit(json[i], depth + 1);
      if (!status.ok()) return status;
      path_.pop_back();
    }
    return absl::OkStatus();
  }

  absl::Status VisitLeaf(const Json& json, size_t depth) {
    if (depth != shape_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("got ", json.dump(), ", wanted an array of ",
                       shape_[depth], " elements", Place()));
    }
    rank_known_ = true;
    const Kind kind = json.is_boolean() ? Kind::kBooleans : Kind::kNumbers;
    if (!json.is_boolean() && !json.is_number() && !json.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "got ", json.dump(), ", wanted a number, true or false", Place()));
    }
    if (kind_ != Kind::kNone && kind != kind_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "got ", json.dump(),
          ", wanted numbers or truth values alone, not both", Place()));
    }
    kind_ = kind;
    return Add(json);
  }

  absl::Status Add(const Json& json) {
    if (json.is_boolean()) {
      numbers_.push_back(json.get<bool>() ? 1 : 0);
    } else if (json.is_number()) {
      numbers_.push_back(json.get<double>());
    } else {
      const auto& text = json.get_ref<const std::string&>();
      const bool is_signed = absl::StartsWithIgnoreCase(text, "-") ||
                             absl::StartsWithIgnoreCase(text, "+");
      if (!IsSpecialNumber(text.substr(is_signed ? 1 : 0))) {
        return absl::InvalidArgumentError(absl::StrCat(
            "got ", json.dump(), ", wanted a number, true or false", Place()));
      }
      numbers_.push_back(std::strtod(text.c_str(), nullptr));
    }
    return absl::OkStatus();
  }

  // " at [1][0]"; nothing for the whole literal.
  std::string Place() const {
    if (path_.empty()) return "";
    return absl::StrCat(" at [", absl::StrJoin(path_, "]["), "]");
  }

  std::vector<int64_t> shape_;
  std::vector<double> numbers_;
  std::vector<size_t> path_;
  bool rank_known_ = false;
  Kind kind_ = Kind::kNone;
};

template <typename T>
std::string Shortest(T value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  return {buffer, end};
}

// The fewest digits that round to `bits`.
std::string ShortestFloat16(float value, uint16_t bits,
                            uint16_t (*round)(double)) {
  for (int digits = 1; digits < std::numeric_limits<float>::max_digits10;
       ++digits) {
    const double rounded =
        std::strtod(absl::StrFormat("%.*g", digits, value).c_str(), nullptr);
    if (round(rounded) == bits) return Shortest(rounded);
  }
  return Shortest(value);
}

std::string FormatElement(const Tensor& tensor, size_t i) {
  switch (tensor.type()) {
    case v1::DATA_TYPE_FLOAT32:
      return Shortest(tensor.elements<float>()[i]);
    case v1::DATA_TYPE_FLOAT64:
      return Shortest(tensor.elements<double>()[i]);
    case v1::DATA_TYPE_FLOAT16:
    case v1::DATA_TYPE_BFLOAT16: {
      const bool half = tensor.type() == v1::DATA_TYPE_FLOAT16;
      const uint16_t bits = tensor.elements<uint16_t>()[i];
      const float value = half ? FromFloat16(bits) : FromBFloat16(bits);
      if (!std::isfinite(value)) return Shortest(value);
      return ShortestFloat16(value, bits, half ? ToFloat16 : ToBFloat16);
    }
    case v1::DATA_TYPE_BOOL:
      return tensor.bytes()[i] != std::byte{0} ? "true" : "false";
    case v1::DATA_TYPE_INT8:
      return absl::StrCat(int{tensor.elements<int8_t>()[i]});
    case v1::DATA_TYPE_INT32:
      return absl::StrCat(tensor.elements<int32_t>()[i]);
    case v1::DATA_TYPE_INT64:
      return absl::StrCat(tensor.elements<int64_t>()[i]);
    default:
      return "?";
  }
}

void FormatAxis(const Tensor& tensor, size_t axis, size_t& next,
                std::string& out) {
  if (axis == tensor.shape().size()) {
    out += FormatElement(tensor, next++);
    return;
  }
  const bool rows = axis + 1 == tensor.shape().size();
  const std::string separator =
      rows ? ", " : absl::StrCat(",\n", std::string(axis + 1, ' '));
  out += "[";
  for (int64_t i = 0; i < tensor.shape()[axis]; ++i) {
    if (i > 0) out += separator;
    FormatAxis(tensor, axis + 1, next, out);
  }
  out += "]";
}

}  // namespace

absl::StatusOr<Tensor> ParseLiteral(const std::string& text,
                                    v1::DataType type) {
  const Quoted quoted = QuoteWords(text);
  Json json;
  try {
    json = Json::parse(quoted.text);
  } catch (const Json::exception& error) {
    const auto* syntax = dynamic_cast<const Json::parse_error*>(&error);
    const size_t position = syntax != nullptr ? syntax->byte : 0;
    // Counted from 1, the end included.
    const size_t place = position > 0 && position <= quoted.origin.size()
                             ? quoted.origin[position - 1]
                             : text.size();
    return absl::InvalidArgumentError(absl::StrCat(
        "not a literal such as [[1, 0], [0, 1]]: wrong at character ",
        place + 1,
        place < text.size() ? absl::StrCat(" (", text.substr(place, 12), ")")
                            : " (the end)"));
  }
  Collector collector;
  absl::Status status = collector.Collect(json);
  if (!status.ok()) return status;
  return Tensor::Rounded(collector.booleans() ? v1::DATA_TYPE_BOOL : type,
                         collector.numbers(), collector.TakeShape());
}

std::string FormatLiteral(const Tensor& tensor) {
  std::string out;
  size_t next = 0;
  FormatAxis(tensor, 0, next, out);
  return out;
}

}  // namespace attention::cli
