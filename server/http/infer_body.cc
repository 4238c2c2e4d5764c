#include "server/http/infer_body.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "base/field_error.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/repeated_field.h"
#include "inference/inference.pb.h"
#include "kernel/data_type.h"
#include "server/inference/model.h"
#include "wire/infer_request.h"
#include "wire/slice_reader.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using Parameters =
    google::protobuf::Map<std::string, inference::InferParameter>;

// Of ModelInferRequest: raw_input_contents, length-delimited.
constexpr char kRawInputTag =
    (ModelInferRequest::kRawInputContentsFieldNumber << 3) | 2;

constexpr absl::string_view kBinarySize = "binary_data_size";
constexpr absl::string_view kBinaryData = "binary_data";
constexpr absl::string_view kBinaryOutput = "binary_data_output";

// Lists and objects in each other. Data stands in four of them, and has ranks
// up to 8.
constexpr size_t kMaxDepth = 12;
// Of a shape; what has more than a tensor may have is refused with its rank.
constexpr int kMaxSizes = 32;
// Of a string or a number. The parser keeps some copies of the one it reads.
constexpr size_t kMaxTextBytes = size_t{64} << 10;
// Elements that become one slice.
constexpr size_t kSliceElements = size_t{8} << 10;

constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Elements of an input as JSON gave them, in row-major order.
struct Elements {
  // The float nearest to a number's text, where rounding the double nearest to
  // the text gives another one: rounding twice may end one step away.
  struct Float {
    size_t place;
    float value;
  };

  void Clear() {
    numbers.clear();
    floats.clear();
  }

  // No list that doubles: that would take three times as much for a moment.
  std::deque<double> numbers;
  std::deque<Float> floats;
  bool has_bools = false;
};

// The raw bytes of a request's inputs, as fields of its message.
class RequestBuilder {
 public:
  RequestBuilder(std::string body, size_t json_bytes)
      : body_(std::make_shared<const std::string>(std::move(body))),
        json_bytes_(json_bytes),
        next_(json_bytes) {}

  absl::string_view json() const {
    return absl::string_view(*body_).substr(0, json_bytes_);
  }

  // The next `bytes` of the body are the tensor's.
  absl::Status AddFromBody(int64_t bytes, const std::string& field) {
    const auto left = static_cast<int64_t>(body_->size() - next_);
    if (bytes < 0 || bytes > left) {
      return FieldError(field, absl::StrCat("got ", bytes, ", and ", left,
                                            " bytes are left in the body"));
    }
    AddTag(static_cast<size_t>(bytes));
    if (bytes > 0) {
      // The body lives until the slice is gone, which owns `owner` once it is
      // made; making it may throw.
      auto owner = std::make_unique<std::shared_ptr<const std::string>>(body_);
      slices_.reserve(slices_.size() + 1);
      slices_.emplace_back(
          const_cast<char*>(body_->data() + next_), static_cast<size_t>(bytes),
          [](void* owner) {
            delete static_cast<std::shared_ptr<const std::string>*>(owner);
          },
          owner.get());
      owner.release();  // NOLINT(bugprone-unused-return-value)
    }
    next_ += static_cast<size_t>(bytes);
    return absl::OkStatus();
  }

  // `convert` makes a T of an element's place and number. What became bytes is
  // freed on the way.
  template <typename T, typename Convert>
  void AddElements(std::deque<double> numbers, Convert convert) {
    AddTag(numbers.size() * sizeof(T));
    std::vector<T> piece;
    for (size_t place = 0; !numbers.empty();) {
      piece.resize(std::min(numbers.size(), kSliceElements));
      for (T& element : piece) {
        element = convert(place++, numbers.front());
        numbers.pop_front();
      }
      slices_.emplace_back(piece.data(), piece.size() * sizeof(T));
    }
  }

  size_t left() const { return body_->size() - next_; }

  grpc::ByteBuffer Build(const ModelInferRequest& request) {
    slices_.emplace(slices_.begin(), request.SerializeAsString());
    return grpc::ByteBuffer(slices_.data(), slices_.size());
  }

