#include "client/cpp/cli/npy.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace attention::cli {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY", 6);

struct Descr {
  const char* name;
  v1::DataType type;
};
constexpr Descr kDescrs[] = {
    {"<f4", v1::DATA_TYPE_FLOAT32}, {"<f2", v1::DATA_TYPE_FLOAT16},
    {"<f8", v1::DATA_TYPE_FLOAT64}, {"|b1", v1::DATA_TYPE_BOOL},
    {"|i1", v1::DATA_TYPE_INT8},    {"<i4", v1::DATA_TYPE_INT32},
    {"<i8", v1::DATA_TYPE_INT64},
};

struct Header {
  v1::DataType type = v1::DATA_TYPE_UNSPECIFIED;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a valid .npy: ", what));
}

// Scans the header: a Python dict of three entries, in any order, such as
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : text_(text) {}

  absl::StatusOr<Header> Parse() {
    if (!Eat("{")) return Malformed("header is not a dict");
    while (!Eat("}")) {
      absl::Status status = ParseEntry();
      if (!status.ok()) return status;
      if (!Eat(",") && !Peek('}')) return Malformed("header has no '}'");
    }
    if (!seen_type_ || !seen_order_ || !seen_shape_) {
      return Malformed("header lacks descr, fortran_order or shape");
    }
    return std::move(header_);
  }

 private:
  absl::Status ParseEntry() {
    const std::optional<std::string> key = String();
    if (!key || !Eat(":")) return Malformed("header has no key where one goes");
    if (*key == "descr") return ParseDescr();
    if (*key == "fortran_order") return ParseOrder();
    if (*key == "shape") return ParseShape();
    return Malformed(absl::StrCat("header has unknown key '", *key, "'"));
  }

  absl::Status ParseDescr() {
    const std::optional<std::string> descr = String();
    if (!descr) return Malformed("descr is not a plain type (structured?)");
    seen_type_ = true;
    for (const Descr& known : kDescrs) {
      if (*descr == known.name) {
        header_.type = known.type;
        return absl::OkStatus();
      }
    }
    const char* hint = "";
    if (absl::StartsWith(*descr, ">")) {
      hint = "; big-endian: convert with .astype(a.dtype.newbyteorder('<'))";
    } else if (*descr == "<V2" || *descr == "|V2") {
      hint = "; bfloat16 has no place in .npy: use .safetensors";
    }
    return absl::InvalidArgumentError(
        absl::StrCat("element type: got '", *descr,
                     "', wanted one of <f4 <f2 <f8 |b1 |i1 <i4 <i8", hint));
  }

  absl::Status ParseOrder() {
    seen_order_ = true;
    header_.fortran_order = Eat("True");
    if (header_.fortran_order || Eat("False")) return absl::OkStatus();
    return Malformed("fortran_order is neither True nor False");
  }

  absl::Status ParseShape() {
    seen_shape_ = true;
    header_.shape.clear();
    if (!Eat("(")) return Malformed("shape is not a tuple");
    const size_t end = text_.find(')');
    if (end == absl::string_view::npos) return Malformed("shape has no ')'");
    const absl::string_view inside =
        absl::StripAsciiWhitespace(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    if (inside.empty()) return absl::OkStatus();
    for (absl::string_view item :
         absl::StrSplit(absl::StripSuffix(inside, ","), ',')) {
      int64_t dim = 0;
      if (!absl::SimpleAtoi(item, &dim) || dim < 0) {
        return Malformed(absl::StrCat("shape holds '", item, "'"));
      }
      header_.shape.push_back(dim);
    }
    return absl::OkStatus();
  }

  void SkipSpace() { text_ = absl::StripLeadingAsciiWhitespace(text_); }
  bool Peek(char c) {
    SkipSpace();
    return !text_.empty() && text_.front() == c;
  }
  bool Eat(absl::string_view token) {
    SkipSpace();
    return absl::ConsumePrefix(&text_, token);
  }
  std::optional<std::string> String() {
    const char quote = Peek('\'') ? '\'' : '"';
    if (!Peek(quote)) return std::nullopt;
    const size_t end = text_.find(quote, 1);
    if (end == absl::string_view::npos) return std::nullopt;
    std::string value(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return value;
  }

  absl::string_view text_;
  Header header_;
  bool seen_type_ = false;
  bool seen_order_ = false;
  bool seen_shape_ = false;
};

// Bytes from the position to the end; leaves the position.
uint64_t Remaining(std::istream& in) {
  const std::streampos here = in.tellg();
  in.seekg(0, std::ios::end);
  const std::streampos end = in.tellg();
  in.seekg(here);
  return in ? static_cast<uint64_t>(end - here) : 0;
}

bool ReadExactly(std::istream& in, char* to, size_t count) {
  in.read(to, static_cast<std::streamsize>(count));
  return in.gcount() == static_cast<std::streamsize>(count);
}

absl::StatusOr<std::string> ReadHeader(std::istream& in) {
  char start[8] = {};
  if (!ReadExactly(in, start, sizeof(start)) ||
      absl::string_view(start, kMagic.size()) != kMagic) {
    return Malformed("does not begin with \\x93NUMPY");
  }
  const int version = static_cast<unsigned char>(start[6]);
  if (version < 1 || version > 3) {
    return Malformed(absl::StrCat("version is ", version, ", wanted 1 to 3"));
  }
  unsigned char length_bytes[4] = {};
  if (!ReadExactly(in, reinterpret_cast<char*>(length_bytes),
                   version == 1 ? 2 : 4)) {
    return Malformed("ends within the header");
  }
  uint32_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (const uint64_t present = Remaining(in); length > present) {
    return Malformed(absl::StrCat("header of ", length, " bytes, of which ",
                                  present, " are there"));
  }
  std::string header(length, '\0');
  if (!ReadExactly(in, header.data(), length)) {
    return Malformed("ends within the header");
  }
  return header;
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

const char* DescrOf(v1::DataType type) {
  for (const Descr& known : kDescrs) {
    if (known.type == type) return known.name;
  }
  return nullptr;
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

}  // namespace

absl::StatusOr<Tensor> ReadNpy(std::istream& in) {
  absl::StatusOr<std::string> text = ReadHeader(in);
  if (!text.ok()) return text.status();
  absl::StatusOr<Header> header = HeaderParser(*text).Parse();
  if (!header.ok()) return header.status();

  const std::optional<int64_t> count = ElementCount(header->shape);
  const size_t element_size = ElementSize(header->type);
  const uint64_t present = Remaining(in);
  if (!count || present % element_size != 0 ||
      present / element_size != static_cast<uint64_t>(*count)) {
    return Malformed(absl::StrCat(
        "shape (", absl::StrJoin(header->shape, ", "), ") of ", element_size,
        "-byte elements does not fit the ", present, " bytes of data"));
  }
  std::vector<std::byte> bytes(present);
  if (!ReadExactly(in, reinterpret_cast<char*>(bytes.data()), present)) {
    return Malformed("cannot read its data");
  }
  if (header->fortran_order) {
    bytes = FromFortranOrder(bytes, header->shape, element_size);
  }
  return Tensor::FromBytes(header->type, std::move(bytes),
                           std::move(header->shape))
      .value();
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
