#include "client/cpp/cli/literal_parser.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "attention/tensor.h"

namespace attention::cli {
namespace {

// No layout has more axes. With the next it bounds the recursion below.
constexpr size_t kMaxRank = 8;
// array(tensor(...)) means nothing; a list of arrays needs one.
constexpr int kMaxCalls = 4;

constexpr char kSpaces[] = " \t\n\r\f\v";
constexpr char kParameter[] = "Parameter containing:";
constexpr char kWantedElement[] = ", wanted a number, true or false";

// What numpy, torch and jax call their arrays when they print them.
bool IsArrayName(absl::string_view name) {
  return name == "array" || name == "Array" || name == "tensor" ||
         name == "matrix";
}

// The element types that they name. uint8 and int16 are not on the wire; INT32
// holds the same numbers.
std::optional<v1::DataType> TypeNamed(absl::string_view name) {
  static const auto& types = *new std::map<absl::string_view, v1::DataType>{
      {"bfloat16", v1::DATA_TYPE_BFLOAT16}, {"bool", v1::DATA_TYPE_BOOL},
      {"float16", v1::DATA_TYPE_FLOAT16},   {"float32", v1::DATA_TYPE_FLOAT32},
      {"float64", v1::DATA_TYPE_FLOAT64},   {"int16", v1::DATA_TYPE_INT32},
      {"int32", v1::DATA_TYPE_INT32},       {"int64", v1::DATA_TYPE_INT64},
      {"int8", v1::DATA_TYPE_INT8},         {"uint8", v1::DATA_TYPE_INT32}};
  const auto found = types.find(name);
  if (found == types.end()) return std::nullopt;
  return found->second;
}

// "float32" of "torch.float32", "inf" of "np.inf"; numbers as they are.
absl::string_view WithoutModule(absl::string_view word) {
  if (word.empty() || !absl::ascii_isalpha(word.front())) return word;
  const size_t dot = word.rfind('.');
  return dot == absl::string_view::npos ? word : word.substr(dot + 1);
}

// The whole of a word, or its beginning if it is long.
std::string Shown(absl::string_view word) {
  constexpr size_t kMost = 40;
  return word.size() <= kMost ? std::string(word)
                              : absl::StrCat(word.substr(0, kMost), "...");
}

std::optional<bool> TruthValue(absl::string_view word) {
  std::string lower = absl::AsciiStrToLower(WithoutModule(word));
  absl::string_view name = lower;
  absl::ConsumeSuffix(&name, "_");  // numpy's own: np.True_
  if (name == "true") return true;
  if (name == "false") return false;
  return std::nullopt;
}

class Reader {
 public:
  explicit Reader(absl::string_view text) : text_(text) {}

  absl::StatusOr<ParsedLiteral> Read() {
    SkipSpace();
    if (absl::StartsWith(text_.substr(at_), kParameter)) {
      at_ += sizeof(kParameter) - 1;
      SkipSpace();
    }
    absl::Status status = ReadValue(0);
    if (!status.ok()) return status;
    SkipSpace();
    if (at_ < text_.size()) return Misplaced();
    return std::move(result_);
  }

 private:
  enum class Kind { kNone, kNumbers, kBooleans };
  enum class Separator { kNone, kComma, kSpace };

  // An array, array(...) or an element, at `depth` arrays.
  absl::Status ReadValue(size_t depth) {
    if (At('[')) return ReadArray(depth);
    const absl::string_view token = TokenAt(text_, at_);
    if (token.empty()) return Misplaced();
    if (text_.substr(at_ + token.size(), 1) == "(") {
      return ReadCall(token, depth);
    }
    return ReadElement(token, depth);
  }

  absl::Status ReadArray(size_t depth) {
    if (depth == kMaxRank) {
      return Error(absl::StrCat("nested more than ", kMaxRank, " deep"));
    }
    std::vector<int64_t>& shape = result_.shape;
    const bool first = depth == shape.size();
    // An element fixes the rank: no array may stand beside it.
    if (first && rank_known_) return Error("got an array, wanted a number");
    if (first) shape.push_back(0);
    Consume('[');
    int64_t length = 0;
    path_.push_back(0);
    for (bool spaced = SkipSpace(); !Consume(']'); spaced = SkipSpace()) {
      path_.back() = length;
      absl::Status status;
      if (length > 0) status = ReadSeparator(spaced);
      if (status.ok()) status = ReadValue(depth + 1);
      if (!status.ok()) return status;
      ++length;
    }
    path_.pop_back();
    if (first) shape[depth] = length;
    if (shape[depth] == length) return absl::OkStatus();
    return Error(absl::StrCat("rows of different length: got ", length,
                              " elements, wanted ", shape[depth]));
  }

