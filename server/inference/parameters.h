// The options of an inference as its parameters say them.
#ifndef ATTENTION_SERVER_INFERENCE_PARAMETERS_H_
#define ATTENTION_SERVER_INFERENCE_PARAMETERS_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "wire/compute_request.h"
#include "wire/infer_request.h"

namespace attention::server {

// Sets the fields that the parameters name: those of AttentionOptions, and
// valid_lengths, query_starts and key_starts of the request, of at most
// `most_numbers` numbers each.
//
// Errors: InvalidArgument with ErrorField() "parameters.NAME".
absl::Status SetParameters(const std::vector<wire::InferParameter>& parameters,
                           size_t most_numbers, wire::RequestFields* fields);

// Whether Triton keeps a parameter's name to itself; it means nothing here.
bool IsReservedParameter(absl::string_view name);

// Whether the parameters of the input or output `path` ask for nothing that is
// not done. Errors: InvalidArgument with ErrorField() "PATH.parameters.NAME".
absl::Status CheckTensorParameters(
    absl::string_view path,
    const std::vector<wire::InferParameter>& parameters);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_PARAMETERS_H_
