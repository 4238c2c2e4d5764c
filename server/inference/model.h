// The one model that clients of the Open Inference Protocol see: attention.
#ifndef ATTENTION_SERVER_INFERENCE_MODEL_H_
#define ATTENTION_SERVER_INFERENCE_MODEL_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "inference/inference.pb.h"
#include "kernel/data_type.h"

namespace attention::server {

inline constexpr absl::string_view kModelName = "attention";
inline constexpr absl::string_view kModelVersion = "1";

// Whether a request of `name` and `version`, which may be empty, is about the
// model. NotFound (kModelUnknown) otherwise.
absl::Status CheckModel(absl::string_view name, absl::string_view version);

// "FP32". Nothing for names that the protocol or the model does not know.
absl::string_view DatatypeName(DataType type);
std::optional<DataType> DatatypeFromName(absl::string_view name);
// All of them, for errors.
inline constexpr absl::string_view kDatatypeNames =
    "FP32, FP16, BF16, FP64, BOOL, INT8, INT32 or INT64";

inference::ModelMetadataResponse ModelMetadata();
inference::ModelConfig ModelConfiguration();

// A client's text in an error: printable, and cut where it is long.
std::string Shown(absl::string_view text);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_MODEL_H_