  // A comma, or for numpy's print() spaces; the same in all of the literal, or
  // a comma that was forgotten would go unnoticed.
  absl::Status ReadSeparator(bool spaced) {
    const size_t place = at_;
    const bool comma = Consume(',');
    if (at_ == text_.size() || (!comma && !spaced)) return Misplaced();
    const Separator separator = comma ? Separator::kComma : Separator::kSpace;
    if (separator_ == Separator::kNone) separator_ = separator;
    if (separator_ != separator) {
      at_ = place;
      return absl::InvalidArgumentError(absl::StrCat(
          "elements are separated by commas or by spaces, not by both: wrong",
          Where()));
    }
    SkipSpace();
    return absl::OkStatus();
  }

  absl::Status ReadElement(absl::string_view token, size_t depth) {
    if (depth != result_.shape.size()) {
      return Error(absl::StrCat("got ", Shown(token), ", wanted an array of ",
                                result_.shape[depth], " elements"));
    }
    rank_known_ = true;
    const std::optional<bool> truth = TruthValue(token);
    double number = truth.value_or(false) ? 1 : 0;
    if (!truth) {
      absl::Status status = ReadNumber(token, number);
      if (!status.ok()) return status;
    }
    const Kind kind = truth ? Kind::kBooleans : Kind::kNumbers;
    if (kind_ != Kind::kNone && kind != kind_) {
      return Error(absl::StrCat(
          "got ", token, ", wanted numbers or truth values alone, not both"));
    }
    kind_ = kind;
    result_.booleans = truth.has_value();
    result_.numbers.push_back(number);
    result_.places.push_back(at_);
    at_ += token.size();
    return absl::OkStatus();
  }

  absl::Status ReadNumber(absl::string_view token, double& number) const {
    if (token == "...") {
      return Error(
          "got ..., which stands for numbers that were not printed: print all "
          "of them (np.set_printoptions(threshold=sys.maxsize), "
          "torch.set_printoptions(profile=\"full\")) or save a .npy");
    }
    if (!absl::SimpleAtod(WithoutModule(token), &number)) {
      return Error(absl::StrCat("got ", Shown(token), kWantedElement));
    }
    const bool digits =
        token.find_first_of("0123456789") != absl::string_view::npos;
    if (std::isinf(number) && digits) {
      return Error(absl::StrCat("got ", Shown(token),
                                ", wanted a number that FLOAT64 holds"));
    }
    return absl::OkStatus();
  }

  // array(VALUE, KEYWORD=..., ...), or float32(1.0) as numpy 2 shows elements.
  absl::Status ReadCall(absl::string_view token, size_t depth) {
    const absl::string_view name = WithoutModule(token);
    if (!IsArrayName(name) && !TypeNamed(name)) {
      return Error(absl::StrCat("got ", Shown(token),
                                "(, wanted array(, tensor( or a number"));
    }
    if (calls_ == kMaxCalls) {
      return Error(
          absl::StrCat("more than ", kMaxCalls, " calls within each other"));
    }
    ++calls_;
    at_ += token.size() + 1;
    SkipSpace();
    absl::Status status = ReadValue(depth);
    for (SkipSpace(); status.ok() && !Consume(')'); SkipSpace()) {
      if (!Consume(',')) return Misplaced();
      SkipSpace();
      if (!At(')')) status = ReadKeyword(depth);
    }
    --calls_;
    return status;
  }

  absl::Status ReadKeyword(size_t depth) {
    const size_t equals = text_.find_first_of("=,()[]", at_);
    if (equals == absl::string_view::npos || text_[equals] != '=') {
      return Misplaced();
    }
    const absl::string_view name =
        absl::StripAsciiWhitespace(text_.substr(at_, equals - at_));
    at_ = equals + 1;
    const size_t end = EndOfKeyword();
    const absl::string_view value =
        absl::StripAsciiWhitespace(text_.substr(at_, end - at_));
    at_ = end;
    if (end == text_.size()) return Misplaced();
    if (name == "dtype") return SetType(value);
    if (depth == 0 && (name == "shape" || name == "size")) {
      return SetShapeOfNothing(value);
    }
    return absl::OkStatus();  // device=, grad_fn=: not about the numbers.
  }

