// Python literals, as ast.literal_eval() reads them: what the header of a .npy
// file is written in.
#ifndef ATTENTION_CLIENT_CPP_CLI_PYTHON_LITERAL_H_
#define ATTENTION_CLIENT_CPP_CLI_PYTHON_LITERAL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attention::cli {

struct PythonLiteral {
  enum class Kind { kNone, kBoolean, kInteger, kString, kTuple, kList, kDict };

  Kind kind = Kind::kNone;
  // kInteger; kBoolean: 0 or 1.
  int64_t number = 0;
  // kString: its bytes.
  std::string text;
  // kTuple, kList: the elements. kDict: key, value, key, value, ..., as
  // written: a later key overrides an equal one before it.
  std::vector<PythonLiteral> items;
};

// `longs`: whether integers may end in an L, as Python 2 wrote them.
//
// Not read, as no header needs them: floats, complex numbers, bytes, sets,
// integers beyond int64_t, backslashes in strings, and what is nested deeper
// than 100. Errors, InvalidArgument, say where the text is wrong.
absl::StatusOr<PythonLiteral> ParsePythonLiteral(absl::string_view text,
                                                 bool longs);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_PYTHON_LITERAL_H_
