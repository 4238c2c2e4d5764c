#include "server/inference/request.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/v1/attention.pb.h"
#include "base/field_error.h"
#include "inference/inference.pb.h"
#include "server/inference/model.h"
#include "server/inference/parameters.h"
#include "server/status.h"
#include "server/utf8.h"
#include "wire/buffer_slice.h"
#include "wire/data_type.h"

namespace attention::server {
namespace {

using inference::InferTensorContents;
using v1::ComputeAttentionResponse;
using wire::InferContents;
using wire::InferTensor;
using wire::TensorFields;

struct Input {
  const char* name;
  TensorFields wire::RequestFields::* target;
};

constexpr Input kInputs[] = {{"query", &wire::RequestFields::query},
                             {"key", &wire::RequestFields::key},
                             {"value", &wire::RequestFields::value},
                             {"mask", &wire::RequestFields::mask},
                             {"past_key", &wire::RequestFields::past_key},
                             {"past_value", &wire::RequestFields::past_value},
                             {"indices", &wire::RequestFields::indices},
                             {"sinks", &wire::RequestFields::sinks}};

constexpr std::pair<const char*, int> kOutputs[] = {
    {"output", ComputeAttentionResponse::kOutputFieldNumber},
    {"log_sum_exp", ComputeAttentionResponse::kLogSumExpFieldNumber},
    {"scores", ComputeAttentionResponse::kScoresFieldNumber},
    {"present_key", ComputeAttentionResponse::kPresentKeyFieldNumber},
    {"present_value", ComputeAttentionResponse::kPresentValueFieldNumber}};

absl::string_view NameOfOutput(int field) {
  for (const auto& [name, number] : kOutputs) {
    if (number == field) return name;
  }
  return "";
}

// The list that holds elements of a type; nothing where none does.
std::optional<int> ListOf(DataType type) {
  switch (type) {
    case DataType::kBool:
      return InferTensorContents::kBoolContentsFieldNumber;
    case DataType::kInt8:
    case DataType::kInt32:
      return InferTensorContents::kIntContentsFieldNumber;
    case DataType::kInt64:
      return InferTensorContents::kInt64ContentsFieldNumber;
    case DataType::kFloat32:
      return InferTensorContents::kFp32ContentsFieldNumber;
    case DataType::kFloat64:
      return InferTensorContents::kFp64ContentsFieldNumber;
    default:
      return std::nullopt;
  }
}

std::string ListName(int field) {
  // A string_view in newer versions of protobuf.
  return std::string(
      InferTensorContents::descriptor()->FindFieldByNumber(field)->name());
}

class Converter {
 public:
  Converter(size_t most_numbers, BufferPool& pool, wire::MemoryMeter& meter,
            const NamedCaller& caller)
      : most_numbers_(most_numbers),
        pool_(pool),
        meter_(meter),
        caller_(caller) {}

  absl::StatusOr<InferRequest> Convert(wire::InferRequestFields from) {
    absl::Status status = CheckModel(from.model_name, from.model_version);
    if (status.ok()) status = CheckId(from.id);
    if (status.ok()) status = Inputs(from);
    if (status.ok()) {
      status = SetParameters(from.parameters, most_numbers_, &request_.fields);
    }
    if (status.ok()) status = Outputs(from.outputs);
    if (!status.ok()) return status;
    return std::move(request_);
  }

 private:
  static absl::Status CheckId(const std::string& id) {
    if (id.size() > wire::kMaxInferIdBytes) {
      return FieldError("id",
                        absl::StrCat("got more than ", wire::kMaxInferIdBytes,
                                     " bytes, the most there may be"));
    }
    if (!IsUtf8(id)) return FieldError("id", "got bytes, wanted UTF-8");
    return absl::OkStatus();
  }

  absl::Status Inputs(wire::InferRequestFields& from) {
    std::vector<std::optional<NamedPlace>> places;
    size_t in_message = 0;
    for (const InferTensor& input : from.inputs) {
      auto place =
          ReadTensorParameters(PathOf("inputs", input), input.parameters);
      if (!place.ok()) return place.status();
      in_message += !place->has_value();
      places.push_back(*std::move(place));
    }
    const size_t raw = from.raw_input_contents.size();
    if (raw > 0 && raw != in_message) {
      return FieldError(
          "raw_input_contents",
          absl::StrCat("got ", raw, ", wanted ", in_message,
                       ": one for each of inputs that is not in shared memory, "
                       "or none"));
    }
    const wire::SliceReader* next = from.raw_input_contents.data();
    for (size_t i = 0; i < from.inputs.size(); ++i) {
      const bool here = raw > 0 && !places[i];
      absl::Status status =
          SetInput(from.inputs[i], here ? next : nullptr, places[i]);
      if (!status.ok()) return status;
      if (here) ++next;
    }
    return absl::OkStatus();
  }

  static std::string PathOf(absl::string_view list, const InferTensor& tensor) {
    return absl::StrCat(list, ".", Shown(tensor.name));
  }

