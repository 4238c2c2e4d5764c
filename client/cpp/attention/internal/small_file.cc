#include "attention/internal/small_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::internal {

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t most_bytes) {
  const auto wrong = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what...));
  };
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return wrong("is a folder, wanted a file");
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return wrong("cannot open: ", std::strerror(errno));
  std::string text(most_bytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return wrong("cannot be read");
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > most_bytes) {
    return wrong("is larger than ", most_bytes, " bytes");
  }
  return text;
}

}  // namespace attention::internal
