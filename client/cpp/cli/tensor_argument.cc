#include "client/cpp/cli/tensor_argument.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/cli/literal.h"
#include "client/cpp/cli/npy.h"
#include "client/cpp/cli/safetensors.h"

namespace attention::cli {
namespace {

constexpr char kNpy[] = ".npy";
constexpr char kSafetensors[] = ".safetensors";

bool IsNpy(const std::string& path) { return absl::EndsWith(path, kNpy); }

bool IsLiteral(absl::string_view text) {
  return absl::StartsWith(absl::StripLeadingAsciiWhitespace(text), "[");
}

// Path and tensor name of "file.safetensors" and "file.safetensors:name".
std::optional<TensorTarget> SplitSafetensors(const std::string& text) {
  if (absl::EndsWith(text, kSafetensors)) return TensorTarget{text, ""};
  const size_t found = text.find(absl::StrCat(kSafetensors, ":"));
  if (found == std::string::npos) return std::nullopt;
  const size_t colon = found + std::strlen(kSafetensors);
  return TensorTarget{text.substr(0, colon), text.substr(colon + 1)};
}

absl::Status Prefixed(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<std::ifstream> Open(const std::string& path) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (kind != std::filesystem::file_type::regular) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file"));
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot open: ", std::strerror(errno)));
  }
  return in;
}

template <typename Write>
absl::Status WriteFile(const std::string& path, Write write) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  if (out) {
    absl::Status status = write(out);
    if (!status.ok()) return Prefixed(path, status);
    out.close();
  }
  if (out) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": cannot write: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<Tensor> ReadTensorArgument(const std::string& argument,
                                          v1::DataType literal_type) {
  if (IsLiteral(argument)) return ParseLiteral(argument, literal_type);
  const std::optional<TensorTarget> safetensors = SplitSafetensors(argument);
  if (!IsNpy(argument) && !safetensors) {
    return absl::InvalidArgumentError(
        absl::StrCat("got '", argument,
                     "', wanted a literal such as [[1, 0], [0, 1]], file.npy, "
                     "file.safetensors or file.safetensors:name"));
  }
  const std::string& path = safetensors ? safetensors->path : argument;
  absl::StatusOr<std::ifstream> in = Open(path);
  if (!in.ok()) return in.status();
  absl::StatusOr<Tensor> tensor =
      safetensors ? ReadSafetensors(*in, safetensors->name) : ReadNpy(*in);
  if (!tensor.ok()) return Prefixed(path, tensor.status());
  return tensor;
}

absl::StatusOr<TensorTarget> ParseTarget(const std::string& argument,
                                         const std::string& default_name) {
  if (std::optional<TensorTarget> target = SplitSafetensors(argument)) {
    if (target->name.empty()) target->name = default_name;
    return *std::move(target);
  }
  if (IsNpy(argument)) return TensorTarget{argument, ""};
  return absl::InvalidArgumentError(
      absl::StrCat("got '", argument,
                   "', wanted file.npy, file.safetensors or "
                   "file.safetensors:name"));
}

absl::Status CheckTargetType(const TensorTarget& target, v1::DataType type) {
  return IsNpy(target.path) ? CheckNpyType(type) : absl::OkStatus();
}

absl::Status WriteTensors(const std::vector<TargetedTensor>& tensors) {
  std::map<std::string, std::map<std::string, const Tensor*>> files;
  for (const TargetedTensor& item : tensors) {
    if (!files[item.target.path]
             .emplace(item.target.name, item.tensor)
             .second) {
      return absl::InvalidArgumentError(absl::StrCat(
          item.target.path, ": two tensors would be written to one place"));
    }
  }
  for (const auto& [path, named] : files) {
    absl::Status status = WriteFile(path, [&](std::ostream& out) {
      // No entry is without a tensor, which the analyzer cannot know.
      // NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage)
      if (IsNpy(path)) return WriteNpy(*named.begin()->second, out);
      WriteSafetensors(named, out);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace attention::cli
