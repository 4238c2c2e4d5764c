// The header of a .safetensors file, checked against the whole file.
#ifndef ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_HEADER_H_
#define ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <istream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cpp/cli/stored_type.h"

namespace attention::cli {

// The format's own cap.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// The one name that no tensor can have.
inline constexpr char kSafetensorsMetadata[] = "__metadata__";

// An element type of the format.
struct SafetensorsType {
  const char* name;
  int bits;
  // What it is read as; nothing: it is not read.
  std::optional<StoredType> stored;
};
absl::Span<const SafetensorsType> SafetensorsTypes();

// A tensor of the file.
struct SafetensorsEntry {
  // One of SafetensorsTypes().
  const SafetensorsType* type = nullptr;
  std::vector<int64_t> shape;
  // Its bytes, [begin, end), counted from where the tensors' bytes begin.
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> entries;
  std::optional<std::map<std::string, std::string>> metadata;
  // Where the tensors' bytes begin, and how many there are: each belongs to
  // one tensor.
  uint64_t data_begin = 0;
  uint64_t data_bytes = 0;
};

// Reads the header of a seekable stream, nothing else of it. Errors,
// InvalidArgument, say what is wrong with the file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(std::istream& in);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_SAFETENSORS_HEADER_H_
