#include "server/inference/model.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/status.h"

namespace attention::server {
namespace {

constexpr std::pair<DataType, absl::string_view> kDatatypes[] = {
    {DataType::kFloat32, "FP32"},  {DataType::kFloat16, "FP16"},
    {DataType::kBFloat16, "BF16"}, {DataType::kFloat64, "FP64"},
    {DataType::kBool, "BOOL"},     {DataType::kInt8, "INT8"},
    {DataType::kInt32, "INT32"},   {DataType::kInt64, "INT64"}};

struct Input {
  const char* name;
  bool optional;
  // One that it may have; others are taken, too.
  inference::DataType type = inference::TYPE_FP32;
};

constexpr Input kInputs[] = {{"query", false},
                             {"key", false},
                             {"value", false},
                             {"mask", true},
                             {"past_key", true},
                             {"past_value", true},
                             {"indices", true, inference::TYPE_INT64},
                             {"sinks", true}};
// Of layout BHSD.
constexpr int kDims = 4;

}  // namespace

absl::Status CheckModel(absl::string_view name, absl::string_view version) {
  const auto unknown = [](absl::string_view what, absl::string_view got,
                          absl::string_view wanted) {
    return WithReason(
        Reason::kModelUnknown,
        absl::NotFoundError(absl::StrCat(what, ": got \"", Shown(got),
                                         "\", wanted \"", wanted, "\"")));
  };
  if (name != kModelName) return unknown("model name", name, kModelName);
  if (!version.empty() && version != kModelVersion) {
    return unknown("model version", version, kModelVersion);
  }
  return absl::OkStatus();
}

absl::string_view DatatypeName(DataType type) {
  for (const auto& [known, name] : kDatatypes) {
    if (known == type) return name;
  }
  return "";
}

std::optional<DataType> DatatypeFromName(absl::string_view name) {
  for (const auto& [type, known] : kDatatypes) {
    if (known == name) return type;
  }
  return std::nullopt;
}

inference::ModelMetadataResponse ModelMetadata() {
  inference::ModelMetadataResponse metadata;
  metadata.set_name(std::string(kModelName));
  metadata.add_versions(std::string(kModelVersion));
  metadata.set_platform(std::string(kModelName));
  const auto describe = [](const char* name, inference::DataType type,
                           auto* tensor) {
    tensor->set_name(name);
    tensor->set_datatype(std::string(
        absl::StripPrefix(inference::DataType_Name(type), "TYPE_")));
    tensor->mutable_shape()->Resize(kDims, -1);
  };
  for (const Input& input : kInputs) {
    describe(input.name, input.type, metadata.add_inputs());
  }
  describe("output", inference::TYPE_FP32, metadata.add_outputs());
  return metadata;
}

inference::ModelConfig ModelConfiguration() {
  inference::ModelConfig config;
  config.set_name(std::string(kModelName));
  config.set_platform(std::string(kModelName));
  config.set_backend(std::string(kModelName));
  const auto describe = [](const char* name, inference::DataType type,
                           auto* tensor) {
    tensor->set_name(name);
    tensor->set_data_type(type);
    tensor->mutable_dims()->Resize(kDims, -1);
  };
  for (const Input& input : kInputs) {
    inference::ModelInput* const described = config.add_input();
    describe(input.name, input.type, described);
    described->set_optional(input.optional);
  }
  describe("output", inference::TYPE_FP32, config.add_output());
  return config;
}

std::string Shown(absl::string_view text) {
  constexpr size_t kMost = 64;
  std::string shown = absl::CHexEscape(text.substr(0, kMost));
  if (text.size() > kMost) shown += "...";
  return shown;
}

}  // namespace attention::server
