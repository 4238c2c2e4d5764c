// The options of an inference as its parameters say them.
#ifndef ATTENTION_SERVER_INFERENCE_PARAMETERS_H_
#define ATTENTION_SERVER_INFERENCE_PARAMETERS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

// Where a tensor lies, in memory that the client has registered.
struct NamedPlace {
  std::string region;
  int64_t offset = 0;
  int64_t bytes = 0;
};

// What the parameters of the input or output `path` ask for; nothing: that it
// is in the message. Errors: InvalidArgument with ErrorField()
// "PATH.parameters.NAME".
absl::StatusOr<std::optional<NamedPlace>> ReadTensorParameters(
    absl::string_view path,
    const std::vector<wire::InferParameter>& parameters);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_PARAMETERS_H_
