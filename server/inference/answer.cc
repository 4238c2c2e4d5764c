#include "server/inference/answer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "base/field_error.h"
#include "inference/inference.pb.h"
#include "server/inference/model.h"
#include "wire/in_place_tensor.h"

namespace attention::server {
namespace {

using inference::ModelInferResponse;
using OutputMessage = ModelInferResponse::InferOutputTensor;

void AddParameter(absl::string_view name,
                  const inference::InferParameter& value,
                  wire::MessageWriter& output) {
  wire::MessageWriter entry;
  entry.Copy(/*field=*/1, name);
  entry.Message(/*field=*/2, value);
  output.Message(OutputMessage::kParametersFieldNumber, std::move(entry));
}

// Where an output's elements are, of which there are so many bytes.
void AddPlace(const NamedPlace& place, int64_t bytes,
              wire::MessageWriter& output) {
  inference::InferParameter value;
  value.set_string_param(place.region);
  AddParameter("shared_memory_region", value, output);
  value.set_int64_param(bytes);
  AddParameter("shared_memory_byte_size", value, output);
  if (place.offset == 0) return;
  value.set_int64_param(place.offset);
  AddParameter("shared_memory_offset", value, output);
}

}  // namespace

wire::MessageWriter StartInferAnswer(absl::string_view id) {
  wire::MessageWriter answer;
  answer.Copy(ModelInferResponse::kModelNameFieldNumber, kModelName);
  answer.Copy(ModelInferResponse::kModelVersionFieldNumber, kModelVersion);
  answer.Copy(ModelInferResponse::kIdFieldNumber, id);
  return answer;
}

absl::Status AddOutputs(ResponseEncoder& encoder,
                        absl::Span<const InferOutput> outputs,
                        wire::MessageWriter& answer) {
  std::vector<wire::InPlaceTensor> tensors = encoder.TakeTensors();
  // Null: it is not to be sent.
  const auto asked = [&](const wire::InPlaceTensor& tensor) {
    static const InferOutput all;
    if (outputs.empty()) return &all;
    const auto* const found = std::find_if(
        outputs.begin(), outputs.end(), [&](const InferOutput& output) {
          return output.field == tensor.field();
        });
    return found == outputs.end() ? nullptr : found;
  };
  for (const wire::InPlaceTensor& tensor : tensors) {
    const InferOutput* const wanted = asked(tensor);
    if (wanted == nullptr) continue;
    wire::MessageWriter output;
    const auto name = v1::ComputeAttentionResponse::descriptor()
                          ->FindFieldByNumber(tensor.field())
                          ->name();
    output.Copy(OutputMessage::kNameFieldNumber, name);
    output.Copy(OutputMessage::kDatatypeFieldNumber,
                DatatypeName(tensor.spec().type));
    output.Integers(OutputMessage::kShapeFieldNumber, tensor.spec().shape);
    if (wanted->region != nullptr) {
      if (!wanted->region->Write(wanted->place.offset, tensor.elements())) {
        return FieldError(
            absl::StrCat("outputs.", name,
                         ".parameters.shared_memory_byte_size"),
            "the memory has become smaller since it was registered");
      }
      AddPlace(wanted->place, tensor.spec().num_bytes(), output);
    }
    answer.Message(ModelInferResponse::kOutputsFieldNumber, std::move(output));
  }
  for (wire::InPlaceTensor& tensor : tensors) {
    const InferOutput* const wanted = asked(tensor);
    if (wanted == nullptr) continue;
    if (wanted->region == nullptr) {
      std::move(tensor).WriteElements(
          ModelInferResponse::kRawOutputContentsFieldNumber, answer);
    } else {
      // Clients count outputs along with these.
      answer.PlaceElement(ModelInferResponse::kRawOutputContentsFieldNumber,
                          {});
    }
  }
  return absl::OkStatus();
}

void AddFinal(wire::MessageWriter& answer) {
  inference::InferParameter yes;
  yes.set_bool_param(true);
  wire::MessageWriter entry;
  entry.Copy(/*field=*/1, "triton_final_response");
  entry.Message(/*field=*/2, yes);
  answer.Message(ModelInferResponse::kParametersFieldNumber, std::move(entry));
}

}  // namespace attention::server
