// Hugging Face's .safetensors files: eight bytes of header length, a JSON
// header, then the tensors' bytes (huggingface.co/docs/safetensors).
//
// Files are checked whole, as strictly as the official library does: a name
// twice, tensors that overlap or leave bytes of the file to none, a byte order
// mark, and metadata that is not text are errors, whatever tensor is wanted.
//
// Element types read: F32 F16 BF16 F64 BOOL I8 I32 I64, and, widened
// (stored_type.h), U8 I16 U16 U32 U64.
#ifndef ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_
#define ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_

#include <istream>
#include <map>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/tensor.h"

namespace attention::cli {

// Reads one tensor from a seekable stream; an empty name means the only one.
// Reads header and that tensor alone and allocates no more than a small
// multiple of them. Errors: NotFound, listing the names there are, if `name` is
// not among them or is left out where there are several; InvalidArgument if the
// file is malformed.
absl::StatusOr<Tensor> ReadSafetensors(std::istream& in,
                                       const std::string& name);

// Whether a tensor can have this name: InvalidArgument if not.
absl::Status CheckSafetensorsName(const std::string& name);

// Whether a file is one that WriteSafetensors() can add to; InvalidArgument if
// not.
absl::Status CheckSafetensors(std::istream& in);

// Writes `tensors` and, unless `kept` is null, everything of that file, a
// seekable stream, but tensors of the same names. Copies in small pieces.
// Errors, InvalidArgument: `kept` is malformed, or the header grew too large.
// Whether the bytes arrived is the stream's to tell.
absl::Status WriteSafetensors(
    const std::map<std::string, const Tensor*>& tensors, std::istream* kept,
    std::ostream& out);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_
