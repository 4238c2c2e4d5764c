// Tensors named on the command line: literals and files.
#ifndef ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_
#define ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/tensor.h"
#include "client/cpp/cli/mapped_file.h"
#include "client/cpp/cli/npy.h"

namespace attention::cli {

// The argument that stands for standard input.
inline constexpr char kStandardInput[] = "-";

// Reads "[[1, 0], [0, 1]]" (numbers become `literal_type`), "file.npy",
// "file.safetensors" or "file.safetensors:name"; "-" reads a literal or the
// bytes of a .npy from standard input, to its end.
absl::StatusOr<Tensor> ReadTensorArgument(const std::string& argument,
                                          v1::DataType literal_type);

// A tensor that was read, or that stands in a mapped file.
class TensorInput {
 public:
  TensorInput() = default;
  explicit TensorInput(Tensor tensor) : tensor_(std::move(tensor)) {}
  TensorInput(MappedFile file, const NpyElements& elements)
      : file_(std::move(file)), elements_(elements) {}

  // Valid while the object lives.
  TensorSpan span() const;
  v1::DataType type() const;
  // Whether it stands in a file that has become shorter since.
  bool Shortened() const;
  // Gives back the memory of a mapped file's pages; reading takes it again.
  void DropPages() const;

 private:
  Tensor tensor_;
  std::optional<MappedFile> file_;
  NpyElements elements_;
};

// Files of .npy that are at least so large are mapped, not read.
inline constexpr uint64_t kMapFromBytes = uint64_t{64} << 20;

// As ReadTensorArgument(), but that a large .npy whose elements can be used as
// they stand there is mapped: it may be larger than memory.
absl::StatusOr<TensorInput> OpenTensorArgument(
    const std::string& argument, v1::DataType literal_type,
    uint64_t map_from_bytes = kMapFromBytes);

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

// Whether a tensor of `type` can be written there: the format has the type, the
// folder is there and can be written to, and so can the file, if there is one.
// Changes nothing.
absl::Status CheckTarget(const TensorTarget& target, v1::DataType type);

// Whether two targets are one place, whatever the links on the way.
bool SamePlace(const TensorTarget& a, const TensorTarget& b);

struct TensorOutput {
  TensorTarget target;
  const Tensor* tensor = nullptr;
};

// Writes each tensor. A .npy file is replaced; of a .safetensors file only the
// tensors of these names, unless it is empty or a pipe. Files change whole or
// not at all (output_file.h), and none before all are written. Waits while
// another client adds to a .safetensors file in the same folder. Two tensors
// for one place are an error.
absl::Status WriteTensors(const std::vector<TensorOutput>& tensors);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_TENSOR_ARGUMENT_H_
