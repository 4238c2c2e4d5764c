#include "client/cpp/cli/python_literal.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace attention::cli {
namespace {

using Kind = PythonLiteral::Kind;

constexpr int kMaxDepth = 100;

bool IsName(char c) {
  return absl::ascii_isalnum(c) || c == '_' || !absl::ascii_isascii(c);
}

// Each function reads from the front of `rest_`; where one returns false,
// `rest_` is left at what is wrong.
class Parser {
 public:
  Parser(absl::string_view text, bool longs) : rest_(text), longs_(longs) {}

  bool Parse(PythonLiteral& value) {
    // Python refuses these anywhere, in comments too.
    if (const size_t nul = rest_.find('\0'); nul != rest_.npos) {
      rest_.remove_prefix(nul);
      return false;
    }
    // A line that is not the first must not be indented.
    while (Peek(' ') || Peek('\t')) rest_.remove_prefix(1);
    while (Peek('\n') || Peek('\r')) rest_.remove_prefix(1);
    if (Peek(' ') || Peek('\t') || !Value(value)) return false;
    SkipSpace();
    return rest_.empty();
  }

  size_t left() const { return rest_.size(); }

 private:
  bool Value(PythonLiteral& value) {
    if (depth_ == kMaxDepth) return false;
    ++depth_;
    SkipSpace();
    bool good = false;
    if (Eat("(")) {
      good = Tuple(value);
    } else if (Eat("[")) {
      bool comma = false;
      value.kind = Kind::kList;
      good = Items("]", value.items, comma);
    } else if (Eat("{")) {
      good = Dict(value);
    } else if (StringBegins()) {
      good = String(value);
    } else if (!rest_.empty() && absl::ascii_isalpha(rest_.front())) {
      good = Constant(value);
    } else {
      good = Integer(value);
    }
    --depth_;
    return good;
  }

  // Elements up to `end`; tells whether the last has a comma behind it.
  bool Items(absl::string_view end, std::vector<PythonLiteral>& items,
             bool& comma) {
    while (!Eat(end)) {
      if (!items.empty() && !comma) return false;
      if (!Value(items.emplace_back())) return false;
      comma = Eat(",");
    }
    return true;
  }

  bool Tuple(PythonLiteral& value) {
    bool comma = false;
    value.kind = Kind::kTuple;
    if (!Items(")", value.items, comma)) return false;
    // (2) is 2, (2,) a tuple.
    if (value.items.size() == 1 && !comma) {
      PythonLiteral only = std::move(value.items.front());
      value = std::move(only);
    }
    return true;
  }

  bool Dict(PythonLiteral& value) {
    value.kind = Kind::kDict;
    bool comma = true;
    while (!Eat("}")) {
      if (!comma || !Value(value.items.emplace_back()) || !Eat(":") ||
          !Value(value.items.emplace_back())) {
        return false;
      }
      comma = Eat(",");
    }
    return true;
  }

  bool Constant(PythonLiteral& value) {
    for (const auto& [name, kind, number] :
         {std::tuple("None", Kind::kNone, 0),
          std::tuple("True", Kind::kBoolean, 1),
          std::tuple("False", Kind::kBoolean, 0)}) {
      absl::string_view after = rest_;
      if (absl::ConsumePrefix(&after, name) &&
          (after.empty() || !IsName(after.front()))) {
        rest_ = after;
        value.kind = kind;
        value.number = number;
        return true;
      }
    }
    return false;
  }

  // Digits of any base that Python has, with single underscores between them.
  bool Integer(PythonLiteral& value) {
    const bool negative = Peek('-');
    if (Eat("-") || Eat("+")) SkipSpace();
    const absl::string_view start = rest_;
    int base = 10;
    for (const auto& [prefix, its_base] :
         {std::pair("0x", 16), std::pair("0o", 8), std::pair("0b", 2)}) {
      if (absl::AsciiStrToLower(rest_.substr(0, 2)) == prefix) base = its_base;
    }
    if (base != 10) {
      rest_.remove_prefix(2);
      absl::ConsumePrefix(&rest_, "_");
    }
    std::string digits = negative ? "-" : "";
    if (!Digits(digits)) return false;
    const auto [end, error] = std::from_chars(
        digits.data(), digits.data() + digits.size(), value.number, base);
    const bool whole = end == digits.data() + digits.size();
    // 010 meant 8 once; now only 0, 00, ... may begin with 0.
    const bool old_octal =
        base == 10 && start.front() == '0' && value.number != 0;
    if (error != std::errc() || !whole || old_octal) {
      rest_ = start;
      return false;
    }
    value.kind = Kind::kInteger;
    return true;
  }