  absl::Status SetInput(InferTensor& from, const wire::SliceReader* raw,
                        const std::optional<NamedPlace>& place) {
    const std::string path = PathOf("inputs", from);
    const auto* const input = std::find_if(
        std::begin(kInputs), std::end(kInputs),
        [&](const Input& known) { return from.name == known.name; });
    if (input == std::end(kInputs)) {
      return FieldError(path,
                        "unknown, wanted query, key, value, mask, past_key, "
                        "past_value, indices or sinks");
    }
    TensorFields& to = request_.fields.*input->target;
    if (to.present) return FieldError(path, "got two, wanted one");
    const std::optional<DataType> type = DatatypeFromName(from.datatype);
    if (!type) {
      return FieldError(absl::StrCat(path, ".datatype"),
                        absl::StrCat("got \"", Shown(from.datatype),
                                     "\", wanted ", kDatatypeNames));
    }
    to.present = true;
    to.data_type = wire::ToWire(*type);
    to.shape = std::move(from.shape);
    to.rank = from.rank;
    if (place) {
      if (from.contents.lists != 0) {
        return FieldError(absl::StrCat(path, ".contents"),
                          "got both it and a place in shared memory");
      }
      return SetFromPlace(path, *place, &to);
    }
    return SetElements(absl::StrCat(path, ".contents"), *type, from.contents,
                       raw, &to);
  }

  // The region of a place, which holds it.
  absl::StatusOr<NamedRegionPtr> RegionOf(const std::string& path,
                                          const NamedPlace& place) const {
    const std::string field =
        absl::StrCat(path, ".parameters.shared_memory_region");
    NamedRegionPtr region =
        caller_.regions == nullptr
            ? nullptr
            : caller_.regions->Find(caller_.tenant, place.region);
    if (region == nullptr) return UnknownRegion(field);
    if (!region->Holds(place.offset, place.bytes)) {
      return FieldError(
          absl::StrCat(path, ".parameters.shared_memory_byte_size"),
          absl::StrCat("got ", place.bytes, " at offset ", place.offset,
                       ", wanted bytes that the region has"));
    }
    return region;
  }

  absl::Status SetFromPlace(const std::string& path, const NamedPlace& place,
                            TensorFields* to) {
    auto region = RegionOf(path, place);
    if (!region.ok()) return region.status();
    absl::Status status = meter_.Take(place.bytes);
    if (!status.ok()) return status;
    const auto bytes = static_cast<size_t>(place.bytes);
    Buffer elements = pool_.Allocate(bytes);
    if (!(*region)->Read(place.offset,
                         absl::MakeSpan(elements.data(), bytes))) {
      return FieldError(
          absl::StrCat(path, ".parameters.shared_memory_byte_size"),
          "the memory has become smaller since it was registered");
    }
    to->data = Keep(std::move(elements), bytes);
    return absl::OkStatus();
  }

  absl::Status SetElements(const std::string& path, DataType type,
                           InferContents& contents,
                           const wire::SliceReader* raw, TensorFields* to) {
    if (raw != nullptr) {
      to->data = *raw;
      if (contents.lists == 0) return absl::OkStatus();
      return FieldError(path, "got both it and raw_input_contents, wanted one");
    }
    if (contents.lists == 0) return absl::OkStatus();
    const std::optional<int> list = ListOf(type);
    if (!list) {
      return FieldError(path, absl::StrCat("got it for ", DatatypeName(type),
                                           ", wanted raw_input_contents"));
    }
    if (contents.lists != uint32_t{1} << *list) {
      const uint32_t others = contents.lists & ~(uint32_t{1} << *list);
      return FieldError(
          path,
          absl::StrCat("got ", ListName(std::countr_zero(others)), ", wanted ",
                       ListName(*list), " for ", DatatypeName(type)));
    }
    if (type == DataType::kFloat32) {
      to->float_values = std::move(contents.floats);
      return absl::OkStatus();
    }
    if (type == DataType::kFloat64) {
      const size_t bytes = contents.doubles.count * sizeof(double);
      to->data = Keep(std::move(contents.doubles.values), bytes);
      return absl::OkStatus();
    }
    return SetIntegers(absl::StrCat(path, ".", ListName(*list)), type,
                       contents.integers, to);
  }

  absl::Status SetIntegers(const std::string& path, DataType type,
                           const std::vector<int64_t>& from, TensorFields* to) {
    if (type == DataType::kInt8) {
      for (const int64_t number : from) {
        if (number == static_cast<int8_t>(number)) continue;
        return FieldError(path, absl::StrCat("got ", number,
                                             ", wanted -128 to 127 for INT8"));
      }
    }
    const size_t size = attention::SizeOf(type);
    const size_t bytes = from.size() * size;
    absl::Status status = meter_.Take(static_cast<int64_t>(bytes));
    if (!status.ok()) return status;
    Buffer elements = pool_.Allocate(bytes);
    // Little-endian: the low bytes come first.
    for (size_t i = 0; i < from.size(); ++i) {
      std::memcpy(elements.data() + i * size, &from[i], size);
    }
    to->data = Keep(std::move(elements), bytes);
    return absl::OkStatus();
  }