 private:
  void AddTag(size_t bytes) {
    using google::protobuf::io::CodedOutputStream;
    std::array<uint8_t, 11> head{};
    head[0] = static_cast<uint8_t>(kRawInputTag);
    const uint8_t* const end =
        CodedOutputStream::WriteVarint64ToArray(bytes, head.data() + 1);
    slices_.emplace_back(head.data(), static_cast<size_t>(end - head.data()));
  }

  const std::shared_ptr<const std::string> body_;
  const size_t json_bytes_;
  size_t next_;
  std::vector<grpc::Slice> slices_;
};

template <typename T>
T Cast(size_t, double number) {
  return static_cast<T>(number);
}

template <typename T>
absl::Status AddIntegers(Elements elements, DataType type,
                         const std::string& field, RequestBuilder& builder) {
  // 2^53 too is what larger numbers are rounded to.
  constexpr double kExact = 9007199254740992.0;
  constexpr double kLeast =
      std::max(static_cast<double>(std::numeric_limits<T>::min()), 1 - kExact);
  constexpr double kMost =
      std::min(static_cast<double>(std::numeric_limits<T>::max()), kExact - 1);
  for (const double number : elements.numbers) {
    if (number >= kLeast && number <= kMost && number == std::floor(number)) {
      continue;
    }
    return FieldError(
        field, absl::StrCat("got a number that is no ", DatatypeName(type),
                            sizeof(T) == sizeof(int64_t)
                                ? ", or too large to be exact in JSON: send "
                                  "bytes (binary_data_size)"
                                : "",
                            ": ", number));
  }
  builder.AddElements<T>(std::move(elements.numbers), Cast<T>);
  return absl::OkStatus();
}

absl::Status AddFloats(Elements elements, const std::string& field,
                       RequestBuilder& builder) {
  // From the middle between the largest float and 2^128 on, numbers are rounded
  // to infinity.
  constexpr double kEnd = 0x1.ffffffp127;
  for (const double number : elements.numbers) {
    if (std::isfinite(number) && std::abs(number) >= kEnd) {
      return FieldError(field,
                        absl::StrCat("got ", number, ", which is beyond FP32"));
    }
  }
  builder.AddElements<float>(
      std::move(elements.numbers), [&](size_t place, double number) {
        if (elements.floats.empty() || elements.floats.front().place != place) {
          return static_cast<float>(number);
        }
        const float value = elements.floats.front().value;
        elements.floats.pop_front();
        return value;
      });
  return absl::OkStatus();
}

absl::Status AddBools(Elements elements, const std::string& field,
                      RequestBuilder& builder) {
  for (const double number : elements.numbers) {
    if (number == 0 || number == 1) continue;
    return FieldError(field, absl::StrCat("got ", number,
                                          ", wanted true and false, or 1 and "
                                          "0, for BOOL"));
  }
  builder.AddElements<int8_t>(std::move(elements.numbers), Cast<int8_t>);
  return absl::OkStatus();
}

// The elements as the raw bytes of an input.
absl::Status AddData(Elements elements, DataType type, const std::string& field,
                     RequestBuilder& builder) {
  if (type == DataType::kBool) {
    return AddBools(std::move(elements), field, builder);
  }
  if (elements.has_bools) {
    return FieldError(field, absl::StrCat("got booleans, wanted numbers of ",
                                          DatatypeName(type)));
  }
  switch (type) {
    case DataType::kFloat32:
      return AddFloats(std::move(elements), field, builder);
    case DataType::kFloat64:
      builder.AddElements<double>(std::move(elements.numbers), Cast<double>);
      return absl::OkStatus();
    case DataType::kInt8:
      return AddIntegers<int8_t>(std::move(elements), type, field, builder);
    case DataType::kInt32:
      return AddIntegers<int32_t>(std::move(elements), type, field, builder);
    case DataType::kInt64:
      return AddIntegers<int64_t>(std::move(elements), type, field, builder);
    default:
      return FieldError(field,
                        absl::StrCat("got numbers for ", DatatypeName(type),
                                     ", which only comes as bytes "
                                     "(binary_data_size)"));
  }
}

