#include "client/cpp/cli/tensor_argument.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/cli/literal.h"
#include "client/cpp/cli/literal_parser.h"
#include "client/cpp/cli/npy.h"
#include "client/cpp/cli/output_file.h"
#include "client/cpp/cli/safetensors.h"

namespace attention::cli {
namespace {

constexpr char kNpy[] = ".npy";
constexpr char kSafetensors[] = ".safetensors";

bool IsNpy(const std::string& path) { return absl::EndsWith(path, kNpy); }

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

// Numbers as text take more room than in a message, which has at most 2 GiB.
constexpr size_t kMaxStandardInput = size_t{8} << 30;

// A literal or the bytes of a .npy.
absl::StatusOr<Tensor> ReadStandardInput(v1::DataType literal_type) {
  std::string text;
  char block[1 << 16];
  while (std::cin.read(block, sizeof(block)), std::cin.gcount() > 0) {
    text.append(block, static_cast<size_t>(std::cin.gcount()));
    if (text.size() > kMaxStandardInput) {
      return absl::InvalidArgumentError("more than 8 GiB: use a file");
    }
  }
  if (!absl::StartsWith(text, "\x93NUMPY")) {
    return ParseLiteral(text, literal_type);
  }
  std::istringstream in(std::move(text));
  return ReadNpy(in);
}

// The .safetensors file that is there, to be added to; nothing if there is
// none, or an empty one such as mktemp makes.
absl::StatusOr<std::optional<std::ifstream>> OpenOld(const OutputPlace& place) {
  // Looked at anew: another client may have made it since.
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(place.path, error);
  const bool none = error == std::errc::no_such_file_or_directory || size == 0;
  if (place.direct || none) return std::nullopt;
  std::ifstream in(place.path, std::ios::binary);
  if (in) return std::optional<std::ifstream>(std::move(in));
  return absl::InvalidArgumentError(absl::StrCat(
      "cannot read what it holds, to add to it: ", std::strerror(errno)));
}

absl::Status CheckOld(const OutputPlace& place) {
  absl::StatusOr<std::optional<std::ifstream>> old = OpenOld(place);
  if (!old.ok() || !old->has_value()) return old.status();
  absl::Status status = CheckSafetensors(**old);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(
      absl::StrCat("cannot add to it: ", status.message()));
}

// What goes into one file.
struct FileOutput {
  // As it was given.
  std::string path;
  OutputPlace place;
  std::map<std::string, const Tensor*> tensors;
};

// By where they lead, sorted.
absl::StatusOr<std::map<std::string, FileOutput>> ByPlace(
    const std::vector<TensorOutput>& tensors) {
  std::map<std::string, FileOutput> files;
  for (const auto& [target, tensor] : tensors) {
    absl::StatusOr<OutputPlace> place = FindPlace(target.path);
    if (!place.ok()) return Prefixed(target.path, place.status());
    FileOutput& file = files[place->path];
    const bool same =
        !file.tensors.empty() && (IsNpy(target.path) || IsNpy(file.path));
    if (same || !file.tensors.emplace(target.name, tensor).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          target.path, ": two tensors would be written to one place"));
    }
    file.path = target.path;
    file.place = *std::move(place);
  }
  return files;
}

absl::StatusOr<OutputFile> WriteFile(const FileOutput& output) {
  absl::StatusOr<OutputFile> file = OutputFile::Create(output.place);
  if (!file.ok()) return file;
  absl::Status status;
  if (IsNpy(output.path)) {
    status = WriteNpy(*output.tensors.begin()->second, file->stream());
  } else {
    absl::StatusOr<std::optional<std::ifstream>> old = OpenOld(output.place);
    if (!old.ok()) return old.status();
    status = WriteSafetensors(
        output.tensors, old->has_value() ? &**old : nullptr, file->stream());
  }
  if (status.ok()) status = file->Finish();
  if (!status.ok()) return status;
  return file;
}

}  // namespace