  wire::SliceReader Keep(Buffer buffer, size_t bytes) {
    const grpc::Slice& slice = request_.contents.emplace_back(
        wire::ToSlice(std::move(buffer), 0, bytes));
    return wire::SliceReader(absl::MakeConstSpan(&slice, 1));
  }

  absl::Status Outputs(const std::vector<InferTensor>& outputs) {
    for (const InferTensor& output : outputs) {
      const std::string path = PathOf("outputs", output);
      const auto* const known = std::find_if(
          std::begin(kOutputs), std::end(kOutputs),
          [&](const auto& entry) { return output.name == entry.first; });
      if (known == std::end(kOutputs)) {
        return FieldError(path,
                          "unknown, wanted output, log_sum_exp, scores, "
                          "present_key or present_value");
      }
      auto place = ReadTensorParameters(path, output.parameters);
      if (!place.ok()) return place.status();
      if (Asked(known->second)) {
        return FieldError(path, "got two, wanted one");
      }
      InferOutput& asked =
          request_.outputs.emplace_back(InferOutput{.field = known->second});
      if (!*place) continue;
      auto region = RegionOf(path, **place);
      if (!region.ok()) return region.status();
      asked.region = *std::move(region);
      asked.place = **std::move(place);
    }
    if (!outputs.empty()) ComputeThose();
    return absl::OkStatus();
  }

  bool Asked(int field) const {
    return std::any_of(
        request_.outputs.begin(), request_.outputs.end(),
        [&](const InferOutput& output) { return output.field == field; });
  }

  // The options that make the outputs, and no others, from those that were
  // named.
  void ComputeThose() {
    v1::AttentionOptions& options = request_.fields.options;
    options.set_return_log_sum_exp(
        Asked(ComputeAttentionResponse::kLogSumExpFieldNumber));
    options.set_return_present(
        Asked(ComputeAttentionResponse::kPresentKeyFieldNumber) ||
        Asked(ComputeAttentionResponse::kPresentValueFieldNumber));
    if (!Asked(ComputeAttentionResponse::kScoresFieldNumber)) {
      options.set_return_scores(v1::SCORES_UNSPECIFIED);
    } else if (options.return_scores() == v1::SCORES_UNSPECIFIED) {
      options.set_return_scores(v1::SCORES_WEIGHTS);
    }
  }

  const size_t most_numbers_;
  BufferPool& pool_;
  wire::MemoryMeter& meter_;
  const NamedCaller caller_;
  InferRequest request_;
};

// The path in a ModelInferRequest of "query.data_type".
std::string PathOfInput(absl::string_view field) {
  if (absl::ConsumeSuffix(&field, ".data_type")) {
    return absl::StrCat("inputs.", field, ".datatype");
  }
  if (absl::ConsumeSuffix(&field, ".float_values")) {
    return absl::StrCat("inputs.", field, ".contents.fp32_contents");
  }
  return absl::StrCat("inputs.", field);
}

}  // namespace

absl::StatusOr<InferRequest> ToInferRequest(wire::InferRequestFields fields,
                                            size_t most_numbers,
                                            BufferPool& pool,
                                            wire::MemoryMeter& meter,
                                            const NamedCaller& caller) {
  return Converter(most_numbers, pool, meter, caller)
      .Convert(std::move(fields));
}

absl::Status CheckPlaces(const InferOutputs& outputs,
                         const AttentionPlan& plan) {
  const std::pair<int, std::optional<TensorSpec>> computed[] = {
      {ComputeAttentionResponse::kOutputFieldNumber, plan.output},
      {ComputeAttentionResponse::kLogSumExpFieldNumber, plan.log_sum_exp},
      {ComputeAttentionResponse::kScoresFieldNumber, plan.scores},
      {ComputeAttentionResponse::kPresentKeyFieldNumber, plan.present_key},
      {ComputeAttentionResponse::kPresentValueFieldNumber, plan.present_value}};
  for (const InferOutput& output : outputs) {
    if (output.region == nullptr) continue;
    for (const auto& [field, spec] : computed) {
      if (field != output.field || !spec) continue;
      const int64_t bytes = spec->num_bytes();
      if (bytes <= output.place.bytes) continue;
      return FieldError(absl::StrCat("outputs.", NameOfOutput(field),
                                     ".parameters.shared_memory_byte_size"),
                        absl::StrCat("got ", output.place.bytes, ", wanted ",
                                     bytes, " for the output or more"));
    }
  }
  return absl::OkStatus();
}

absl::Status OfInferRequest(const absl::Status& status) {
  const std::string field = ErrorField(status);
  absl::string_view rest = field;
  for (const Input& input : kInputs) {
    if (field == input.name ||
        absl::StartsWith(field, absl::StrCat(input.name, "."))) {
      return OfField(PathOfInput(field), status);
    }
  }
  // "valid_lengths[0]" too.
  if (absl::ConsumePrefix(&rest, "options.") ||
      absl::StartsWith(field, "valid_lengths") ||
      absl::StartsWith(field, "query_starts") ||
      absl::StartsWith(field, "key_starts")) {
    return OfField(absl::StrCat("parameters.", rest), status);
  }
  return status;
}

}  // namespace attention::server
