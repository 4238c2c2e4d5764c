// Kinds of flags that several commands have.
//
// Each function adds a flag to `app` that reads into its target, and throws
// CLI::ValidationError, "--name: got 'text', wanted ...", while parsing.
#ifndef ATTENTION_CLIENT_CPP_CLI_FLAG_TYPES_H_
#define ATTENTION_CLIENT_CPP_CLI_FLAG_TYPES_H_

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "attention/v1/attention.pb.h"
#include "command_line/duration.h"

namespace attention::cli {

// The names of an enum's values, lower case, with dashes and without prefix.
template <typename Enum>
using Names = std::map<std::string, Enum>;

inline const Names<v1::DataType> kFloatTypes = {
    {"float32", v1::DATA_TYPE_FLOAT32},
    {"float16", v1::DATA_TYPE_FLOAT16},
    {"bfloat16", v1::DATA_TYPE_BFLOAT16},
    {"float64", v1::DATA_TYPE_FLOAT64}};
// What a session stores.
inline const Names<v1::DataType> kStoredTypes = {
    {"float32", v1::DATA_TYPE_FLOAT32},
    {"float16", v1::DATA_TYPE_FLOAT16},
    {"bfloat16", v1::DATA_TYPE_BFLOAT16},
    {"float64", v1::DATA_TYPE_FLOAT64},
    {"int8", v1::DATA_TYPE_INT8},
    {"float8-e4m3", v1::DATA_TYPE_FLOAT8_E4M3}};
inline const Names<v1::Causal> kCausals = {
    {"top-left", v1::CAUSAL_TOP_LEFT},
    {"bottom-right", v1::CAUSAL_BOTTOM_RIGHT}};

// Hands a flag's text to `use`, which returns what was wanted if it is wrong,
// or nothing.
template <typename Use>
CLI::Option* AddText(CLI::App& app, const std::string& name, Use use,
                     const std::string& help, const std::string& type) {
  return app
      .add_option_function<std::string>(
          name,
          [name, use = std::move(use)](const std::string& text) {
            const std::string wrong = use(text);
            if (!wrong.empty()) {
              throw CLI::ValidationError(
                  name, absl::StrCat("got '", text, "', wanted ", wrong));
            }
          },
          help)
      ->type_name(type);
}

// One of `names`, which must outlive `app`; also in capitals, or with
// underscores for dashes.
template <typename Enum, typename Set>
CLI::Option* AddEnum(CLI::App& app, const std::string& name,
                     const Names<Enum>& names, Set set,
                     const std::string& help) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : names) keys.push_back(key);
  const std::string all = absl::StrJoin(keys, "|");
  return AddText(
      app, name,
      [&names, set, all](const std::string& text) -> std::string {
        const auto found = names.find(
            absl::StrReplaceAll(absl::AsciiStrToLower(text), {{"_", "-"}}));
        if (found == names.end()) return all;
        set(found->second);
        return "";
      },
      help, all);
}

template <typename T>
bool ParseNumber(absl::string_view text, T& number) {
  if constexpr (std::is_same_v<T, double>) {
    return absl::SimpleAtod(text, &number);
  } else {
    return absl::SimpleAtoi(text, &number);
  }
}

// A list of numbers, separated by commas; handed over whole.
template <typename T, typename Set>
CLI::Option* AddList(CLI::App& app, const std::string& name, Set set,
                     const std::string& help) {
  return AddText(
      app, name,
      [set](const std::string& text) -> std::string {
        std::vector<T> numbers;
        for (absl::string_view item : absl::StrSplit(text, ',')) {
          if (!ParseNumber(item, numbers.emplace_back())) {
            return "numbers separated by commas";
          }
        }
        return set(numbers);
      },
      help, "N,N,...");
}

// A finite time above 0 (or 0 too).
inline CLI::Option* AddDuration(CLI::App& app, const std::string& name,
                                absl::Duration& time, const std::string& help,
                                bool zero = false) {
  return AddText(
      app, name,
      [&time, zero](const std::string& text) -> std::string {
        const auto parsed = command_line::ParseDuration(text);
        const bool good = parsed && (*parsed > absl::ZeroDuration() ||
                                     (zero && *parsed == absl::ZeroDuration()));
        if (!good || *parsed == absl::InfiniteDuration()) {
          return absl::StrCat(command_line::kWantedDuration, ", ",
                              zero ? "0 or more" : "above 0");
        }
        time = *parsed;
        return "";
      },
      help, "TIME");
}

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_FLAG_TYPES_H_
