#include "server/inference/parameters.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "attention/v1/attention.pb.h"
#include "base/field_error.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "server/inference/model.h"

namespace attention::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using wire::InferParameter;

constexpr absl::string_view kReserved[] = {
    "sequence_id", "sequence_start",   "sequence_end",
    "priority",    "timeout",          "headers",
    "binary_data", "binary_data_size", "binary_data_output"};

// The lists of a request beside its options.
struct List {
  const char* name;
  std::vector<int64_t> wire::RequestFields::* target;
};

constexpr List kLists[] = {
    {"valid_lengths", &wire::RequestFields::valid_lengths},
    {"query_starts", &wire::RequestFields::query_starts},
    {"key_starts", &wire::RequestFields::key_starts}};

std::string PathOf(const InferParameter& parameter) {
  return absl::StrCat("parameters.", Shown(parameter.name));
}

// What came, for errors.
std::string Got(const InferParameter& parameter) {
  return std::visit(
      [](const auto& value) -> std::string {
        using Value = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, std::monostate>) {
          return "no value";
        } else if constexpr (std::is_same_v<Value, bool>) {
          return value ? "true" : "false";
        } else if constexpr (std::is_same_v<Value, std::string>) {
          return absl::StrCat("\"", Shown(value), "\"");
        } else {
          return absl::StrCat(value);
        }
      },
      parameter.value);
}

absl::Status Wanted(const InferParameter& parameter, absl::string_view wanted) {
  return FieldError(PathOf(parameter),
                    absl::StrCat("got ", Got(parameter), ", wanted ", wanted));
}

std::optional<bool> ToBool(const InferParameter& parameter) {
  if (const auto* value = std::get_if<bool>(&parameter.value)) return *value;
  bool parsed;
  const auto* text = std::get_if<std::string>(&parameter.value);
  if (text != nullptr && absl::SimpleAtob(*text, &parsed)) return parsed;
  return std::nullopt;
}

std::optional<int64_t> ToInteger(const InferParameter& parameter) {
  if (const auto* value = std::get_if<int64_t>(&parameter.value)) return *value;
  if (const auto* value = std::get_if<uint64_t>(&parameter.value)) {
    constexpr auto kMost =
        static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (*value <= kMost) return static_cast<int64_t>(*value);
  }
  int64_t parsed;
  const auto* text = std::get_if<std::string>(&parameter.value);
  if (text != nullptr && absl::SimpleAtoi(*text, &parsed)) return parsed;
  return std::nullopt;
}

std::optional<double> ToDouble(const InferParameter& parameter) {
  if (const auto* value = std::get_if<double>(&parameter.value)) return *value;
  if (const auto* value = std::get_if<int64_t>(&parameter.value)) {
    return static_cast<double>(*value);
  }
  if (const auto* value = std::get_if<uint64_t>(&parameter.value)) {
    return static_cast<double>(*value);
  }
  double parsed;
  const auto* text = std::get_if<std::string>(&parameter.value);
  if (text != nullptr && absl::SimpleAtod(*text, &parsed)) return parsed;
  return std::nullopt;
}

// "CAUSAL_", of which the names of the enum's values begin.
absl::string_view PrefixOf(const EnumDescriptor& type) {
  absl::string_view name = type.value(0)->name();
  absl::ConsumeSuffix(&name, "UNSPECIFIED");
  return name;
}

// By name, whole or without the prefix and in any case, or by number.
std::optional<int> ToEnum(const InferParameter& parameter,
                          const EnumDescriptor& type) {
  if (const auto* text = std::get_if<std::string>(&parameter.value)) {
    const std::string name = absl::AsciiStrToUpper(*text);
    const auto* value = type.FindValueByName(name);
    if (value == nullptr) {
      value = type.FindValueByName(absl::StrCat(PrefixOf(type), name));
    }
    if (value != nullptr) return value->number();
  }
  const std::optional<int64_t> number = ToInteger(parameter);
  // Proto3 takes numbers without a name; whose they are is checked later.
  if (!number || *number < 0 || *number > std::numeric_limits<int>::max()) {
    return std::nullopt;
  }
  return static_cast<int>(*number);
}

std::string NamesOf(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 1; i < type.value_count(); ++i) {
    absl::string_view name = type.value(i)->name();
    absl::ConsumePrefix(&name, PrefixOf(type));
    names.push_back(absl::AsciiStrToLower(name));
  }
  return absl::StrJoin(names, ", ");
}

// A list of numbers with commas between them, or one number. Nothing if it is
// none; `*more` if there are more than `most`.
template <typename Number, typename Parse>
std::optional<std::vector<Number>> ToList(const InferParameter& parameter,
                                          size_t most, const Parse& parse,
                                          bool* more) {
  std::vector<Number> numbers;
  const auto* text = std::get_if<std::string>(&parameter.value);
  if (text == nullptr) {
    const auto number = parse(parameter);
    if (!number) return std::nullopt;
    return std::vector<Number>{*number};
  }
  if (absl::StripAsciiWhitespace(*text).empty()) return numbers;
  for (absl::string_view item : absl::StrSplit(*text, ',')) {
    if (numbers.size() == most) {
      *more = true;
      return std::nullopt;
    }
    const auto number = parse(
        {.name = "", .value = std::string(absl::StripAsciiWhitespace(item))});
    if (!number) return std::nullopt;
    numbers.push_back(*number);
  }
  return numbers;
}

absl::Status MoreThan(const InferParameter& parameter, size_t most) {
  return LimitError(
      PathOf(parameter),
      absl::StrCat("got more than ", most, " numbers, the most there are"));
}

