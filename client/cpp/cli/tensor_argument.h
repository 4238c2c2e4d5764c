// Tensors named on the command line: literals and files.
#ifndef ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_
#define ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/tensor.h"

namespace attention::cli {

// Reads "[[1, 0], [0, 1]]" (numbers become `literal_type`), "file.npy",
// "file.safetensors" or "file.safetensors:name".
absl::StatusOr<Tensor> ReadTensorArgument(const std::string& argument,
                                          v1::DataType literal_type);

// Where a tensor goes: "file.npy", "file.safetensors" or
// "file.safetensors:name".
struct TensorTarget {
  std::string path;
  // Name within a .safetensors file; empty for .npy.
  std::string name;
};

// Parses a target; a .safetensors tensor without a name is called
// `default_name`.
absl::StatusOr<TensorTarget> ParseTarget(const std::string& argument,
                                         const std::string& default_name);

// Whether a tensor of `type` can be written there.
absl::Status CheckTargetType(const TensorTarget& target, v1::DataType type);

struct TargetedTensor {
  TensorTarget target;
  const Tensor* tensor = nullptr;
};

// Writes each tensor, those for one .safetensors file together, replacing files
// that are there. Two tensors for the same place are an error. On failure files
// may have been written or be incomplete.
absl::Status WriteTensors(const std::vector<TargetedTensor>& tensors);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_
