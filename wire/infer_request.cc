#include "wire/infer_request.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "inference/inference.pb.h"

namespace attention::wire {
namespace {

using inference::InferTensorContents;
using inference::ModelInferRequest;
using InputMessage = ModelInferRequest::InferInputTensor;
using OutputMessage = ModelInferRequest::InferRequestedOutputTensor;

// Both messages of a map have these.
constexpr int kMapKey = 1;
constexpr int kMapValue = 2;
// Beside its bytes, the parameter itself in a list that doubles.
constexpr size_t kParameterMemory = 4 * sizeof(InferParameter);

// One request; it counts over all of it.
class InferDecoder {
 public:
  InferDecoder(Decoding& decoding, InferRequestFields* fields)
      : decoding_(decoding), fields_(*fields) {}

  void Decode(MessageReader& reader) {
    while (reader.Next()) {
      switch (reader.field()) {
        case ModelInferRequest::kModelNameFieldNumber:
          Text(reader, kMaxInferNameBytes, &fields_.model_name);
          break;
        case ModelInferRequest::kModelVersionFieldNumber:
          Text(reader, kMaxInferNameBytes, &fields_.model_version);
          break;
        case ModelInferRequest::kIdFieldNumber:
          Text(reader, kMaxInferIdBytes, &fields_.id);
          break;
        case ModelInferRequest::kParametersFieldNumber:
          Parameter(reader, &fields_.parameters);
          break;
        case ModelInferRequest::kInputsFieldNumber:
          Tensor(reader, "inputs", &InferDecoder::Input, &fields_.inputs);
          break;
        case ModelInferRequest::kOutputsFieldNumber:
          Tensor(reader, "outputs", &InferDecoder::Output, &fields_.outputs);
          break;
        case ModelInferRequest::kRawInputContentsFieldNumber:
          Raw(reader);
          break;
        default:
          reader.Skip();
      }
    }
  }

 private:
  // The first `most` bytes, and one more where there are more.
  static void Text(MessageReader& reader, size_t most, std::string* text) {
    SliceReader bytes;
    if (reader.Bytes(&bytes)) Text(bytes, most + 1, text);
  }
  static void Text(SliceReader bytes, size_t most, std::string* text) {
    text->resize(std::min(bytes.remaining(), most));
    bytes.ReadBytes(text->data(), text->size());
  }

  void Raw(MessageReader& reader) {
    SliceReader bytes;
    if (!reader.Bytes(&bytes)) return;
    if (HasRoom("raw_input_contents", fields_.raw_input_contents.size())) {
      fields_.raw_input_contents.push_back(bytes);
    }
  }

  bool HasRoom(absl::string_view field, size_t size) {
    if (size < kMaxInferTensors) return true;
    decoding_.Refuse(FieldError(
        field, absl::StrCat("got more than ", size, ", wanted fewer")));
    return false;
  }

  void Tensor(MessageReader& reader, absl::string_view field,
              void (InferDecoder::*decode)(MessageReader&, InferTensor*),
              std::vector<InferTensor>* tensors) {
    std::optional<MessageReader> message = reader.Message();
    if (!message || !HasRoom(field, tensors->size())) return;
    (this->*decode)(*message, &tensors->emplace_back());
  }

  void Input(MessageReader& reader, InferTensor* tensor) {
    while (reader.Next()) {
      switch (reader.field()) {
        case InputMessage::kNameFieldNumber:
          Text(reader, kMaxInferNameBytes, &tensor->name);
          break;
        case InputMessage::kDatatypeFieldNumber:
          Text(reader, kMaxInferNameBytes, &tensor->datatype);
          break;
        case InputMessage::kShapeFieldNumber:
          reader.Integers([&](int64_t dim) {
            if (tensor->rank++ < kMaxRank) tensor->shape.push_back(dim);
            return decoding_.CountField();
          });
          break;
        case InputMessage::kParametersFieldNumber:
          Parameter(reader, &tensor->parameters);
          break;
        case InputMessage::kContentsFieldNumber:
          Contents(reader, &tensor->contents);
          break;
        default:
          reader.Skip();
      }
    }
  }

  void Output(MessageReader& reader, InferTensor* tensor) {
    while (reader.Next()) {
      switch (reader.field()) {
        case OutputMessage::kNameFieldNumber:
          Text(reader, kMaxInferNameBytes, &tensor->name);
          break;
        case OutputMessage::kParametersFieldNumber:
          Parameter(reader, &tensor->parameters);
          break;
        default:
          reader.Skip();
      }
    }
  }

