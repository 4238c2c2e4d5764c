// Bodies of calls over HTTP: whatever comes, it is read or refused, and what
// was read is a message.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "google/protobuf/util/json_util.h"
#include "grpcpp/support/slice.h"
#include "inference/inference.pb.h"
#include "server/http/infer_body.h"
#include "server/http/tensor_lists.h"

namespace {

void Read(absl::string_view json, google::protobuf::Message&& message) {
  const auto expanded =
      attention::server::ExpandTensorLists(json, *message.GetDescriptor());
  if (!expanded.ok()) return;
  static_cast<void>(
      google::protobuf::util::JsonStringToMessage(*expanded, &message));
}

void ReadInference(absl::string_view body, std::optional<int64_t> json_bytes) {
  const auto read = attention::server::ReadInferBody(
      std::string(body), json_bytes, "attention", "");
  if (!read.ok()) return;
  std::vector<grpc::Slice> slices;
  if (!read->request.Dump(&slices).ok()) std::abort();
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  inference::ModelInferRequest request;
  if (!request.ParseFromString(bytes)) std::abort();
  // An input without bytes would get those of the next one.
  if (request.raw_input_contents_size() != request.inputs_size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  Read(json, attention::v1::ComputeAttentionRequest());
  Read(json, attention::v1::ForkSessionsRequest());
  ReadInference(json, std::nullopt);
  // Bytes may stand behind the last brace.
  const size_t end = json.rfind('}');
  if (end != absl::string_view::npos) {
    ReadInference(json, static_cast<int64_t>(end) + 1);
  }
  return 0;
}
