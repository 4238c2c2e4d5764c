// NumPy's .npy files, versions 1 to 3
// (numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
//
// Read is what numpy.load() reads: bools, floats of 2 to 8 bytes and integers,
// by any of NumPy's names, in either byte order and in C or Fortran order.
// Integers that the wire lacks are widened (stored_type.h). What follows the
// array is left alone: several may stand in one file. Written is little-endian
// C order. bfloat16 has no place in the format.
#ifndef ATTENTION_CLIENT_CPP_CLI_NPY_H_
#define ATTENTION_CLIENT_CPP_CLI_NPY_H_

#include <cstdint>
#include <istream>
#include <optional>
#include <ostream>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/tensor.h"

namespace attention::cli {

// Reads a whole file from a seekable stream. Whatever the bytes, allocates no
// more than a small multiple of the stream's length; errors, InvalidArgument,
// say what is wrong with the file.
absl::StatusOr<Tensor> ReadNpy(std::istream& in);

// Where the elements of an array stand in its file.
struct NpyElements {
  v1::DataType type = v1::DATA_TYPE_UNSPECIFIED;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // bytes
  uint64_t bytes = 0;
};

// The same checks as ReadNpy(), without reading the elements. Nothing if they
// cannot be used as they stand there: in Fortran order, big endian, or of a
// type that the wire lacks.
absl::StatusOr<std::optional<NpyElements>> FindNpyElements(std::istream& in);

// Whether tensors of `type` can be written; InvalidArgument if not.
absl::Status CheckNpyType(v1::DataType type);

// Writes version 1. Errors: as CheckNpyType(). Whether the bytes arrived is the
// stream's to tell.
absl::Status WriteNpy(const Tensor& tensor, std::ostream& out);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_NPY_H_
