#include "client/cpp/cli/safetensors.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace attention::cli {
namespace {

using Json = nlohmann::json;

// The format's own cap.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct DType {
  const char* name;
  v1::DataType type;
};
constexpr DType kDTypes[] = {
    {"F32", v1::DATA_TYPE_FLOAT32},   {"F16", v1::DATA_TYPE_FLOAT16},
    {"BF16", v1::DATA_TYPE_BFLOAT16}, {"F64", v1::DATA_TYPE_FLOAT64},
    {"BOOL", v1::DATA_TYPE_BOOL},     {"I8", v1::DATA_TYPE_INT8},
    {"I32", v1::DATA_TYPE_INT32},     {"I64", v1::DATA_TYPE_INT64},
};

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("not a valid .safetensors: ", what));
}

bool ReadExactly(std::istream& in, char* to, uint64_t count) {
  in.read(to, static_cast<std::streamsize>(count));
  return in.gcount() == static_cast<std::streamsize>(count);
}

struct File {
  Json header;
  // Where the tensors' bytes begin, and how many there are.
  uint64_t data_begin = 0;
  uint64_t data_bytes = 0;
};

absl::StatusOr<File> ReadHeader(std::istream& in) {
  in.seekg(0, std::ios::end);
  const std::streamoff end = in.tellg();
  in.seekg(0);
  unsigned char length_bytes[8] = {};
  if (!in || end < 8 ||
      !ReadExactly(in, reinterpret_cast<char*>(length_bytes), 8)) {
    return Malformed("shorter than 8 bytes");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];
  const uint64_t after = static_cast<uint64_t>(end) - 8;
  if (length > after || length > kMaxHeaderBytes) {
    return Malformed(
        absl::StrCat("header of ", length, " bytes in a file of ", end));
  }
  std::string text(length, '\0');
  if (!ReadExactly(in, text.data(), length)) return Malformed("cannot read it");
  Json header = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return Malformed("header is not a JSON object");
  header.erase("__metadata__");
  return File{std::move(header), 8 + length, after - length};
}

absl::StatusOr<std::string> FindName(const Json& header,
                                     const std::string& name) {
  if (!name.empty() && header.contains(name)) return name;
  if (name.empty() && header.size() == 1) return header.begin().key();
  // Enough to see what the file is; models hold hundreds.
  constexpr size_t kListed = 20;
  std::vector<std::string> names;
  for (const auto& [key, unused] : header.items()) {
    if (names.size() == kListed) {
      names.push_back("...");
      break;
    }
    names.push_back(key);
  }
  const std::string holds =
      absl::StrCat("the file holds ", header.size(),
                   " tensors: ", absl::StrJoin(names, ", "));
  return absl::NotFoundError(
      name.empty() ? absl::StrCat("name one as file.safetensors:name; ", holds)
                   : absl::StrCat("no tensor '", name, "'; ", holds));
}

// A JSON array of numbers >= 0; nothing if it is anything else.
std::optional<std::vector<int64_t>> Sizes(const Json& entry, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array()) return std::nullopt;
  std::vector<int64_t> sizes;
  for (const Json& size : *found) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > INT64_MAX) {
      return std::nullopt;
    }
    sizes.push_back(size.get<int64_t>());
  }
  return sizes;
}

absl::StatusOr<v1::DataType> Type(const Json& entry) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) {
    return Malformed("tensor has no dtype");
  }
  const auto& name = found->get_ref<const std::string&>();
  for (const DType& known : kDTypes) {
    if (name == known.name) return known.type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("element type: got ", name,
                   ", wanted one of F32 F16 BF16 F64 BOOL I8 I32 I64"));
}

}  // namespace

absl::StatusOr<Tensor> ReadSafetensors(std::istream& in,
                                       const std::string& name) {
  absl::StatusOr<File> file = ReadHeader(in);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::string> found = FindName(file->header, name);
  if (!found.ok()) return found.status();
  const Json& entry = file->header[*found];
  if (!entry.is_object()) return Malformed("tensor entry is not an object");
  absl::StatusOr<v1::DataType> type = Type(entry);
  if (!type.ok()) return type.status();
  std::optional<std::vector<int64_t>> shape = Sizes(entry, "shape");
  const std::optional<std::vector<int64_t>> offsets =
      Sizes(entry, "data_offsets");
  if (!shape) return Malformed("shape is not an array of sizes");
  if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1] ||
      static_cast<uint64_t>((*offsets)[1]) > file->data_bytes) {
    return Malformed(absl::StrCat("data_offsets are not within the ",
                                  file->data_bytes, " bytes of data"));
  }
  const uint64_t present = (*offsets)[1] - (*offsets)[0];
  const std::optional<int64_t> count = ElementCount(*shape);
  const size_t element_size = ElementSize(*type);
  if (!count || present % element_size != 0 ||
      present / element_size != static_cast<uint64_t>(*count)) {
    return Malformed(absl::StrCat("shape (", absl::StrJoin(*shape, ", "),
                                  ") of ", element_size,
                                  "-byte elements does not fit the ", present,
                                  " bytes of '", *found, "'"));
  }
  std::vector<std::byte> bytes(present);
  in.seekg(static_cast<std::streamoff>(file->data_begin + (*offsets)[0]));
  if (!ReadExactly(in, reinterpret_cast<char*>(bytes.data()), present)) {
    return Malformed("cannot read its data");
  }
  return Tensor::FromBytes(*type, std::move(bytes), *std::move(shape)).value();
}

void WriteSafetensors(const std::map<std::string, const Tensor*>& tensors,
                      std::ostream& out) {
  Json header = Json::object();
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const char* dtype = "";
    for (const DType& known : kDTypes) {
      if (known.type == tensor->type()) dtype = known.name;
    }
    const uint64_t end = offset + tensor->bytes().size();
    header[name] = {{"dtype", dtype},
                    {"shape", tensor->shape()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text =
      header.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Spaces, so that the data begins at a multiple of 8.
  text.append((8 - text.size() % 8) % 8, ' ');
  char length[8];
  for (int i = 0; i < 8; ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  }
  out.write(length, sizeof(length));
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const auto& [name, tensor] : tensors) {
    out.write(reinterpret_cast<const char*>(tensor->bytes().data()),
              static_cast<std::streamsize>(tensor->bytes().size()));
  }
}

}  // namespace attention::cli