// Builds the request of what it hears, and stops at the first error.
class BodyReader final : public nlohmann::json_sax<Json> {
 public:
  BodyReader(RequestBuilder& builder, ModelInferRequest& request,
             InferBody& result)
      : builder_(builder), request_(request), result_(result) {}

  const absl::Status& error() const { return error_; }

  bool null() override { return Wrong(); }
  bool boolean(bool value) override {
    if (Is(Place::kData)) {
      elements_.has_bools = true;
      return Element(value ? 1 : 0);
    }
    if (!Is(Place::kParameters)) return Wrong();
    if (IsOwnParameter()) return OwnFlag(value);
    return Parameter([&](auto& parameter) { parameter.set_bool_param(value); });
  }
  // Of negative ones, of which -0 is one.
  bool number_integer(number_integer_t value) override {
    return Integer(value, value == 0 ? -0.0 : static_cast<double>(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(kMaxInt64)) {
      return Integer(static_cast<int64_t>(value), static_cast<double>(value));
    }
    if (Is(Place::kData)) return Element(static_cast<double>(value));
    if (Is(Place::kShape) || (Is(Place::kParameters) && IsOwnParameter())) {
      return Fail(Field(),
                  absl::StrCat("got ", value, ", wanted at most ", kMaxInt64));
    }
    if (!Is(Place::kParameters)) return Wrong();
    return Parameter(
        [&](auto& parameter) { parameter.set_uint64_param(value); });
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (Is(Place::kData)) {
      float once = 0;
      const auto read =
          std::from_chars(text.data(), text.data() + text.size(), once);
      if (!data_is_wrong_ && read.ec == std::errc() &&
          once != static_cast<float>(value)) {
        elements_.floats.push_back(
            {.place = elements_.numbers.size(), .value = once});
      }
      return Element(value);
    }
    if (!Is(Place::kParameters) || IsOwnParameter()) return Wrong();
    return Parameter(
        [&](auto& parameter) { parameter.set_double_param(value); });
  }
  bool string(string_t& value) override {
    switch (place()) {
      case Place::kData: {
        constexpr double kInfinity = std::numeric_limits<double>::infinity();
        if (value == "NaN") return Element(std::nan(""));
        if (value == "Infinity") return Element(kInfinity);
        if (value == "-Infinity") return Element(-kInfinity);
        return Wrong();
      }
      case Place::kParameters:
        if (IsOwnParameter()) return Wrong();
        return Parameter(
            [&](auto& parameter) { parameter.set_string_param(value); });
      case Place::kBody:
        if (member_ != "id") return Wrong();
        request_.set_id(value);
        return true;
      case Place::kTensor:
        return TensorText(value);
      default:
        return Wrong();
    }
  }
  bool binary(binary_t&) override { return false; }  // not in JSON

  bool start_object(std::size_t) override {
    switch (place()) {
      case Place::kNothing:
        return Open(Place::kBody);
      case Place::kTensors:
        return StartTensor();
      case Place::kBody:
      case Place::kTensor:
        if (member_ != "parameters") break;
        has_own_parameter_ = false;
        return Open(Place::kParameters);
      default:
        break;
    }
    return Wrong() && Open(Place::kSkipped);
  }
  bool key(string_t& name) override {
    switch (place()) {
      case Place::kBody: {
        static constexpr absl::string_view kNames[] = {"id", "parameters",
                                                       "inputs", "outputs"};
        return Member(name, kNames, body_members_);
      }
      case Place::kTensor:
        return Member(name,
                      absl::MakeConstSpan(kTensorMembers, in_inputs_ ? 5 : 2),
                      tensor_members_);
      case Place::kParameters:
        return ParameterName(name);
      default:
        return true;
    }
  }
  bool end_object() override {
    if (Is(Place::kTensor) && !EndTensor()) return false;
    Close();
    return true;
  }

  bool start_array(std::size_t) override {
    switch (place()) {
      case Place::kBody:
        if (member_ != "inputs" && member_ != "outputs") break;
        in_inputs_ = member_ == "inputs";
        tensors_ = 0;
        return Open(Place::kTensors);
      case Place::kTensor:
        if (member_ == "shape") return Open(Place::kShape);
        if (member_ == "data") return Open(Place::kData);
        break;
      case Place::kData:
        return Open(Place::kData);
      default:
        break;
    }
    return Wrong() && Open(Place::kSkipped);
  }
  bool end_array() override {
    Close();
    return true;
  }

  bool parse_error(std::size_t, const std::string& token,
                   const nlohmann::detail::exception& error) override {
    constexpr int kNumberOverflow = 406;
    if (error.id == kNumberOverflow && !places_.empty()) {
      return Fail(Field(),
                  absl::StrCat("got ", Shown(token), ", which is beyond FP64"));
    }
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    absl::string_view what = error.what();
    if (const size_t end = what.find("] "); end != absl::string_view::npos) {
      what.remove_prefix(end + 2);
    }
    error_ = absl::InvalidArgumentError(absl::StrCat(
        "the body is not the JSON of an inference: ", what.substr(0, 200)));
    return false;
  }

 private:
  // The list or object that what comes next stands in.
  enum class Place {
    kNothing,
    kBody,
    kTensors,  // inputs or outputs
    kTensor,
    kParameters,
    kShape,
    kData,     // and lists in it
    kSkipped,  // in data that is wrong
  };

  // Of an output only the first two.
  static constexpr absl::string_view kTensorMembers[] = {
      "name", "parameters", "shape", "datatype", "data"};
  static constexpr uint32_t kShapeCame = 1 << 2;
  static constexpr uint32_t kDataCame = 1 << 4;

  Place place() const {
    return places_.empty() ? Place::kNothing : places_.back();
  }
  bool Is(Place place) const { return this->place() == place; }
  bool Open(Place place) {
    if (places_.size() == kMaxDepth) {
      return Fail("body",
                  absl::StrCat("got lists and objects nested more than ",
                               kMaxDepth, " deep"));
    }
    places_.push_back(place);
    return true;
  }
  void Close() {
    places_.pop_back();
    in_tensor_ = in_tensor_ && !Is(Place::kTensors);
  }

  bool Fail(const std::string& field, absl::string_view description) {
    error_ = FieldError(field, description);
    return false;
  }
  bool Check(absl::Status status) {
    error_ = std::move(status);
    return error_.ok();
  }

  // "inputs.query", or "inputs[0]" as long as it has no name.
  std::string TensorField() const {
    if (!in_inputs_) return absl::StrCat("outputs[", tensors_ - 1, "]");
    if (input_->name().empty()) {
      return absl::StrCat("inputs[", tensors_ - 1, "]");
    }
    return absl::StrCat("inputs.", Shown(input_->name()));
  }
  // What the next value is, or the list that it stands in.
  std::string Field() const {
    switch (place()) {
      case Place::kNothing:
        return "body";
      case Place::kBody:
        return member_ == "id" ? "body.id" : std::string(member_);
      case Place::kTensors:
        return in_inputs_ ? "inputs" : "outputs";
      case Place::kParameters:
        return absl::StrCat(in_tensor_ ? TensorField() + "." : "",
                            "parameters.", Shown(parameter_));
      case Place::kTensor:
        return absl::StrCat(TensorField(), ".", member_);
      case Place::kShape:
        return TensorField() + ".shape";
      case Place::kData:
      case Place::kSkipped:
        return TensorField() + ".data";
    }
    return "";
  }
  absl::string_view Wanted() const {
    switch (place()) {
      case Place::kNothing:
        return "wanted an object";
      case Place::kBody:
        return member_ == "id"           ? "wanted a string"
               : member_ == "parameters" ? "wanted an object"
                                         : "wanted a list";
      case Place::kTensors:
        return "wanted a list of objects";
      case Place::kTensor:
        return member_ == "parameters" ? "wanted an object"
               : member_ == "shape"    ? "wanted a list of numbers"
                                       : "wanted a string";
      case Place::kParameters:
        return !IsOwnParameter() ? "wanted a boolean, a number or a string"
               : in_tensor_ && in_inputs_ ? "wanted a number of bytes"
                                          : "wanted true or false";
      case Place::kShape:
        return "wanted a list of whole numbers";
      case Place::kData:
      case Place::kSkipped:
        return "wanted a list of numbers or of booleans";
    }
    return "";
  }
  // Something came that does not belong at its place. True: it is skipped.
  bool Wrong() {
    if (Is(Place::kSkipped)) return true;
    if (Is(Place::kData) || (Is(Place::kTensor) && member_ == "data")) {
      return WrongData();
    }
    return Fail(Field(), Wanted());
  }
  // Told as soon as the input has its name, which may come behind the data.
  bool WrongData() {
    data_is_wrong_ = true;
    elements_.Clear();
    return input_->name().empty() || FailWrongData();
  }
  bool FailWrongData() {
    return Fail(TensorField() + ".data",
                "wanted a list of numbers or of booleans");
  }

  // The name of the member that comes next. `members`: bits of those that came.
  bool Member(const std::string& name,
              absl::Span<const absl::string_view> names, uint32_t& members) {
    const auto found = std::find(names.begin(), names.end(), name);
    const std::string field =
        Is(Place::kBody) ? std::string("body") : TensorField();
    if (found == names.end()) {
      return Fail(field, absl::StrCat("got the unknown member ", Shown(name)));
    }
    const uint32_t bit = uint32_t{1} << (found - names.begin());
    if ((members & bit) != 0) {
      return Fail(field, absl::StrCat("got the member ", name, " twice"));
    }
    members |= bit;
    member_ = *found;
    return true;
  }

  // The parameter that this front itself obeys.
  bool IsOwnParameter() const {
    return parameter_ == (!in_tensor_  ? kBinaryOutput
                          : in_inputs_ ? kBinarySize
                                       : kBinaryData);
  }
  Parameters& parameters() {
    return !in_tensor_  ? *request_.mutable_parameters()
           : in_inputs_ ? *input_->mutable_parameters()
                        : *output_->mutable_parameters();
  }
  bool ParameterName(const std::string& name) {
    parameter_ = name;
    const bool own = IsOwnParameter();
    if (own ? has_own_parameter_ : parameters().contains(name)) {
      return Fail(Field(), "got it twice, wanted it once");
    }
    has_own_parameter_ = has_own_parameter_ || own;
    if (!own && ++parameter_count_ > wire::kMaxInferParameters) {
      return Fail("parameters",
                  absl::StrCat("got more than ", wire::kMaxInferParameters,
                               ", the most there may be"));
    }
    return true;
  }
  template <typename Set>
  bool Parameter(Set set) {
    set(parameters()[parameter_]);
    return true;
  }
  bool OwnFlag(bool value) {
    if (in_tensor_ && in_inputs_) return Wrong();
    if (in_tensor_) {
      output_is_binary_ = value;
    } else {
      result_.binary_by_default = value;
    }
    return true;
  }

  bool Integer(int64_t value, double number) {
    if (Is(Place::kData)) return Element(number);
    if (Is(Place::kShape)) {
      if (input_->shape_size() == kMaxSizes) {
        return Fail(Field(), absl::StrCat("got more than ", kMaxSizes,
                                          " numbers, the most there may be"));
      }
      input_->add_shape(value);
      return true;
    }
    if (!Is(Place::kParameters)) return Wrong();
    if (!IsOwnParameter()) {
      return Parameter(
          [&](auto& parameter) { parameter.set_int64_param(value); });
    }
    if (!in_tensor_ || !in_inputs_) return Wrong();
    binary_size_ = value;
    return true;
  }
  bool Element(double number) {
    if (!data_is_wrong_) elements_.numbers.push_back(number);
    return true;
  }

  // Where memory fails, protobuf's own Add() loses the message, or, in later
  // versions, counts one that is not there.
  template <typename T>
  static T* AddTensor(google::protobuf::RepeatedPtrField<T>& tensors) {
    auto tensor = std::make_unique<T>();
    tensors.Reserve(wire::kMaxInferTensors);
    tensors.AddAllocated(tensor.get());
    return tensor.release();
  }

  bool StartTensor() {
    if (tensors_ == wire::kMaxInferTensors) {
      return Fail(Field(),
                  absl::StrCat("got more than ", tensors_, ", wanted fewer"));
    }
    ++tensors_;
    in_tensor_ = true;
    tensor_members_ = 0;
    if (in_inputs_) {
      input_ = AddTensor(*request_.mutable_inputs());
    } else {
      output_ = AddTensor(*request_.mutable_outputs());
    }
    elements_ = Elements();
    data_is_wrong_ = false;
    binary_size_.reset();
    output_is_binary_.reset();
    return Open(Place::kTensor);
  }
  bool TensorText(const std::string& value) {
    if (member_ == "datatype") {
      input_->set_datatype(value);
      return true;
    }
    if (member_ != "name") return Wrong();
    if (!in_inputs_) {
      output_->set_name(value);
      return true;
    }
    input_->set_name(value);
    return !data_is_wrong_ || value.empty() || FailWrongData();
  }
  bool EndTensor() {
    if (in_inputs_) return EndInput();
    if (output_is_binary_) {
      (*output_is_binary_ ? result_.binary : result_.numbers)
          .insert(output_->name());
    }
    return true;
  }
  // Everything of the input has come, in whatever order.
  bool EndInput() {
    const std::string field = TensorField();
    if (data_is_wrong_) return FailWrongData();
    if ((tensor_members_ & kShapeCame) == 0) {
      return Fail(field + ".shape", "wanted a list of numbers");
    }
    const std::string size_field =
        absl::StrCat(field, ".parameters.", kBinarySize);
    const bool has_data = (tensor_members_ & kDataCame) != 0;
    if (binary_size_) {
      if (has_data) {
        return Fail(size_field, "got it beside data, wanted one of the two");
      }
      return Check(builder_.AddFromBody(*binary_size_, size_field));
    }
    if (!has_data) {
      if (!AsksForSharedMemory()) {
        return Fail(field + ".data",
                    "got neither data nor parameters.binary_data_size");
      }
      return true;
    }
    const std::optional<DataType> type = DatatypeFromName(input_->datatype());
    if (!type) {
      return Fail(field + ".datatype",
                  absl::StrCat("got \"", Shown(input_->datatype()),
                               "\", wanted ", kDatatypeNames));
    }
    return Check(AddData(std::exchange(elements_, Elements()), *type,
                         field + ".data", builder_));
  }
  bool AsksForSharedMemory() const {
    return std::any_of(input_->parameters().begin(), input_->parameters().end(),
                       [](const auto& parameter) {
                         return absl::StartsWith(parameter.first,
                                                 "shared_memory_");
                       });
  }

  RequestBuilder& builder_;
  ModelInferRequest& request_;
  InferBody& result_;
  absl::Status error_;

  std::vector<Place> places_;  // what is open
  uint32_t body_members_ = 0;
  // The last key of the body or of a tensor, and of parameters.
  absl::string_view member_;
  std::string parameter_;
  // Of the parameters that are open.
  bool has_own_parameter_ = false;
  // In all.
  size_t parameter_count_ = 0;

  // Of the list that is open, or was open last.
  bool in_inputs_ = false;
  size_t tensors_ = 0;
  // Of the tensor that is open.
  bool in_tensor_ = false;
  uint32_t tensor_members_ = 0;
  ModelInferRequest::InferInputTensor* input_ = nullptr;
  ModelInferRequest::InferRequestedOutputTensor* output_ = nullptr;
  Elements elements_;
  bool data_is_wrong_ = false;
  std::optional<int64_t> binary_size_;
  std::optional<bool> output_is_binary_;
};

// The parser has some copies of a string or number at once, and more in its
// errors, so that long ones are refused before it sees them.
absl::Status CheckTexts(absl::string_view json) {
  bool in_string = false;
  size_t start = 0;
  for (size_t i = 0; i < json.size(); ++i) {
    if (i - start > kMaxTextBytes) {
      return FieldError(
          "body", absl::StrCat("got a text or number of more than ",
                               kMaxTextBytes, " bytes, the most there may be"));
    }
    switch (json[i]) {
      case '\\':
        // Outside of strings that is an error, which the parser tells.
        ++i;
        break;
      case '"':
        in_string = !in_string;
        start = i;
        break;
      case ',':
      case ':':
      case '[':
      case ']':
      case '{':
      case '}':
      case ' ':
      case '\t':
      case '\r':
      case '\n':
        if (!in_string) start = i;
        break;
      default:
        break;
    }
  }
  return absl::OkStatus();
}

// A response whose outputs' bytes stay in the slices that it came in.
struct Answer {
  std::vector<grpc::Slice> slices;
  // Without raw_output_contents.
  ModelInferResponse message;
  std::vector<wire::SliceReader> raw;
};

bool ReadAnswer(const grpc::ByteBuffer& response, Answer& answer) {
  if (!response.Dump(&answer.slices).ok()) return false;
  wire::SliceReader reader(absl::MakeConstSpan(answer.slices));
  std::string rest;
  while (reader.remaining() > 0) {
    wire::SliceReader field = reader;
    wire::Tag tag;
    if (!reader.ReadTag(&tag)) return false;
    if (tag.field == ModelInferResponse::kRawOutputContentsFieldNumber &&
        tag.type == wire::WireType::kLength) {
      if (!reader.ReadLengthDelimited(&answer.raw.emplace_back())) return false;
      continue;
    }
    int64_t tags = 1;
    if (!reader.SkipField(tag, wire::SliceReader::kMaxDepth, &tags)) {
      return false;
    }
    const size_t bytes = field.remaining() - reader.remaining();
    rest.resize(rest.size() + bytes);
    if (!field.ReadBytes(rest.data() + rest.size() - bytes, bytes)) {
      return false;
    }
  }
  return answer.message.ParseFromString(rest) &&
         answer.raw.size() ==
             static_cast<size_t>(answer.message.outputs_size());
}

// The most characters of a number of T, the comma behind it included:
// "-1.17549435e-38," and "-2.2250738585072014e-308,".
template <typename T>
constexpr size_t kMostText = sizeof(T) == sizeof(float) ? 16 : 25;

// The elements of raw bytes as JSON; what is not finite as proto3 JSON has it.
template <typename T>
void AppendNumbers(wire::SliceReader raw, std::string& body) {
  body.push_back('[');
  const char* separator = "";
  std::array<char, 32> text;
  T element;
  while (raw.remaining() >= sizeof(T) && raw.ReadBytes(&element, sizeof(T))) {
    body.append(separator);
    separator = ",";
    if (std::isnan(element)) {
      body.append(R"("NaN")");
    } else if (std::isinf(element)) {
      body.append(element > 0 ? R"("Infinity")" : R"("-Infinity")");
    } else {
      const auto end =
          std::to_chars(text.data(), text.data() + text.size(), element).ptr;
      body.append(text.data(), end);
    }
  }
  body.push_back(']');
}

std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AppendBytes(wire::SliceReader raw, std::string& body) {
  while (raw.remaining() > 0) {
    const absl::Span<const uint8_t> piece = raw.FirstPiece();
    body.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    raw.Skip(piece.size());
  }
}

using Output = ModelInferResponse::InferOutputTensor;

// Whether an output's elements are in shared memory.
bool IsElsewhere(const Output& output) {
  return output.parameters().contains("shared_memory_region");
}

void AppendPlace(const Output& output, std::string& body) {
  Json parameters;
  for (const auto& [name, value] : output.parameters()) {
    if (value.has_string_param()) {
      parameters[name] = value.string_param();
    } else {
      parameters[name] = value.int64_param();
    }
  }
  absl::StrAppend(&body, R"("parameters":)", parameters.dump());
}

}  // namespace