  // Of what stands after "=": a comma or the end of the call, if neither is in
  // quotes or brackets.
  size_t EndOfKeyword() const {
    int depth = 0;
    char quote = 0;
    size_t end = at_;
    for (; end < text_.size(); ++end) {
      const char c = text_[end];
      if (quote != 0) {
        if (c == quote) quote = 0;
      } else if (c == '\'' || c == '"') {
        quote = c;
      } else if (depth == 0 && (c == ',' || c == ')')) {
        break;
      } else if (c == '(' || c == '[' || c == '<') {
        ++depth;
      } else if (c == ')' || c == ']' || c == '>') {
        --depth;
      }
    }
    return end;
  }

  absl::Status SetType(absl::string_view value) {
    const absl::string_view name =
        WithoutModule(absl::StripPrefix(absl::StripSuffix(value, "'"), "'"));
    const std::optional<v1::DataType> type = TypeNamed(name);
    if (!type) {
      return absl::InvalidArgumentError(absl::StrCat(
          "dtype: got ", Shown(value),
          ", wanted float32, float16, bfloat16, float64, bool, int8, int16, "
          "int32, int64 or uint8"));
    }
    if (result_.type.value_or(*type) != *type) {
      return absl::InvalidArgumentError(
          absl::StrCat("dtype: got ", Shown(value), " after ",
                       TypeName(*result_.type), " in the same literal"));
    }
    result_.type = type;
    return absl::OkStatus();
  }

  // "(0, 3)": tells of an array without elements what its brackets cannot.
  absl::Status SetShapeOfNothing(absl::string_view value) {
    if (!result_.numbers.empty()) return absl::OkStatus();
    std::vector<int64_t> shape;
    const absl::string_view sizes =
        absl::StripPrefix(absl::StripSuffix(value, ")"), "(");
    for (absl::string_view size :
         absl::StrSplit(sizes, ',', absl::SkipWhitespace())) {
      if (!absl::SimpleAtoi(size, &shape.emplace_back())) shape.back() = -1;
    }
    if (shape.size() > kMaxRank || ElementCount(shape) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape: got ", Shown(value),
                       ", wanted one without elements, as the array is"));
    }
    result_.shape = std::move(shape);
    return absl::OkStatus();
  }

  bool At(char c) const { return at_ < text_.size() && text_[at_] == c; }
  bool Consume(char c) {
    const bool there = At(c);
    if (there) ++at_;
    return there;
  }
  // Whether there was any.
  bool SkipSpace() {
    const size_t from = at_;
    at_ = std::min(text_.find_first_not_of(kSpaces, at_), text_.size());
    return at_ > from;
  }

  // " at [1][0]"; nothing for the whole literal.
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(
        what, path_.empty()
                  ? ""
                  : absl::StrCat(" at [", absl::StrJoin(path_, "]["), "]")));
  }
  absl::Status Misplaced() const {
    return absl::InvalidArgumentError(
        absl::StrCat("not a literal such as [[1, 0], [0, 1]]: wrong", Where()));
  }
  // Counted from 1.
  std::string Where() const {
    return absl::StrCat(" at character ", at_ + 1,
                        at_ < text_.size()
                            ? absl::StrCat(" (", text_.substr(at_, 12), ")")
                            : " (the end)");
  }

  const absl::string_view text_;
  size_t at_ = 0;
  ParsedLiteral result_;
  // Indices of the arrays that are open.
  std::vector<size_t> path_;
  bool rank_known_ = false;
  Kind kind_ = Kind::kNone;
  Separator separator_ = Separator::kNone;
  int calls_ = 0;
};

}  // namespace

absl::StatusOr<ParsedLiteral> ReadLiteral(absl::string_view text) {
  return Reader(text).Read();
}

absl::string_view TokenAt(absl::string_view text, size_t place) {
  const size_t end = text.find_first_of(" \t\n\r\f\v,[]()", place);
  return text.substr(place, end == absl::string_view::npos ? end : end - place);
}

bool BeginsLiteral(absl::string_view text) {
  text = absl::StripLeadingAsciiWhitespace(text);
  const absl::string_view word = TokenAt(text, 0);
  return absl::StartsWith(text, "[") || absl::StartsWith(text, kParameter) ||
         (IsArrayName(WithoutModule(word)) &&
          text.substr(word.size(), 1) == "(");
}

}  // namespace attention::cli
