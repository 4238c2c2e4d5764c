#include "client/cpp/cli/python_literal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace attention::cli {
namespace {

using Kind = PythonLiteral::Kind;
using ::testing::HasSubstr;

PythonLiteral Parse(const std::string& text) {
  const auto parsed = ParsePythonLiteral(text, /*longs=*/false);
  EXPECT_TRUE(parsed.ok()) << text << ": " << parsed.status();
  return parsed.ok() ? *parsed : PythonLiteral();
}

TEST(ParsePythonLiteral, Integers) {
  for (const char* text : {"12", "+12", "- -12", "0xC", "0o14", "0b1100", "1_2",
                           "(12)", " 12 # twelve", "12L", "0x_c"}) {
    const std::string s = text;
    const auto parsed = ParsePythonLiteral(s, /*longs=*/true);
    // Python negates a number once.
    ASSERT_EQ(parsed.ok(), s != "- -12") << text;
    if (parsed.ok()) {
      EXPECT_EQ(parsed->number, 12) << text;
    }
  }
  EXPECT_EQ(Parse("-9223372036854775808").number, INT64_MIN);
  EXPECT_EQ(Parse("000").number, 0);
}

TEST(ParsePythonLiteral, Strings) {
  for (const char* text : {"'ab'", "\"ab\"", "'''ab'''", "u'ab'", "R\"ab\"",
                           "'a' 'b'", "('a'\n\"b\")"}) {
    EXPECT_EQ(Parse(text).text, "ab") << text;
  }
  EXPECT_EQ(Parse("''").text, "");
}

TEST(ParsePythonLiteral, Collections) {
  EXPECT_EQ(Parse("()").kind, Kind::kTuple);
  EXPECT_EQ(Parse("(1,)").items.size(), 1);
  EXPECT_EQ(Parse("(1)").kind, Kind::kInteger);
  EXPECT_EQ(Parse("[1, (2, 3,), None]").items.size(), 3);
  const PythonLiteral dict = Parse("{'a': True, 'b': False,}");
  ASSERT_EQ(dict.items.size(), 4);
  EXPECT_EQ(dict.items[0].text, "a");
  EXPECT_EQ(dict.items[1].kind, Kind::kBoolean);
  EXPECT_EQ(dict.items[1].number, 1);
  EXPECT_EQ(dict.items[3].number, 0);
}

TEST(ParsePythonLiteral, Errors) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "wrong at character 1 (the end)"},
      {"1 2", "wrong at character 3 (2)"},
      {"1.5", "wrong at character 2 (.5)"},
      {"1L", "wrong at character"},
      {"012", "wrong at character 1 (012)"},
      {"9223372036854775808", "wrong at character 1 (922337203685)"},
      {"1__0", "wrong at character"},
      {"0x", "wrong at character"},
      {"Truest", "wrong at character 1"},
      {"true", "wrong at character 1"},
      {"'a", "wrong at character 1"},
      {"'a\nb'", "wrong at character 1"},
      {"'a\\x62'", "wrong at character 1"},
      {"b'a'", "wrong at character 1"},
      {"(1 2)", "wrong at character 4"},
      {"(,)", "wrong at character 2"},
      {"(1,,)", "wrong at character 4"},
      {"{1, 2}", "wrong at character 3"},
      {"{'a': 1 'b': 2}", "wrong at character 9"},
      {"[1", "wrong at character 3 (the end)"},
      {std::string("1 #\0", 4), "wrong at character 4"},
      {std::string(200, '['), "wrong at character 101"},
  };
  for (const auto& [text, error] : cases) {
    const auto parsed = ParsePythonLiteral(text, /*longs=*/false);
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(error))
        << text;
  }
}

}  // namespace
}  // namespace attention::cli
