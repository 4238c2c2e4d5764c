// The command line in the test's own process.
#ifndef ATTENTION_TESTS_CLIENT_RUN_WITH_H_
#define ATTENTION_TESTS_CLIENT_RUN_WITH_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "client/cpp/cli/command_line.h"

namespace attention::cli {

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

inline Outcome RunWith(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv = {"attention_client"};
  for (const std::string& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  std::ostringstream out;
  std::ostringstream err;
  const int code = Run(static_cast<int>(argv.size()), argv.data(),
                       /*utf8=*/true, out, err);
  return {code, out.str(), err.str()};
}

inline void ExpectOneLine(const std::string& text) {
  EXPECT_THAT(text, ::testing::StartsWith("attention_client: "));
  EXPECT_EQ(text.find('\n'), text.size() - 1) << text;
}

}  // namespace attention::cli

#endif  // ATTENTION_TESTS_CLIENT_RUN_WITH_H_
