#include "client/cpp/cli/tensor_flags.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/cli/literal.h"

namespace attention::cli {
namespace {

absl::Status OfFlag(const char* flag, const absl::Status& status) {
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message()));
}

}  // namespace

absl::Status ReadTensorFlag(const char* flag, const std::string& argument,
                            v1::DataType literal_type, Tensor& tensor) {
  absl::StatusOr<Tensor> read = ReadTensorArgument(argument, literal_type);
  if (!read.ok()) return OfFlag(flag, read.status());
  tensor = *std::move(read);
  return absl::OkStatus();
}

absl::Status ReadTensorFlag(const char* flag, const std::string& argument,
                            v1::DataType literal_type, TensorInput& tensor) {
  absl::StatusOr<TensorInput> read = OpenTensorArgument(argument, literal_type);
  if (!read.ok()) return OfFlag(flag, read.status());
  tensor = *std::move(read);
  return absl::OkStatus();
}

absl::Status CheckStandardInput(
    std::initializer_list<std::pair<const char*, const std::string&>>
        arguments) {
  const char* reader = nullptr;
  for (const auto& [flag, argument] : arguments) {
    if (argument != kStandardInput) continue;
    if (reader != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          flag, ": got '-', but ", reader, " reads standard input already"));
    }
    reader = flag;
  }
  return absl::OkStatus();
}

absl::Status ReadTargetFlag(const char* flag, const std::string& file,
                            const char* name, v1::DataType type,
                            std::optional<TensorTarget>& target) {
  if (file.empty()) return absl::OkStatus();
  absl::StatusOr<TensorTarget> parsed = ParseTarget(file, name);
  absl::Status status = parsed.status();
  if (status.ok()) status = CheckTarget(*parsed, type);
  if (!status.ok()) return OfFlag(flag, status);
  target = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status CheckApart(
    std::initializer_list<
        std::pair<const char*, const std::optional<TensorTarget>&>>
        targets) {
  for (const auto& [flag, target] : targets) {
    for (const auto& [other_flag, other] : targets) {
      if (&target == &other) break;
      if (target && other && SamePlace(*target, *other)) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, ": ", target->path, ": ", other_flag,
                         " would be written to the same place"));
      }
    }
  }
  return absl::OkStatus();
}

void Delivery::Add(const char* name, const Tensor& tensor,
                   const std::optional<TensorTarget>& target) {
  if (target) {
    files_.push_back({*target, &tensor});
    return;
  }
  if (labelled_) out_ << name << ":\n";
  out_ << FormatLiteral(tensor) << "\n";
}

}  // namespace attention::cli