absl::StatusOr<Tensor> ReadTensorArgument(const std::string& argument,
                                          v1::DataType literal_type) {
  if (argument == kStandardInput) {
    absl::StatusOr<Tensor> tensor = ReadStandardInput(literal_type);
    if (!tensor.ok()) return Prefixed("standard input", tensor.status());
    return tensor;
  }
  const std::optional<TensorTarget> safetensors = SplitSafetensors(argument);
  if (!IsNpy(argument) && !safetensors) {
    if (BeginsLiteral(argument)) return ParseLiteral(argument, literal_type);
    return absl::InvalidArgumentError(
        absl::StrCat("got '", argument,
                     "', wanted a literal such as [[1, 0], [0, 1]], file.npy, "
                     "file.safetensors, file.safetensors:name or - for "
                     "standard input"));
  }
  const std::string& path = safetensors ? safetensors->path : argument;
  absl::StatusOr<std::ifstream> in = Open(path);
  if (!in.ok()) return in.status();
  absl::StatusOr<Tensor> tensor =
      safetensors ? ReadSafetensors(*in, safetensors->name) : ReadNpy(*in);
  if (!tensor.ok()) return Prefixed(path, tensor.status());
  return tensor;
}

TensorSpan TensorInput::span() const {
  if (!file_) return tensor_;
  return {elements_.type, elements_.shape,
          file_->bytes().subspan(elements_.offset, elements_.bytes)};
}

v1::DataType TensorInput::type() const {
  return file_ ? elements_.type : tensor_.type();
}

bool TensorInput::Shortened() const { return file_ && file_->Shortened(); }

void TensorInput::DropPages() const {
  if (file_) file_->DropPages();
}

absl::StatusOr<TensorInput> OpenTensorArgument(const std::string& argument,
                                               v1::DataType literal_type,
                                               uint64_t map_from_bytes) {
  if (IsNpy(argument)) {
    absl::StatusOr<std::ifstream> in = Open(argument);
    if (!in.ok()) return in.status();
    absl::StatusOr<std::optional<NpyElements>> elements = FindNpyElements(*in);
    if (!elements.ok()) return Prefixed(argument, elements.status());
    if (*elements && (*elements)->bytes >= map_from_bytes) {
      absl::StatusOr<MappedFile> file = MappedFile::Open(argument);
      if (!file.ok()) return Prefixed(argument, file.status());
      // It may have changed since.
      if (file->bytes().size() >= (*elements)->offset + (*elements)->bytes) {
        return TensorInput(*std::move(file), **elements);
      }
    }
  }
  absl::StatusOr<Tensor> tensor = ReadTensorArgument(argument, literal_type);
  if (!tensor.ok()) return tensor.status();
  return TensorInput(*std::move(tensor));
}

absl::StatusOr<TensorTarget> ParseTarget(const std::string& argument,
                                         const std::string& default_name) {
  if (std::optional<TensorTarget> target = SplitSafetensors(argument)) {
    if (target->name.empty()) target->name = default_name;
    absl::Status status = CheckSafetensorsName(target->name);
    if (!status.ok()) return Prefixed(target->path, status);
    return *std::move(target);
  }
  if (IsNpy(argument)) return TensorTarget{argument, ""};
  return absl::InvalidArgumentError(
      absl::StrCat("got '", argument,
                   "', wanted file.npy, file.safetensors or "
                   "file.safetensors:name"));
}

absl::Status CheckTarget(const TensorTarget& target, v1::DataType type) {
  const bool npy = IsNpy(target.path);
  absl::Status status = npy ? CheckNpyType(type) : absl::OkStatus();
  if (!status.ok()) return status;
  absl::StatusOr<OutputPlace> place = FindPlace(target.path);
  status = place.status();
  if (status.ok() && !npy) status = CheckOld(*place);
  if (status.ok()) status = OutputFile::Check(*place);
  return status.ok() ? status : Prefixed(target.path, status);
}

bool SamePlace(const TensorTarget& a, const TensorTarget& b) {
  // Neither tensor is looked at.
  return !ByPlace({{a, nullptr}, {b, nullptr}}).ok();
}

absl::Status WriteTensors(const std::vector<TensorOutput>& tensors) {
  absl::StatusOr<std::map<std::string, FileOutput>> outputs = ByPlace(tensors);
  if (!outputs.ok()) return outputs.status();
  // Each folder once, and everybody in the same order.
  std::map<std::string, FolderLock> locks;
  for (const auto& [path, output] : *outputs) {
    if (!IsNpy(output.path))
      locks.try_emplace(output.place.folder, output.place.folder);
  }
  std::vector<std::pair<std::string, OutputFile>> files;
  for (auto& [path, output] : *outputs) {
    absl::StatusOr<OutputFile> file = WriteFile(output);
    if (!file.ok()) return Prefixed(output.path, file.status());
    files.emplace_back(output.path, *std::move(file));
  }
  for (auto& [path, file] : files) {
    absl::Status status = file.Commit();
    if (!status.ok()) return Prefixed(path, status);
  }
  return absl::OkStatus();
}

}  // namespace attention::cli
