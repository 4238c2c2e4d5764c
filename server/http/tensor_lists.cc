#include "server/http/tensor_lists.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "base/field_error.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

const FieldDescriptor* FieldOf(const Descriptor& type,
                               const std::string& name) {
  if (const FieldDescriptor* field = type.FindFieldByName(name)) return field;
  return type.FindFieldByCamelcaseName(name);
}

bool IsTensor(const Descriptor* type) {
  return type != nullptr &&
         type->full_name() == v1::Tensor::descriptor()->full_name();
}

// Whether the elements of a tensor are integers, and can be nothing else.
bool IsOfIntegers(const FieldDescriptor& field) {
  return field.name() == "indices";
}

// One list after another, as they come: the shape and elements of a tensor.
class TensorList {
 public:
  // Writes the Tensor to the end of `json`.
  TensorList(bool of_integers, std::string& json)
      : of_integers_(of_integers), json_(json) {}

  bool of_integers() const { return of_integers_; }

  // What is wrong is said once, by the function that returned false.
  const std::string& error() const { return error_; }

  bool Begin() {
    ++depth_;
    if (rank_ && depth_ > *rank_) {
      return Wrong("a list stands where a number should");
    }
    if (depth_ > counts_.size()) {
      if (depth_ > kMaxRank) return Wrong("the lists are nested too deeply");
      counts_.push_back(0);
      lengths_.push_back(std::nullopt);
    }
    counts_[depth_ - 1] = 0;
    return true;
  }

  // *done: that was the outermost list.
  bool End(bool* done) {
    const int64_t count = counts_[depth_ - 1];
    std::optional<int64_t>& length = lengths_[depth_ - 1];
    if (length && *length != count) {
      return Wrong(absl::StrCat("lists of one level have lengths ", *length,
                                " and ", count));
    }
    length = count;
    --depth_;
    *done = depth_ == 0;
    if (!*done) ++counts_[depth_ - 1];
    return true;
  }

  bool Number(absl::string_view text) {
    if (of_integers_) return Integer(text);
    const bool first = !is_bool_;
    if (!Element(/*is_bool=*/false)) return false;
    absl::StrAppend(&json_, first ? kFloatValues : ",", text);
    return true;
  }

  bool Bool(bool value) {
    if (of_integers_) return NotAnElement(value ? "true" : "false");
    if (!Element(/*is_bool=*/true)) return false;
    bytes_.push_back(value ? '\1' : '\0');
    return true;
  }

  bool NotAnElement(absl::string_view got) {
    return Wrong(absl::StrCat(
        "got ", got.substr(0, 40), " in a list of ",
        of_integers_ ? "integers of 32 bits" : "numbers or booleans"));
  }

  bool Wrong(std::string what) {
    error_ = std::move(what);
    return false;
  }

  // Once End() said that all is done.
  void Finish() {
    if (of_integers_ || is_bool_.value_or(false)) {
      absl::StrAppend(&json_, R"({"dataType":"DATA_TYPE_)",
                      of_integers_ ? "INT32" : "BOOL", R"(","data":")",
                      absl::Base64Escape(bytes_), "\"");
    } else {
      absl::StrAppend(&json_, is_bool_ ? "" : kFloatValues, "]");
    }
    absl::StrAppend(&json_, ",\"shape\":[");
    for (size_t i = 0; i < lengths_.size(); ++i) {
      absl::StrAppend(&json_, i == 0 ? "" : ",", lengths_[i].value_or(0));
    }
    json_.append("]}");
  }

 private:
  // More than any tensor has.
  static constexpr size_t kMaxRank = 8;
  static constexpr char kFloatValues[] = R"({"floatValues":[)";

  // INT64, which keys past 2^31 would need, takes more memory for each digit
  // of a body than the body is charged for.
  bool Integer(absl::string_view text) {
    using Limits = std::numeric_limits<int32_t>;
    double value;  // holds each integer of 32 bits exactly; 2e0 is one, too
    if (!absl::SimpleAtod(text, &value) || std::trunc(value) != value ||
        value < Limits::min() || value > Limits::max()) {
      return NotAnElement(text);
    }
    if (!Element(/*is_bool=*/false)) return false;
    const auto number = static_cast<int32_t>(value);
    bytes_.append(reinterpret_cast<const char*>(&number), sizeof(number));
    return true;
  }

  bool Element(bool is_bool) {
    if (!rank_) rank_ = depth_;
    if (depth_ != *rank_ || depth_ != counts_.size()) {
      return Wrong("a number stands where a list should");
    }
    if (is_bool_ && *is_bool_ != is_bool) {
      return Wrong("numbers and booleans stand beside each other");
    }
    is_bool_ = is_bool;
    ++counts_[depth_ - 1];
    return true;
  }

  bool of_integers_;
  size_t depth_ = 0;
  std::optional<size_t> rank_;   // known from the first element on
  std::vector<int64_t> counts_;  // of the open lists, by level
  std::vector<std::optional<int64_t>> lengths_;  // by level
  std::optional<bool> is_bool_;                  // known likewise
  std::string& json_;
  std::string bytes_;
  std::string error_;
};

