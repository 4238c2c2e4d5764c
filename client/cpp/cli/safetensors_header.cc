#include "client/cpp/cli/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/cli/read_exactly.h"

namespace attention::cli {
namespace {

using Json = nlohmann::json;

// The official library's cap on nesting, in fields that it ignores.
constexpr int kMaxDepth = 127;

constexpr SafetensorsType kTypes[] = {
    {"F32", 32, StoredType::kFloat32},
    {"F16", 16, StoredType::kFloat16},
    {"BF16", 16, StoredType::kBFloat16},
    {"F64", 64, StoredType::kFloat64},
    {"BOOL", 8, StoredType::kBool},
    {"I8", 8, StoredType::kInt8},
    {"I16", 16, StoredType::kInt16},
    {"I32", 32, StoredType::kInt32},
    {"I64", 64, StoredType::kInt64},
    {"U8", 8, StoredType::kUint8},
    {"U16", 16, StoredType::kUint16},
    {"U32", 32, StoredType::kUint32},
    {"U64", 64, StoredType::kUint64},
    {"C64", 64, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
};

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("not a valid .safetensors: ", what));
}

// The JSON object that `text` is. The parser alone would keep the last of
// several equal names, skip a byte order mark and stop at a zero byte.
absl::StatusOr<Json> ParseObject(const std::string& text) {
  if (absl::StartsWith(text, "\xEF\xBB\xBF")) {
    return Malformed("header begins with a byte order mark");
  }
  std::vector<std::set<std::string>> names;  // Of each object that is open.
  std::optional<std::string> twice;
  bool deep = false;
  const auto look = [&](int depth, Json::parse_event_t event, Json& parsed) {
    deep = deep || depth > kMaxDepth ||
           (depth == kMaxDepth && event != Json::parse_event_t::value);
    if (event == Json::parse_event_t::object_start) {
      names.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      names.pop_back();
    } else if (event == Json::parse_event_t::key && !twice) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!names.back().insert(name).second) twice = name;
    }
    return !deep;
  };
  Json header = Json::parse(text, look, /*allow_exceptions=*/false);
  if (!header.is_object() || deep || absl::StrContains(text, '\0')) {
    return Malformed("header is not a JSON object");
  }
  if (twice) {
    return Malformed(absl::StrCat("header has the name '", *twice, "' twice"));
  }
  return header;
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

absl::StatusOr<const SafetensorsType*> FindType(const Json& entry) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) {
    return Malformed("tensor has no dtype");
  }
  const auto& name = found->get_ref<const std::string&>();
  for (const SafetensorsType& known : kTypes) {
    if (name == known.name) return &known;
  }
  return Malformed(absl::StrCat("unknown dtype '", name, "'"));
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name,
                                            const Json& json,
                                            uint64_t data_bytes) {
  if (!json.is_object()) return Malformed("tensor entry is not an object");
  absl::StatusOr<const SafetensorsType*> type = FindType(json);
  if (!type.ok()) return type.status();
  std::optional<std::vector<int64_t>> shape = Sizes(json, "shape");
  const std::optional<std::vector<int64_t>> offsets =
      Sizes(json, "data_offsets");
  if (!shape) return Malformed("shape is not an array of sizes");
  if (!offsets || offsets->size() != 2 || (*offsets)[0] > (*offsets)[1] ||
      static_cast<uint64_t>((*offsets)[1]) > data_bytes) {
    return Malformed(absl::StrCat("data_offsets of '", name,
                                  "' are not within the ", data_bytes,
                                  " bytes of data"));
  }
  const auto begin = static_cast<uint64_t>((*offsets)[0]);
  const auto end = static_cast<uint64_t>((*offsets)[1]);
  const std::optional<int64_t> count = ElementCount(*shape);
  int64_t bits = 0;
  if (!count || __builtin_mul_overflow(*count, (*type)->bits, &bits) ||
      bits % 8 != 0 || static_cast<uint64_t>(bits / 8) != end - begin) {
    return Malformed(absl::StrCat("shape (", absl::StrJoin(*shape, ", "),
                                  ") of ", (*type)->bits,
                                  "-bit elements does not fit the ",
                                  end - begin, " bytes of '", name, "'"));
  }
  return SafetensorsEntry{*type, *std::move(shape), begin, end};
}

// Every byte of data must belong to one tensor.
absl::Status CheckLayout(const SafetensorsHeader& file) {
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  spans.reserve(file.entries.size());
  for (const auto& [name, entry] : file.entries) {
    spans.emplace_back(entry.begin, entry.end);
  }
  std::sort(spans.begin(), spans.end());
  uint64_t at = 0;
  for (const auto& [begin, end] : spans) {
    if (begin < at) {
      return Malformed(absl::StrCat("two tensors have the byte ", begin));
    }
    if (begin > at) break;
    at = end;
  }
  if (at == file.data_bytes) return absl::OkStatus();
  return Malformed(absl::StrCat("no tensor has the byte ", at, " of the ",
                                file.data_bytes, " bytes of data"));
}

absl::Status ReadMetadata(
    const Json& json, std::optional<std::map<std::string, std::string>>& out) {
  if (json.is_null()) return absl::OkStatus();
  bool good = json.is_object();
  for (const Json& value : json) good = good && value.is_string();
  if (!good) return Malformed("__metadata__ is not an object of strings");
  out = json.get<std::map<std::string, std::string>>();
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadHeaderText(std::istream& in, uint64_t end) {
  in.seekg(0);
  unsigned char length_bytes[8] = {};
  if (!in || end < 8 || !ReadExactly(in, length_bytes, 8)) {
    return Malformed("shorter than 8 bytes");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (length > end - 8 || length > kMaxSafetensorsHeaderBytes) {
    return Malformed(
        absl::StrCat("header of ", length, " bytes in a file of ", end));
  }
  std::string text(length, '\0');
  if (!ReadExactly(in, text.data(), length)) return Malformed("cannot read it");
  return text;
}

}  // namespace

absl::Span<const SafetensorsType> SafetensorsTypes() { return kTypes; }

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(std::istream& in) {
  in.seekg(0, std::ios::end);
  const auto end = static_cast<uint64_t>(std::streamoff{in.tellg()});
  absl::StatusOr<std::string> text = ReadHeaderText(in, end);
  if (!text.ok()) return text.status();
  absl::StatusOr<Json> json = ParseObject(*text);
  if (!json.ok()) return json.status();
  SafetensorsHeader header;
  header.data_begin = 8 + text->size();
  header.data_bytes = end - header.data_begin;
  for (const auto& [name, value] : json->get_ref<const Json::object_t&>()) {
    if (name == kSafetensorsMetadata) {
      absl::Status status = ReadMetadata(value, header.metadata);
      if (!status.ok()) return status;
      continue;
    }
    absl::StatusOr<SafetensorsEntry> entry =
        ParseEntry(name, value, header.data_bytes);
    if (!entry.ok()) return entry.status();
    header.entries[name] = *std::move(entry);
  }
  absl::Status status = CheckLayout(header);
  if (!status.ok()) return status;
  return header;
}

}  // namespace attention::cli
