#include "client/cpp/cli/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/cli/read_exactly.h"
#include "client/cpp/cli/safetensors_header.h"
#include "client/cpp/cli/stored_type.h"

namespace attention::cli {
namespace {

using Json = nlohmann::json;

absl::Status Unreadable() {
  return absl::InvalidArgumentError("cannot read its data");
}

absl::StatusOr<std::string> FindName(
    const std::map<std::string, SafetensorsEntry>& entries,
    const std::string& name) {
  if (!name.empty() && entries.contains(name)) return name;
  if (name.empty() && entries.size() == 1) return entries.begin()->first;
  // Enough to see what the file is; models hold hundreds.
  constexpr size_t kListed = 20;
  std::vector<std::string> names;
  for (const auto& [key, unused] : entries) {
    if (names.size() == kListed) {
      names.push_back("...");
      break;
    }
    names.push_back(key);
  }
  const std::string holds =
      absl::StrCat("the file holds ", entries.size(),
                   " tensors: ", absl::StrJoin(names, ", "));
  return absl::NotFoundError(
      name.empty() ? absl::StrCat("name one as file.safetensors:name; ", holds)
                   : absl::StrCat("no tensor '", name, "'; ", holds));
}

const SafetensorsType* TypeOf(v1::DataType type) {
  // Types that are widened have another size, but U64, which I64 stands before.
  const auto types = SafetensorsTypes();
  return std::find_if(types.begin(), types.end(), [&](const auto& known) {
    return known.stored && SentAs(*known.stored) == type &&
           StoredSize(*known.stored) == ElementSize(type);
  });
}

// A tensor to write: one that is given, or else bytes of the file that is kept.
struct Part {
  std::string name;
  SafetensorsEntry entry;
  const Tensor* tensor = nullptr;
};

// In the order of their bytes: large elements first, so that each tensor begins
// at a multiple of its element's size.
std::vector<Part> PartsOf(const std::map<std::string, const Tensor*>& tensors,
                          const SafetensorsHeader& kept) {
  std::vector<Part> parts;
  parts.reserve(tensors.size() + kept.entries.size());
  for (const auto& [name, tensor] : tensors) {
    parts.push_back(
        {name,
         {TypeOf(tensor->type()), tensor->shape(), 0, tensor->bytes().size()},
         tensor});
  }
  for (const auto& [name, entry] : kept.entries) {
    if (!tensors.contains(name)) parts.push_back({name, entry, nullptr});
  }
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::pair(b.entry.type->bits, a.name) <
           std::pair(a.entry.type->bits, b.name);
  });
  return parts;
}

std::string FormatHeader(
    const std::vector<Part>& parts,
    const std::optional<std::map<std::string, std::string>>& metadata) {
  Json header = Json::object();
  if (metadata) header[kSafetensorsMetadata] = *metadata;
  uint64_t offset = 0;
  for (const Part& part : parts) {
    const uint64_t end = offset + part.entry.end - part.entry.begin;
    header[part.name] = {{"dtype", part.entry.type->name},
                         {"shape", part.entry.shape},
                         {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  // Spaces, so that the data begins at a multiple of 8.
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

// Copies the next `count` bytes; false if there are fewer.
bool Copy(std::istream& in, uint64_t count, std::ostream& out) {
  std::vector<char> buffer(std::min<uint64_t>(count, 1 << 20));
  while (count > 0 && out) {
    const uint64_t size = std::min<uint64_t>(count, buffer.size());
    if (!ReadExactly(in, buffer.data(), size)) return false;
    out.write(buffer.data(), static_cast<std::streamsize>(size));
    count -= size;
  }
  return true;
}

}  // namespace

absl::StatusOr<Tensor> ReadSafetensors(std::istream& in,
                                       const std::string& name) {
  absl::StatusOr<SafetensorsHeader> file = ReadSafetensorsHeader(in);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::string> found = FindName(file->entries, name);
  if (!found.ok()) return found.status();
  SafetensorsEntry& entry = file->entries[*found];
  if (!entry.type->stored) {
    return absl::InvalidArgumentError(absl::StrCat(
        "element type: got ", entry.type->name,
        ", wanted one of F32 F16 BF16 F64, or BOOL, I8 to I64, U8 to U64 for a "
        "mask"));
  }
  std::vector<std::byte> bytes(entry.end - entry.begin);
  in.seekg(static_cast<std::streamoff>(file->data_begin + entry.begin));
  if (!ReadExactly(in, bytes.data(), bytes.size())) {
    return Unreadable();
  }
  return TensorOf(*entry.type->stored, std::move(bytes),
                  std::move(entry.shape));
}

absl::Status CheckSafetensorsName(const std::string& name) {
  if (name == kSafetensorsMetadata) {
    return absl::InvalidArgumentError(
        "got the name __metadata__, which .safetensors keeps for itself");
  }
  try {
    Json(name).dump();
  } catch (const Json::exception&) {
    return absl::InvalidArgumentError("got a name that is not UTF-8");
  }
  return absl::OkStatus();
}

absl::Status CheckSafetensors(std::istream& in) {
  return ReadSafetensorsHeader(in).status();
}

absl::Status WriteSafetensors(
    const std::map<std::string, const Tensor*>& tensors, std::istream* kept,
    std::ostream& out) {
  SafetensorsHeader file;
  if (kept != nullptr) {
    absl::StatusOr<SafetensorsHeader> read = ReadSafetensorsHeader(*kept);
    if (!read.ok()) return read.status();
    file = *std::move(read);
  }
  const std::vector<Part> parts = PartsOf(tensors, file);
  const std::string text = FormatHeader(parts, file.metadata);
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header would have ", text.size(), " bytes, of which ",
                     ".safetensors allows ", kMaxSafetensorsHeaderBytes));
  }
  char length[8];
  for (int i = 0; i < 8; ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  }
  out.write(length, sizeof(length));
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const Part& part : parts) {
    if (part.tensor != nullptr) {
      out.write(reinterpret_cast<const char*>(part.tensor->bytes().data()),
                static_cast<std::streamsize>(part.tensor->bytes().size()));
      continue;
    }
    kept->seekg(
        static_cast<std::streamoff>(file.data_begin + part.entry.begin));
    if (!Copy(*kept, part.entry.end - part.entry.begin, out)) {
      return Unreadable();
    }
  }
  return absl::OkStatus();
}

}  // namespace attention::cli
