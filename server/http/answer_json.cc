#include "server/http/answer_json.h"

#include <cstddef>
#include <memory>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/rpc/raw_call.h"

namespace attention::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// All but the elements of tensors.
constexpr size_t kOtherText = size_t{4} << 10;
// "-1.17549435e-38,": the most characters of a float and the comma behind it.
constexpr size_t kFloatText = 16;

// At least the characters of `message`, where tensors are all that is large.
size_t MostText(const Message& message) {
  size_t bytes = kOtherText;
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->is_repeated() || field->message_type() == nullptr ||
        field->message_type() != v1::Tensor::descriptor()) {
      continue;
    }
    const auto& tensor = static_cast<const v1::Tensor&>(
        message.GetReflection()->GetMessage(message, field));
    bytes += static_cast<size_t>(tensor.float_values_size()) * kFloatText +
             // In base64.
             (tensor.data().size() + 2) / 3 * 4;
  }
  return bytes;
}

}  // namespace

std::optional<std::string> WriteAnswerJson(grpc::ByteBuffer& answer,
                                           const Message& prototype) {
  const std::unique_ptr<Message> message(prototype.New());
  if (!ParseMessage(answer, message.get()).ok()) return std::nullopt;
  answer.Clear();
  std::string json;
  // A string that grows has two copies of itself at times.
  json.reserve(MostText(*message));
  if (!google::protobuf::util::MessageToJsonString(*message, &json).ok()) {
    return std::nullopt;
  }
  return json;
}

}  // namespace attention::server
