#include "client/cpp/cli/npy.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/cpp/cli/python_literal.h"
#include "client/cpp/cli/read_exactly.h"
#include "client/cpp/cli/stored_type.h"

namespace attention::cli {
namespace {

using Kind = PythonLiteral::Kind;

constexpr absl::string_view kMagic("\x93NUMPY", 6);
// NumPy's own caps.
constexpr uint32_t kMaxHeaderBytes = 10'000;
constexpr size_t kMaxRank = 64;

// NumPy's names of element types (those of 64-bit Linux, where some depend on
// the machine).
struct Name {
  const char* name;
  StoredType type;
};
// A byte order may stand before these.
constexpr Name kCodes[] = {
    {"f4", StoredType::kFloat32}, {"f", StoredType::kFloat32},
    {"f2", StoredType::kFloat16}, {"e", StoredType::kFloat16},
    {"f8", StoredType::kFloat64}, {"d", StoredType::kFloat64},
    {"b1", StoredType::kBool},    {"?", StoredType::kBool},
    {"i1", StoredType::kInt8},    {"b", StoredType::kInt8},
    {"i2", StoredType::kInt16},   {"h", StoredType::kInt16},
    {"i4", StoredType::kInt32},   {"i", StoredType::kInt32},
    {"i8", StoredType::kInt64},   {"l", StoredType::kInt64},
    {"q", StoredType::kInt64},    {"p", StoredType::kInt64},
    {"n", StoredType::kInt64},    {"u1", StoredType::kUint8},
    {"B", StoredType::kUint8},    {"u2", StoredType::kUint16},
    {"H", StoredType::kUint16},   {"u4", StoredType::kUint32},
    {"I", StoredType::kUint32},   {"u8", StoredType::kUint64},
    {"L", StoredType::kUint64},   {"Q", StoredType::kUint64},
    {"P", StoredType::kUint64},   {"N", StoredType::kUint64},
};
// And not before these.
constexpr Name kWords[] = {
    {"float32", StoredType::kFloat32},  {"single", StoredType::kFloat32},
    {"float16", StoredType::kFloat16},  {"half", StoredType::kFloat16},
    {"float64", StoredType::kFloat64},  {"double", StoredType::kFloat64},
    {"float", StoredType::kFloat64},    {"bool", StoredType::kBool},
    {"bool_", StoredType::kBool},       {"int8", StoredType::kInt8},
    {"byte", StoredType::kInt8},        {"int16", StoredType::kInt16},
    {"short", StoredType::kInt16},      {"int32", StoredType::kInt32},
    {"intc", StoredType::kInt32},       {"int64", StoredType::kInt64},
    {"int", StoredType::kInt64},        {"int_", StoredType::kInt64},
    {"long", StoredType::kInt64},       {"longlong", StoredType::kInt64},
    {"intp", StoredType::kInt64},       {"uint8", StoredType::kUint8},
    {"ubyte", StoredType::kUint8},      {"uint16", StoredType::kUint16},
    {"ushort", StoredType::kUint16},    {"uint32", StoredType::kUint32},
    {"uintc", StoredType::kUint32},     {"uint64", StoredType::kUint64},
    {"uint", StoredType::kUint64},      {"ulong", StoredType::kUint64},
    {"ulonglong", StoredType::kUint64}, {"uintp", StoredType::kUint64},
};

struct Header {
  StoredType type = StoredType::kFloat32;
  bool big_endian = false;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a valid .npy: ", what));
}

// NumPy reads the size in a code as a number: f04 is f4.
std::string WithPlainSize(absl::string_view code) {
  int size = 0;
  if (code.size() < 2 || !absl::ascii_isdigit(code.back()) ||
      !absl::SimpleAtoi(code.substr(1), &size) || size < 0) {
    return std::string(code);
  }
  return absl::StrCat(code.substr(0, 1), size);
}

absl::Status ReadDescr(const PythonLiteral& descr, Header& header) {
  if (descr.kind == Kind::kTuple || descr.kind == Kind::kList) {
    return absl::InvalidArgumentError(
        "element type: got a structured type, wanted plain numbers or bools");
  }
  if (descr.kind != Kind::kString) return Malformed("descr is not a string");
  absl::string_view code = descr.text;
  const bool ordered =
      !code.empty() && absl::string_view("<>=|").find(code[0]) != code.npos;
  header.big_endian = absl::ConsumePrefix(&code, ">");
  if (ordered && !header.big_endian) code.remove_prefix(1);
  const std::string plain = WithPlainSize(code);
  for (const Name& known : kCodes) {
    header.type = known.type;
    if (plain == known.name) return absl::OkStatus();
  }
  for (const Name& known : kWords) {
    header.type = known.type;
    if (!ordered && code == known.name) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "element type: got '", descr.text,
      "', wanted one of f2 f4 f8 b1, or i1 to i8, u1 to u8 for a mask",
      code == "V2" ? "; bfloat16 has no place in .npy: use .safetensors" : ""));
}

absl::Status ReadShape(const PythonLiteral& shape, Header& header) {
  if (shape.kind != Kind::kTuple) return Malformed("shape is not a tuple");
  if (shape.items.size() > kMaxRank) {
    return Malformed(absl::StrCat("shape has ", shape.items.size(),
                                  " axes, of which NumPy has at most ",
                                  kMaxRank));
  }
  for (const PythonLiteral& size : shape.items) {
    if (size.kind != Kind::kInteger || size.number < 0) {
      return Malformed("shape holds what is not a number >= 0");
    }
    header.shape.push_back(size.number);
  }
  return absl::OkStatus();
}

absl::Status ReadFortranOrder(const PythonLiteral& order, Header& header) {
  header.fortran_order = order.number != 0;
  if (order.kind == Kind::kBoolean) return absl::OkStatus();
  return Malformed("fortran_order is neither True nor False");
}

// Reads a Python dict of three entries, in any order, such as
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
absl::StatusOr<Header> ParseHeader(const std::string& text, int version) {
  absl::StatusOr<PythonLiteral> dict =
      ParsePythonLiteral(text, /*longs=*/version < 3);
  if (!dict.ok()) {
    return Malformed(absl::StrCat("header is ", dict.status().message()));
  }
  if (dict->kind != Kind::kDict) return Malformed("header is not a dict");
  // Of several equal keys the last counts, as in Python.
  std::map<std::string, const PythonLiteral*> entries;
  for (size_t i = 0; i < dict->items.size(); i += 2) {
    const PythonLiteral& key = dict->items[i];
    if (key.kind != Kind::kString) return Malformed("a key is not a string");
    entries[key.text] = &dict->items[i + 1];
  }
  Header header;
  for (const auto& [name, read] :
       {std::pair("descr", &ReadDescr),
        std::pair("fortran_order", &ReadFortranOrder),
        std::pair("shape", &ReadShape)}) {
    const auto entry = entries.extract(name);
    if (entry.empty()) return Malformed(absl::StrCat("header lacks ", name));
    absl::Status status = read(*entry.mapped(), header);
    if (!status.ok()) return status;
  }
  if (entries.empty()) return header;
  return Malformed(
      absl::StrCat("header has unknown key '", entries.begin()->first, "'"));
}

// Bytes from the position to the end; leaves the position.
uint64_t Remaining(std::istream& in) {
  const std::streampos here = in.tellg();
  in.seekg(0, std::ios::end);
  const std::streampos end = in.tellg();
  in.seekg(here);
  return in ? static_cast<uint64_t>(end - here) : 0;
}

absl::StatusOr<Header> ReadHeader(std::istream& in) {
  char start[8] = {};
  if (!ReadExactly(in, start, sizeof(start)) ||
      absl::string_view(start, kMagic.size()) != kMagic) {
    return Malformed("does not begin with \\x93NUMPY");
  }
  const int version = static_cast<unsigned char>(start[6]);
  const int minor = static_cast<unsigned char>(start[7]);
  if (version < 1 || version > 3 || minor != 0) {
    return Malformed(absl::StrCat("version is ", version, ".", minor,
                                  ", wanted 1.0, 2.0 or 3.0"));
  }
  unsigned char length_bytes[4] = {};
  if (!ReadExactly(in, length_bytes, version == 1 ? 2 : 4)) {
    return Malformed("ends within the header");
  }
  uint32_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (const uint64_t present = Remaining(in); length > present) {
    return Malformed(absl::StrCat("header of ", length, " bytes, of which ",
                                  present, " are there"));
  }
  if (length > kMaxHeaderBytes) {
    return Malformed(absl::StrCat("header of ", length,
                                  " bytes, of which NumPy reads at most ",
                                  kMaxHeaderBytes));
  }
  std::string text(length, '\0');
  if (!ReadExactly(in, text.data(), length)) {
    return Malformed("ends within the header");
  }
  return ParseHeader(text, version);
}

// The same elements, stored first axis fastest, as last axis fastest.
std::vector<std::byte> FromFortranOrder(std::span<const std::byte> source,
                                        std::span<const int64_t> shape,
                                        size_t element_size) {
  std::vector<std::byte> result(source.size());
  std::vector<int64_t> index(shape.size());
  for (size_t to = 0; to < source.size(); to += element_size) {
    int64_t from = 0;
    for (size_t axis = shape.size(); axis-- > 0;) {
      from = from * shape[axis] + index[axis];
    }
    std::memcpy(result.data() + to, source.data() + from * element_size,
                element_size);
    for (size_t axis = shape.size(); axis-- > 0;) {
      if (++index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
  }
  return result;
}

void ReverseEachElement(std::span<std::byte> bytes, size_t element_size) {
  for (size_t at = 0; at < bytes.size(); at += element_size) {
    const auto element = bytes.subspan(at, element_size);
    std::reverse(element.begin(), element.end());
  }
}

// What numpy.save() calls it; null if it has no such type.
const char* DescrOf(v1::DataType type) {
  switch (type) {
    case v1::DATA_TYPE_FLOAT32:
      return "<f4";
    case v1::DATA_TYPE_FLOAT16:
      return "<f2";
    case v1::DATA_TYPE_FLOAT64:
      return "<f8";
    case v1::DATA_TYPE_BOOL:
      return "|b1";
    case v1::DATA_TYPE_INT8:
      return "|i1";
    case v1::DATA_TYPE_INT32:
      return "<i4";
    case v1::DATA_TYPE_INT64:
      return "<i8";
    default:
      return nullptr;
  }
}

std::string FormatHeader(const Tensor& tensor) {
  const std::vector<int64_t>& shape = tensor.shape();
  std::string header = absl::StrCat("{'descr': '", DescrOf(tensor.type()),
                                    "', 'fortran_order': False, 'shape': (",
                                    absl::StrJoin(shape, ", "),
                                    shape.size() == 1 ? ",), }" : "), }");
  // The data begins at a multiple of 64 bytes; a line feed ends the header.
  const size_t before = kMagic.size() + 4;
  header.append(63 - (before + header.size()) % 64, ' ');
  return header + "\n";
}

// Bytes of the elements, all of which are there.
absl::StatusOr<uint64_t> SizeOf(const Header& header, std::istream& in) {
  const std::optional<int64_t> count = ElementCount(header.shape);
  const size_t element_size = StoredSize(header.type);
  const uint64_t present = Remaining(in);
  if (!count || static_cast<uint64_t>(*count) > present / element_size) {
    return Malformed(absl::StrCat(
        "shape (", absl::StrJoin(header.shape, ", "), ") of ", element_size,
        "-byte elements does not fit the ", present, " bytes of data"));
  }
  return *count * element_size;
}

}  // namespace

absl::StatusOr<Tensor> ReadNpy(std::istream& in) {
  absl::StatusOr<Header> header = ReadHeader(in);
  if (!header.ok()) return header.status();
  const absl::StatusOr<uint64_t> size = SizeOf(*header, in);
  if (!size.ok()) return size.status();
  const size_t element_size = StoredSize(header->type);
  std::vector<std::byte> bytes(*size);
  if (!ReadExactly(in, bytes.data(), bytes.size())) {
    return Malformed("cannot read its data");
  }
  if (header->big_endian) ReverseEachElement(bytes, element_size);
  if (header->fortran_order) {
    bytes = FromFortranOrder(bytes, header->shape, element_size);
  }
  return TensorOf(header->type, std::move(bytes), std::move(header->shape));
}

absl::StatusOr<std::optional<NpyElements>> FindNpyElements(std::istream& in) {
  absl::StatusOr<Header> header = ReadHeader(in);
  if (!header.ok()) return header.status();
  const absl::StatusOr<uint64_t> size = SizeOf(*header, in);
  if (!size.ok()) return size.status();
  const v1::DataType type = SentAs(header->type);
  const size_t element_size = StoredSize(header->type);
  const bool as_sent =
      ElementSize(type) == static_cast<int64_t>(element_size) &&
      header->type != StoredType::kUint64;
  if (!as_sent || header->fortran_order ||
      (header->big_endian && element_size > 1)) {
    return std::nullopt;
  }
  NpyElements elements;
  elements.type = type;
  elements.shape = std::move(header->shape);
  elements.offset = static_cast<uint64_t>(in.tellg());
  elements.bytes = *size;
  return elements;
}

absl::Status CheckNpyType(v1::DataType type) {
  if (DescrOf(type) != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      ".npy has no ", TypeName(type), ": write a .safetensors file instead"));
}

absl::Status WriteNpy(const Tensor& tensor, std::ostream& out) {
  absl::Status status = CheckNpyType(tensor.type());
  if (!status.ok()) return status;
  const std::string header = FormatHeader(tensor);
  const char version_and_length[] = {1, 0,
                                     static_cast<char>(header.size() & 0xff),
                                     static_cast<char>(header.size() >> 8)};
  out.write(kMagic.data(), kMagic.size());
  out.write(version_and_length, sizeof(version_and_length));
  out.write(header.data(), static_cast<std::streamsize>(header.size()));
  out.write(reinterpret_cast<const char*>(tensor.bytes().data()),
            static_cast<std::streamsize>(tensor.bytes().size()));
  return absl::OkStatus();
}

}  // namespace attention::cli
