// Tensors as people write them: [[1, 0], [0, 1]].
//
// Arrays of numbers, nested evenly, or of true and false; NaN, inf and -inf are
// numbers too, in any case and also as Infinity. Elements are separated by
// commas, or all by spaces and line breaks. So this reads what numpy, torch and
// jax print, also with array(...), tensor(..., dtype=torch.float16) and so on
// around it, unless they left numbers out:
//
//   [[1. 0.]                       tensor([[1., 0.],
//    [0. 1.]]                              [0., 1.]], dtype=torch.float64)
#ifndef ATTENTION_CLIENT_CPP_CLI_LITERAL_H_
#define ATTENTION_CLIENT_CPP_CLI_LITERAL_H_

#include <string>

#include "absl/status/statusor.h"
#include "attention/tensor.h"

namespace attention::cli {

// Parses a literal: of the type that its dtype= says, else true and false give
// a BOOL tensor, numbers one of `type`. Errors, InvalidArgument, say where the
// text is wrong, or which number the type cannot hold.
absl::StatusOr<Tensor> ParseLiteral(const std::string& text, v1::DataType type);

// The tensor as a literal, a row a line, each element in the fewest digits that
// read back to it.
std::string FormatLiteral(const Tensor& tensor);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_LITERAL_H_
