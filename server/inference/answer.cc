#include "server/inference/answer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "inference/inference.pb.h"
#include "server/inference/model.h"
#include "wire/in_place_tensor.h"

namespace attention::server {
namespace {

using inference::ModelInferResponse;
using OutputMessage = ModelInferResponse::InferOutputTensor;

}  // namespace

wire::MessageWriter StartInferAnswer(absl::string_view id) {
  wire::MessageWriter answer;
  answer.Copy(ModelInferResponse::kModelNameFieldNumber, kModelName);
  answer.Copy(ModelInferResponse::kModelVersionFieldNumber, kModelVersion);
  answer.Copy(ModelInferResponse::kIdFieldNumber, id);
  return answer;
}

void AddOutputs(ResponseEncoder& encoder, absl::Span<const int> outputs,
                wire::MessageWriter& answer) {
  std::vector<wire::InPlaceTensor> tensors = encoder.TakeTensors();
  const auto sent = [&](const wire::InPlaceTensor& tensor) {
    return outputs.empty() || std::find(outputs.begin(), outputs.end(),
                                        tensor.field()) != outputs.end();
  };
  for (const wire::InPlaceTensor& tensor : tensors) {
    if (!sent(tensor)) continue;
    wire::MessageWriter output;
    output.Copy(OutputMessage::kNameFieldNumber,
                v1::ComputeAttentionResponse::descriptor()
                    ->FindFieldByNumber(tensor.field())
                    ->name());
    output.Copy(OutputMessage::kDatatypeFieldNumber,
                DatatypeName(tensor.spec().type));
    output.Integers(OutputMessage::kShapeFieldNumber, tensor.spec().shape);
    answer.Message(ModelInferResponse::kOutputsFieldNumber, std::move(output));
  }
  for (wire::InPlaceTensor& tensor : tensors) {
    if (!sent(tensor)) continue;
    std::move(tensor).WriteElements(
        ModelInferResponse::kRawOutputContentsFieldNumber, answer);
  }
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