  bool Digits(std::string& digits) {
    const size_t before = digits.size();
    while (!rest_.empty() && absl::ascii_isxdigit(rest_.front())) {
      digits += rest_.front();
      rest_.remove_prefix(1);
      if (rest_.size() > 1 && Peek('_') && absl::ascii_isxdigit(rest_[1])) {
        rest_.remove_prefix(1);
      }
    }
    if (longs_) SkipLong();
    return digits.size() > before &&
           (rest_.empty() || (!IsName(rest_.front()) && rest_.front() != '.'));
  }

  void SkipLong() {
    absl::string_view after = rest_;
    while (absl::ConsumePrefix(&after, " ") ||
           absl::ConsumePrefix(&after, "\t")) {
    }
    if (absl::ConsumePrefix(&after, "L")) rest_ = after;
  }

  // Whether a string comes: a quote, or one behind the prefix r or u.
  bool StringBegins() const {
    absl::string_view after = rest_;
    if (!after.empty() &&
        absl::string_view("rRuU").find(after.front()) != after.npos) {
      after.remove_prefix(1);
    }
    return !after.empty() && (after.front() == '\'' || after.front() == '"');
  }

  // One string or several beside each other, which are one.
  bool String(PythonLiteral& value) {
    value.kind = Kind::kString;
    while (StringBegins()) {
      if (!Quoted(value.text)) return false;
      SkipSpace();
    }
    return true;
  }

  bool Quoted(std::string& text) {
    const absl::string_view start = rest_;
    if (absl::ascii_isalpha(rest_.front())) rest_.remove_prefix(1);
    std::string quote(1, rest_.front());
    const std::string three(3, rest_.front());
    if (rest_.substr(0, 3) == three) quote = three;
    rest_.remove_prefix(quote.size());
    const absl::string_view inside = rest_.substr(0, rest_.find(quote));
    const char* never = quote.size() == 3 ? "\\" : "\\\r\n";
    if (inside.size() == rest_.size() ||
        inside.find_first_of(never) != inside.npos) {
      rest_ = start;
      return false;
    }
    text.append(inside.data(), inside.size());
    rest_.remove_prefix(inside.size() + quote.size());
    return true;
  }

  // Blanks, line breaks and comments.
  void SkipSpace() {
    while (!rest_.empty()) {
      if (Peek('#')) {
        rest_.remove_prefix(
            std::min(rest_.find_first_of("\r\n"), rest_.size()));
      } else if (absl::string_view(" \t\f\r\n").find(rest_.front()) !=
                 rest_.npos) {
        rest_.remove_prefix(1);
      } else if (!absl::ConsumePrefix(&rest_, "\\\n")) {
        return;
      }
    }
  }

  bool Peek(char c) const { return !rest_.empty() && rest_.front() == c; }
  bool Eat(absl::string_view token) {
    SkipSpace();
    return absl::ConsumePrefix(&rest_, token);
  }

  absl::string_view rest_;
  const bool longs_;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<PythonLiteral> ParsePythonLiteral(absl::string_view text,
                                                 bool longs) {
  Parser parser(text, longs);
  PythonLiteral value;
  if (parser.Parse(value)) return value;
  const size_t place = text.size() - parser.left();
  return absl::InvalidArgumentError(absl::StrCat(
      "wrong at character ", place + 1,
      place < text.size() ? absl::StrCat(" (", text.substr(place, 12), ")")
                          : " (the end)"));
}

}  // namespace attention::cli