  void Contents(MessageReader& reader, InferContents* contents) {
    std::optional<MessageReader> message = reader.Message();
    if (!message) return;
    while (message->Next()) {
      const int field = message->field();
      bool any = true;
      switch (field) {
        case InferTensorContents::kBoolContentsFieldNumber:
        case InferTensorContents::kIntContentsFieldNumber:
        case InferTensorContents::kInt64ContentsFieldNumber: {
          const size_t before = contents->integers.size();
          Integers(*message, field, &contents->integers);
          any = contents->integers.size() > before;
          break;
        }
        case InferTensorContents::kFp32ContentsFieldNumber:
          message->Floats(&contents->floats);
          any = contents->floats.count > 0;
          break;
        case InferTensorContents::kFp64ContentsFieldNumber:
          message->Doubles(&contents->doubles);
          any = contents->doubles.count > 0;
          break;
        case InferTensorContents::kUintContentsFieldNumber:
        case InferTensorContents::kUint64ContentsFieldNumber:
        case InferTensorContents::kBytesContentsFieldNumber:
          message->Skip();
          break;
        default:
          any = false;
          message->Skip();
      }
      if (any) contents->lists |= uint32_t{1} << field;
    }
  }

  // As a parser keeps them: of bool whether it is 0, of int32 the low half.
  void Integers(MessageReader& reader, int field, std::vector<int64_t>* list) {
    reader.Integers([&](int64_t number) {
      if (!decoding_.CountField()) return false;
      if (list->size() == list->capacity() &&
          !reader.Grow(list, static_cast<size_t>(kMaxFields))) {
        return false;
      }
      list->push_back(field == InferTensorContents::kBoolContentsFieldNumber
                          ? number != 0
                      : field == InferTensorContents::kIntContentsFieldNumber
                          ? static_cast<int32_t>(number)
                          : number);
      return true;
    });
  }

  // An entry of a map.
  void Parameter(MessageReader& reader, std::vector<InferParameter>* list) {
    std::optional<MessageReader> entry = reader.Message();
    if (!entry) return;
    if (++parameters_ > kMaxInferParameters) {
      return decoding_.Refuse(FieldError(
          "parameters", absl::StrCat("got more than ", kMaxInferParameters,
                                     ", the most there may be")));
    }
    if (!decoding_.Take(kParameterMemory)) return;
    InferParameter& parameter = list->emplace_back();
    while (entry->Next()) {
      switch (entry->field()) {
        case kMapKey:
          Text(*entry, kMaxInferNameBytes, &parameter.name);
          break;
        case kMapValue:
          Value(*entry, &parameter);
          break;
        default:
          entry->Skip();
      }
    }
  }

  void Value(MessageReader& reader, InferParameter* parameter) {
    std::optional<MessageReader> value = reader.Message();
    if (!value) return;
    while (value->Next()) {
      std::optional<int64_t> integer;
      switch (value->field()) {
        case inference::InferParameter::kBoolParamFieldNumber:
          value->Integer(&integer);
          if (integer) parameter->value = *integer != 0;
          break;
        case inference::InferParameter::kInt64ParamFieldNumber:
          value->Integer(&integer);
          if (integer) parameter->value = *integer;
          break;
        case inference::InferParameter::kUint64ParamFieldNumber:
          value->Integer(&integer);
          if (integer) parameter->value = static_cast<uint64_t>(*integer);
          break;
        case inference::InferParameter::kDoubleParamFieldNumber: {
          std::optional<double> number;
          value->Double(&number);
          if (number) parameter->value = *number;
          break;
        }
        case inference::InferParameter::kStringParamFieldNumber:
          StringValue(*value, parameter);
          break;
        default:
          value->Skip();
      }
    }
  }

  void StringValue(MessageReader& reader, InferParameter* parameter) {
    SliceReader bytes;
    if (!reader.Bytes(&bytes)) return;
    parameter_bytes_ += bytes.remaining();
    if (parameter_bytes_ > kMaxInferParameterBytes) {
      return decoding_.Refuse(LimitError(
          "parameters",
          absl::StrCat("got ", parameter_bytes_, " bytes, wanted at most ",
                       kMaxInferParameterBytes)));
    }
    // Its text, and two lists of the numbers in it: a digit and a comma become
    // 8 bytes in each, which may double while they grow.
    if (!decoding_.Take(32 * bytes.remaining())) return;
    std::string text;
    Text(bytes, bytes.remaining(), &text);
    parameter->value = std::move(text);
  }

  Decoding& decoding_;
  InferRequestFields& fields_;
  size_t parameters_ = 0;
  size_t parameter_bytes_ = 0;
};

}  // namespace

absl::Status DecodeInferRequest(absl::Span<const grpc::Slice> slices,
                                BufferPool& pool, MemoryMeter& meter,
                                InferRequestFields* fields) {
  Decoding decoding("request", "inference.ModelInferRequest", pool, meter);
  MessageReader reader(SliceReader(slices), decoding);
  InferDecoder(decoding, fields).Decode(reader);
  return decoding.status();
}

}  // namespace attention::wire
