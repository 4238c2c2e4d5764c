// Hugging Face's .safetensors files: eight bytes of header length, a JSON
// header, then the tensors' bytes (huggingface.co/docs/safetensors).
//
// Element types: F32 F16 BF16 F64 BOOL I8 I32 I64.
#ifndef ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_
#define ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_

#include <istream>
#include <map>
#include <ostream>
#include <string>

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

// Whether the bytes arrived is the stream's to tell.
void WriteSafetensors(const std::map<std::string, const Tensor*>& tensors,
                      std::ostream& out);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_H_
