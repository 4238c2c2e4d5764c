// Flags whose values are tensors to read, or places for tensors to be written
// to. Errors begin with the flag's name.
#ifndef ATTENTION_CLIENT_CPP_CLI_TENSOR_FLAGS_H_
#define ATTENTION_CLIENT_CPP_CLI_TENSOR_FLAGS_H_

#include <initializer_list>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "attention/tensor.h"
#include "client/cpp/cli/tensor_argument.h"

namespace attention::cli {

// Reads what a flag names; nothing into an optional tensor if `argument` is
// empty.
absl::Status ReadTensorFlag(const char* flag, const std::string& argument,
                            v1::DataType literal_type, Tensor& tensor);
absl::Status ReadTensorFlag(const char* flag, const std::string& argument,
                            v1::DataType literal_type, TensorInput& tensor);
template <typename Input>
absl::Status ReadTensorFlag(const char* flag, const std::string& argument,
                            v1::DataType literal_type,
                            std::optional<Input>& tensor) {
  if (argument.empty()) return absl::OkStatus();
  return ReadTensorFlag(flag, argument, literal_type, tensor.emplace());
}

// What one flag has read from standard input is not there for the next.
// `arguments` are flags and their values.
absl::Status CheckStandardInput(
    std::initializer_list<std::pair<const char*, const std::string&>>
        arguments);

// Where a tensor called `name` of this type goes; nothing if `file` is empty.
// Checked before the call, so that no computation is lost to a wrong name.
absl::Status ReadTargetFlag(const char* flag, const std::string& file,
                            const char* name, v1::DataType type,
                            std::optional<TensorTarget>& target);

// Whether any two of the flags name one place.
absl::Status CheckApart(
    std::initializer_list<
        std::pair<const char*, const std::optional<TensorTarget>&>>
        targets);

// Prints or collects for writing the tensors of an answer, which must stay
// until WriteFiles() has returned.
class Delivery {
 public:
  Delivery(bool labelled, std::ostream& out) : labelled_(labelled), out_(out) {}

  void Add(const char* name, const Tensor& tensor,
           const std::optional<TensorTarget>& target);
  void Add(const char* name, const std::optional<Tensor>& tensor,
           const std::optional<TensorTarget>& target) {
    if (tensor) Add(name, *tensor, target);
  }

  absl::Status WriteFiles() const { return WriteTensors(files_); }

 private:
  const bool labelled_;
  std::ostream& out_;
  std::vector<TensorOutput> files_;
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_TENSOR_FLAGS_H_