void AddNames(const Descriptor& type, const std::string& prefix,
              std::vector<std::string>* names) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string name = absl::StrCat(prefix, field.name());
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      AddNames(*field.message_type(), absl::StrCat(name, "."), names);
    } else {
      names->push_back(name);
    }
  }
}

absl::Status Unknown(const InferParameter& parameter) {
  std::vector<std::string> names;
  AddNames(*v1::AttentionOptions::descriptor(), "", &names);
  for (const List& list : kLists) names.emplace_back(list.name);
  return FieldError(
      PathOf(parameter),
      absl::StrCat("unknown, wanted one of ", absl::StrJoin(names, ", ")));
}

absl::Status SetNumbers(const InferParameter& parameter,
                        const FieldDescriptor& field, Message* message) {
  bool more = false;
  const auto numbers = ToList<double>(
      parameter, std::numeric_limits<size_t>::max(), ToDouble, &more);
  if (!numbers || field.cpp_type() != FieldDescriptor::CPPTYPE_DOUBLE) {
    return Wanted(parameter, "numbers with commas between them");
  }
  const Reflection& reflection = *message->GetReflection();
  reflection.ClearField(message, &field);
  for (double number : *numbers) {
    reflection.AddDouble(message, &field, number);
  }
  return absl::OkStatus();
}

absl::Status SetField(const InferParameter& parameter,
                      const FieldDescriptor& field, Message* message) {
  if (field.is_repeated()) return SetNumbers(parameter, field, message);
  const Reflection& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      const auto value = ToBool(parameter);
      if (!value) return Wanted(parameter, "true or false");
      reflection.SetBool(message, &field, *value);
      break;
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      const auto value = ToInteger(parameter);
      if (!value) return Wanted(parameter, "an integer");
      reflection.SetInt64(message, &field, *value);
      break;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const auto value = ToDouble(parameter);
      if (!value) return Wanted(parameter, "a number");
      reflection.SetDouble(message, &field, *value);
      break;
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const auto value = ToEnum(parameter, *field.enum_type());
      if (!value) return Wanted(parameter, NamesOf(*field.enum_type()));
      reflection.SetEnumValue(message, &field, *value);
      break;
    }
    default:
      return Unknown(parameter);
  }
  return absl::OkStatus();
}

// Of the field `name` of `message`, "left" or "window.left".
absl::Status SetOption(const InferParameter& parameter, absl::string_view name,
                       Message* message) {
  const size_t dot = name.find('.');
  const FieldDescriptor* const field =
      message->GetDescriptor()->FindFieldByName(
          std::string(name.substr(0, dot)));
  if (field == nullptr) return Unknown(parameter);
  const bool nested = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  if (nested != (dot != absl::string_view::npos)) return Unknown(parameter);
  if (!nested) return SetField(parameter, *field, message);
  if (field->is_repeated()) return Unknown(parameter);
  return SetOption(parameter, name.substr(dot + 1),
                   message->GetReflection()->MutableMessage(message, field));
}

absl::Status SetParameter(const InferParameter& parameter, size_t most_numbers,
                          wire::RequestFields* fields) {
  for (const List& list : kLists) {
    if (parameter.name != list.name) continue;
    bool more = false;
    auto numbers = ToList<int64_t>(parameter, most_numbers, ToInteger, &more);
    if (more) return MoreThan(parameter, most_numbers);
    if (!numbers) return Wanted(parameter, "integers with commas between them");
    fields->*list.target = *std::move(numbers);
    return absl::OkStatus();
  }
  return SetOption(parameter, parameter.name, &fields->options);
}

}  // namespace

bool IsReservedParameter(absl::string_view name) {
  return absl::StartsWith(name, "triton_") ||
         std::find(std::begin(kReserved), std::end(kReserved), name) !=
             std::end(kReserved);
}

absl::Status SetParameters(const std::vector<InferParameter>& parameters,
                           size_t most_numbers, wire::RequestFields* fields) {
  for (const InferParameter& parameter : parameters) {
    if (IsReservedParameter(parameter.name)) continue;
    absl::Status status = SetParameter(parameter, most_numbers, fields);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<NamedPlace>> ReadTensorParameters(
    absl::string_view path, const std::vector<InferParameter>& parameters) {
  NamedPlace place;
  bool any = false;
  for (const InferParameter& parameter : parameters) {
    if (IsReservedParameter(parameter.name)) continue;
    const std::string name =
        absl::StrCat(path, ".parameters.", Shown(parameter.name));
    if (parameter.name == "shared_memory_region") {
      const auto* text = std::get_if<std::string>(&parameter.value);
      if (text == nullptr || text->empty()) {
        return FieldError(name, "wanted the name of a region");
      }
      place.region = *text;
      any = true;
    } else if (parameter.name == "shared_memory_offset" ||
               parameter.name == "shared_memory_byte_size") {
      const std::optional<int64_t> number = ToInteger(parameter);
      if (!number || *number < 0) {
        return FieldError(name, absl::StrCat("got ", Got(parameter),
                                             ", wanted a number of bytes"));
      }
      (parameter.name == "shared_memory_offset" ? place.offset : place.bytes) =
          *number;
      any = true;
    } else if (parameter.name == "classification") {
      if (ToInteger(parameter) == 0) continue;
      return FieldError(name, "got it, wanted none: no output has classes");
    } else {
      return FieldError(name, "unknown, wanted none");
    }
  }
  if (!any) return std::nullopt;
  if (place.region.empty()) {
    return FieldError(absl::StrCat(path, ".parameters.shared_memory_region"),
                      "missing, wanted it with the other shared_memory_ ones");
  }
  return place;
}

}  // namespace attention::server