absl::StatusOr<InferBody> ReadInferBody(std::string body,
                                        std::optional<int64_t> json_bytes,
                                        absl::string_view model,
                                        absl::string_view version) {
  const auto whole = static_cast<int64_t>(body.size());
  const int64_t text = json_bytes.value_or(whole);
  if (text < 0 || text > whole) {
    return FieldError(
        "Inference-Header-Content-Length",
        absl::StrCat("got ", text, ", and the body has ", whole, " bytes"));
  }
  RequestBuilder builder(std::move(body), static_cast<size_t>(text));
  const absl::string_view json = builder.json();
  if (absl::Status status = CheckTexts(json); !status.ok()) return status;
  InferBody result;
  ModelInferRequest request;
  request.set_model_name(std::string(model));
  request.set_model_version(std::string(version));
  BodyReader reader(builder, request, result);
  if (!Json::sax_parse(json.begin(), json.end(), &reader)) {
    return reader.error();
  }
  if (builder.left() > 0) {
    return FieldError("inputs", absl::StrCat(builder.left(),
                                             " bytes of the body belong to "
                                             "none of them"));
  }
  result.request = builder.Build(request);
  return result;
}

absl::StatusOr<HttpResponse> WriteInferBody(const grpc::ByteBuffer& response,
                                            const InferBody& asked) {
  Answer answer;
  if (!ReadAnswer(response, answer)) {
    return absl::InternalError("the answer could not be read");
  }
  const ModelInferResponse& message = answer.message;
  std::vector<bool> as_bytes;
  // What everything but the elements takes is little; if it is more, the body
  // grows.
  size_t bytes = 1024;
  for (size_t i = 0; i < answer.raw.size(); ++i) {
    const auto& output = message.outputs(static_cast<int>(i));
    const size_t raw_bytes = answer.raw[i].remaining();
    if (IsElsewhere(output)) {
      as_bytes.push_back(false);
      bytes += output.ByteSizeLong();
      continue;
    }
    as_bytes.push_back(
        asked.binary.contains(output.name()) ||
        (asked.binary_by_default && !asked.numbers.contains(output.name())));
    if (as_bytes.back()) {
      bytes += raw_bytes;
    } else if (output.datatype() == "FP32") {
      bytes += raw_bytes / sizeof(float) * kMostText<float>;
    } else if (output.datatype() == "FP64") {
      bytes += raw_bytes / sizeof(double) * kMostText<double>;
    } else {
      return FieldError(
          absl::StrCat("outputs.", output.name()),
          absl::StrCat("it is ", output.datatype(),
                       ", which is only given as bytes: ask for it with "
                       "parameters.binary_data or binary_data_output"));
    }
  }
  HttpResponse result;
  std::string& body = result.body;
  body.reserve(bytes + message.ByteSizeLong());
  absl::StrAppend(&body, R"({"model_name":)", Quoted(message.model_name()),
                  R"(,"model_version":)", Quoted(message.model_version()));
  if (!message.id().empty()) {
    absl::StrAppend(&body, R"(,"id":)", Quoted(message.id()));
  }
  body.append(R"(,"outputs":[)");
  for (size_t i = 0; i < answer.raw.size(); ++i) {
    const auto& output = message.outputs(static_cast<int>(i));
    absl::StrAppend(&body, i == 0 ? "" : ",", R"({"name":)",
                    Quoted(output.name()), R"(,"datatype":)",
                    Quoted(output.datatype()), R"(,"shape":[)",
                    absl::StrJoin(output.shape(), ","), "],");
    if (IsElsewhere(output)) {
      AppendPlace(output, body);
    } else if (as_bytes[i]) {
      absl::StrAppend(&body, R"("parameters":{")", kBinarySize, R"(":)",
                      answer.raw[i].remaining(), "}");
    } else {
      body.append(R"("data":)");
      if (output.datatype() == "FP32") {
        AppendNumbers<float>(answer.raw[i], body);
      } else {
        AppendNumbers<double>(answer.raw[i], body);
      }
    }
    body.push_back('}');
  }
  body.append("]}");
  result.content_type = "application/json";
  if (std::find(as_bytes.begin(), as_bytes.end(), true) != as_bytes.end()) {
    result.content_type = "application/octet-stream";
    result.headers.emplace_back("Inference-Header-Content-Length",
                                absl::StrCat(body.size()));
    for (size_t i = 0; i < answer.raw.size(); ++i) {
      if (as_bytes[i]) AppendBytes(answer.raw[i], body);
    }
  }
  return result;
}

}  // namespace attention::server