// Writes what it hears.
class Expander final : public nlohmann::json_sax<Json> {
 public:
  explicit Expander(const Descriptor& type) : next_(&type) {}

  std::string Take() { return std::move(json_); }
  const absl::Status& error() const { return error_; }

  bool null() override {
    if (tensor_) return Checked(tensor_->NotAnElement("null"));
    return Value("null");
  }
  bool boolean(bool value) override {
    if (tensor_) return Checked(tensor_->Bool(value));
    return Value(value ? "true" : "false");
  }
  bool number_integer(number_integer_t value) override {
    // Of integers only -0 is a negative number and 0.
    if (tensor_ && value == 0) return Number("-0.0");
    return Number(absl::StrCat(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Number(absl::StrCat(value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Number(text);
  }
  bool string(string_t& value) override {
    if (tensor_) return Checked(String(value));
    if (!IsOfEnum(value)) return false;
    Separate();
    AppendQuoted(value);
    return true;
  }
  bool binary(binary_t&) override { return false; }  // not in JSON

  bool start_object(std::size_t) override {
    if (tensor_) return Checked(tensor_->NotAnElement("an object"));
    return Open('{');
  }
  bool key(string_t& name) override {
    Separate();
    AppendQuoted(name);
    json_.push_back(':');
    Scope& scope = scopes_.back();
    scope.after_key = true;
    const FieldDescriptor* const field =
        scope.type == nullptr ? nullptr : FieldOf(*scope.type, name);
    next_ = field != nullptr && field->type() == FieldDescriptor::TYPE_MESSAGE
                ? field->message_type()
                : nullptr;
    next_is_list_ = field != nullptr && field->is_repeated();
    next_is_of_integers_ = field != nullptr && IsOfIntegers(*field);
    next_enum_ = field != nullptr && field->type() == FieldDescriptor::TYPE_ENUM
                     ? field->enum_type()
                     : nullptr;
    field_ = name;
    if (!IsTensor(next_)) return true;
    // Else each would be read, and cost what a tensor does.
    std::vector<int>& seen = scope.tensors;
    if (std::find(seen.begin(), seen.end(), field->number()) != seen.end()) {
      error_ = FieldError(name, "got it twice");
      return false;
    }
    seen.push_back(field->number());
    return true;
  }
  bool end_object() override { return Close('}'); }

  bool start_array(std::size_t) override {
    if (tensor_) return Checked(tensor_->Begin());
    if (IsTensor(next_) && !next_is_list_) {
      Separate();
      tensor_.emplace(next_is_of_integers_, json_);
      return Checked(tensor_->Begin());
    }
    next_is_list_ = false;
    return Open('[');
  }
  bool end_array() override {
    if (!tensor_) return Close(']');
    bool done = false;
    if (!Checked(tensor_->End(&done))) return false;
    if (done) {
      tensor_->Finish();
      tensor_.reset();
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    absl::string_view what = error.what();
    if (const size_t end = what.find("] "); end != absl::string_view::npos) {
      what.remove_prefix(end + 2);
    }
    error_ = absl::InvalidArgumentError(
        absl::StrCat("at byte ", position, ": ", what.substr(0, 200)));
    return false;
  }

 private:
  struct Scope {
    const Descriptor* type;
    bool is_object;
    bool is_empty = true;
    bool after_key = false;
    std::vector<int> tensors = {};  // fields that came
  };
  // As protobuf's own reader of JSON has it.
  static constexpr size_t kMaxDepth = 100;

  bool Open(char bracket) {
    if (scopes_.size() == kMaxDepth) {
      error_ = absl::InvalidArgumentError(
          absl::StrCat("got more than ", kMaxDepth, " levels"));
      return false;
    }
    Separate();
    json_.push_back(bracket);
    scopes_.push_back({.type = next_, .is_object = bracket == '{'});
    return true;
  }

  // What separates a value or a key from what stands before it. What comes next
  // in a list is of the list's type.
  void Separate() {
    if (scopes_.empty()) return;
    Scope& scope = scopes_.back();
    if (scope.after_key) {
      scope.after_key = false;
      return;
    }
    if (!scope.is_empty) json_.push_back(',');
    scope.is_empty = false;
    if (!scope.is_object) next_ = scope.type;
  }
  bool Value(absl::string_view text) {
    Separate();
    absl::StrAppend(&json_, text);
    return true;
  }
  bool Number(absl::string_view text) {
    if (tensor_) return Checked(tensor_->Number(text));
    return Value(text);
  }
  bool Close(char bracket) {
    json_.push_back(bracket);
    scopes_.pop_back();
    return true;
  }
  void AppendQuoted(const std::string& text) {
    // The text is valid UTF-8 here.
    json_.append(Json(text).dump());
  }
  bool Checked(bool good) {
    if (!good) error_ = FieldError(field_, tensor_->error());
    return good;
  }
  // Protobuf does not say in every version which names there are.
  bool IsOfEnum(const std::string& name) {
    int64_t number;  // which proto3 JSON takes too
    if (next_enum_ == nullptr || next_enum_->FindValueByName(name) != nullptr ||
        absl::SimpleAtoi(name, &number)) {
      return true;
    }
    std::string what = absl::StrCat("got \"", name.substr(0, 40), "\"");
    // The first one is _UNSPECIFIED.
    for (int i = 1; i < next_enum_->value_count(); ++i) {
      absl::StrAppend(&what, i == 1 ? ", wanted " : ", ",
                      std::string(next_enum_->value(i)->name()));
    }
    error_ = FieldError(field_, what);
    return false;
  }
  // Strings that proto3 JSON writes for numbers.
  bool String(const std::string& text) {
    if (tensor_->of_integers()) {
      int64_t number;
      return absl::SimpleAtoi(text, &number)
                 ? tensor_->Number(text)
                 : tensor_->NotAnElement("a string");
    }
    return text == "NaN" || text == "Infinity" || text == "-Infinity"
               ? tensor_->Number(absl::StrCat("\"", text, "\""))
               : tensor_->NotAnElement("a string");
  }

  std::string json_;
  absl::Status error_;
  std::vector<Scope> scopes_;
  // Of the value that comes next: the message it must be, if it must be one.
  const Descriptor* next_;
  bool next_is_list_ = false;
  bool next_is_of_integers_ = false;
  // Of strings that come next: what they must name; null: anything.
  const google::protobuf::EnumDescriptor* next_enum_ = nullptr;
  std::string field_;  // the last key
  std::optional<TensorList> tensor_;
};

}  // namespace

absl::StatusOr<std::string> ExpandTensorLists(absl::string_view json,
                                              const Descriptor& type) {
  Expander expander(type);
  if (!Json::sax_parse(json.begin(), json.end(), &expander)) {
    return expander.error();
  }
  return expander.Take();
}

}  // namespace attention::server
