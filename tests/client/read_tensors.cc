// Reads tensors as the client program does: a TENSOR argument per line of
// standard input; a line of output for each: "FLOAT32 2,3 BYTES", in hex, or
// "error: ..." Lets tests of other languages judge the program's readers.
#include <iostream>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/cli/report.h"
#include "client/cpp/cli/tensor_argument.h"

int main() {
  using attention::Tensor;
  std::string argument;
  while (std::getline(std::cin, argument)) {
    const absl::StatusOr<Tensor> tensor = attention::cli::ReadTensorArgument(
        argument, attention::v1::DATA_TYPE_FLOAT32);
    if (!tensor.ok()) {
      std::cout << attention::cli::OneLine(
                       absl::StrCat("error: ", tensor.status().message()))
                << "\n";
      continue;
    }
    const auto bytes = tensor->bytes();
    std::cout << attention::TypeName(tensor->type()) << " "
              << absl::StrJoin(tensor->shape(), ",") << " "
              << absl::BytesToHexString(
                     {reinterpret_cast<const char*>(bytes.data()),
                      bytes.size()})
              << "\n";
  }
}
