// The text of a literal, read (client/cpp/cli/literal.h).
#ifndef ATTENTION_CLIENT_CPP_CLI_LITERAL_PARSER_H_
#define ATTENTION_CLIENT_CPP_CLI_LITERAL_PARSER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/attention.pb.h"

namespace attention::cli {

struct ParsedLiteral {
  std::vector<int64_t> shape;
  // The product of `shape` elements; truth values as 0 and 1.
  std::vector<double> numbers;
  // Where in the text each of them begins.
  std::vector<size_t> places;
  bool booleans = false;
  // What dtype= says.
  std::optional<v1::DataType> type;
};

// Reads a literal; the numbers may be of any size. Errors, InvalidArgument, say
// where the text is wrong.
absl::StatusOr<ParsedLiteral> ReadLiteral(absl::string_view text);

// The number or word that begins at `place`.
absl::string_view TokenAt(absl::string_view text, size_t place);

// Whether `text` begins as a literal does: "[", "array(", "torch.tensor(".
bool BeginsLiteral(absl::string_view text);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_LITERAL_PARSER_H_
