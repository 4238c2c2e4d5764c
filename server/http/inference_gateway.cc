#include "server/http/inference_gateway.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "inference/inference.pb.h"
#include "server/http/infer_body.h"
#include "server/http/json_memory.h"
#include "server/http/status_json.h"
#include "server/rpc/raw_call.h"
#include "server/status.h"

namespace attention::server {

HttpResponse InferenceError(int http_status, absl::string_view message) {
  HttpResponse response;
  response.status = http_status;
  response.content_type = "application/json";
  response.body = nlohmann::ordered_json{{"error", message}}.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return response;
}

namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Json = nlohmann::ordered_json;

HttpResponse ErrorOf(const grpc::Status& status) {
  // Its headers too: when to try again, that a token is wanted.
  HttpResponse response = ErrorResponse(status);
  response.body = InferenceError(response.status, status.error_message()).body;
  return response;
}

// A message's fields by their names in the .proto file, numbers as numbers, and
// those that are zero too, as this protocol's clients expect it.
Json ToJson(const Message& message);

Json ValueOf(const Message& message, const FieldDescriptor& field, int i) {
  const auto& reflection = *message.GetReflection();
  const bool repeated = field.is_repeated();
  const auto get = [&](const auto& one, const auto& of_list) -> Json {
    return repeated ? Json(of_list()) : Json(one());
  };
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(repeated ? reflection.GetRepeatedMessage(message, &field, i)
                             : reflection.GetMessage(message, &field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return std::string((repeated
                              ? reflection.GetRepeatedEnum(message, &field, i)
                              : reflection.GetEnum(message, &field))
                             ->name());
    case FieldDescriptor::CPPTYPE_STRING:
      return get(
          [&] { return reflection.GetString(message, &field); },
          [&] { return reflection.GetRepeatedString(message, &field, i); });
    case FieldDescriptor::CPPTYPE_BOOL:
      return get(
          [&] { return reflection.GetBool(message, &field); },
          [&] { return reflection.GetRepeatedBool(message, &field, i); });
    case FieldDescriptor::CPPTYPE_INT32:
      return get(
          [&] { return reflection.GetInt32(message, &field); },
          [&] { return reflection.GetRepeatedInt32(message, &field, i); });
    case FieldDescriptor::CPPTYPE_INT64:
      return get(
          [&] { return reflection.GetInt64(message, &field); },
          [&] { return reflection.GetRepeatedInt64(message, &field, i); });
    case FieldDescriptor::CPPTYPE_UINT32:
      return get(
          [&] { return reflection.GetUInt32(message, &field); },
          [&] { return reflection.GetRepeatedUInt32(message, &field, i); });
    case FieldDescriptor::CPPTYPE_UINT64:
      return get(
          [&] { return reflection.GetUInt64(message, &field); },
          [&] { return reflection.GetRepeatedUInt64(message, &field, i); });
    case FieldDescriptor::CPPTYPE_FLOAT:
      return get(
          [&] { return reflection.GetFloat(message, &field); },
          [&] { return reflection.GetRepeatedFloat(message, &field, i); });
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return get(
          [&] { return reflection.GetDouble(message, &field); },
          [&] { return reflection.GetRepeatedDouble(message, &field, i); });
  }
  return nullptr;
}

Json MapOf(const Message& message, const FieldDescriptor& field) {
  Json json = Json::object();
  const auto& reflection = *message.GetReflection();
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    const Message& entry = reflection.GetRepeatedMessage(message, &field, i);
    const auto& type = *entry.GetDescriptor();
    json[ValueOf(entry, *type.FindFieldByNumber(1), 0).get<std::string>()] =
        ValueOf(entry, *type.FindFieldByNumber(2), 0);
  }
  return json;
}

Json ToJson(const Message& message) {
  Json json = Json::object();
  const auto& reflection = *message.GetReflection();
  const auto& type = *message.GetDescriptor();
  for (int f = 0; f < type.field_count(); ++f) {
    const FieldDescriptor& field = *type.field(f);
    const std::string name(field.name());
    if (field.is_map()) {
      json[name] = MapOf(message, field);
    } else if (field.is_repeated()) {
      Json list = Json::array();
      for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
        list.push_back(ValueOf(message, field, i));
      }
      json[name] = std::move(list);
    } else if (!field.has_presence() || reflection.HasField(message, &field)) {
      json[name] = ValueOf(message, field, 0);
    }
  }
  return json;
}

template <typename T>
std::optional<T> Parse(const grpc::ByteBuffer& buffer) {
  T message;
  if (!ParseMessage(buffer, &message).ok()) return std::nullopt;
  return message;
}

grpc::ByteBuffer BufferOf(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

HttpResponse JsonResponse(const Json& json) {
  HttpResponse response;
  response.body = json.dump();
  response.content_type = "application/json";
  return response;
}

using Writer = std::function<HttpResponse(const grpc::ByteBuffer&)>;

// The answer's JSON.
template <typename T>
HttpResponse WriteMessage(const grpc::ByteBuffer& buffer) {
  const std::optional<T> message = Parse<T>(buffer);
  if (!message) return InferenceError(500, "the answer could not be read");
  return JsonResponse(ToJson(*message));
}

// Its one message's JSON.
template <typename T, typename Part>
Writer WritePart(Part part) {
  return [part](const grpc::ByteBuffer& buffer) {
    const std::optional<T> message = Parse<T>(buffer);
    if (!message) return InferenceError(500, "the answer could not be read");
    return JsonResponse(part(*message));
  };
}

// What a path stands for.
struct Route {
  // POST or GET; empty: there is nothing at the path.
  absl::string_view http_method;
  absl::string_view rpc;
  grpc::ByteBuffer request = {};
  Writer write = {};
  // An inference of that model: its request is in the body.
  bool infer = false;
  // The registration of a region: the rest of its request is in the body.
  bool registers = false;
  std::string model = {}, version = {};
};

using Parts = std::vector<std::string>;

// Of the body that registers a region.
constexpr size_t kMostRegionText = size_t{4} << 10;

Route RouteOfModel(const Parts& parts) {
  // models/NAME[/versions/VERSION][/ACTION]
  std::string version, action;
  size_t next = 2;
  if (parts.size() > next + 1 && parts[next] == "versions") {
    version = parts[next + 1];
    next += 2;
  }
  if (parts.size() == next + 1) action = parts[next];
  if (parts.size() > next + 1) return {};
  const auto of_model = [&](auto request) {
    request.set_name(parts[1]);
    request.set_version(version);
    return BufferOf(request);
  };
  if (action.empty()) {
    return {"GET", "ModelMetadata", of_model(inference::ModelMetadataRequest()),
            WriteMessage<inference::ModelMetadataResponse>};
  }
  if (action == "config") {
    return {"GET", "ModelConfig", of_model(inference::ModelConfigRequest()),
            WritePart<inference::ModelConfigResponse>(
                [](const auto& message) { return ToJson(message.config()); })};
  }
  if (action == "stats") {
    return {"GET", "ModelStatistics",
            of_model(inference::ModelStatisticsRequest()),
            WriteMessage<inference::ModelStatisticsResponse>};
  }
  if (action == "infer") {
    return {.http_method = "POST",
            .rpc = "ModelInfer",
            .infer = true,
            .model = parts[1],
            .version = version};
  }
  return {};
}

// The status of regions: a list, as Triton gives it.
template <typename T>
HttpResponse WriteRegions(const grpc::ByteBuffer& buffer) {
  const std::optional<T> message = Parse<T>(buffer);
  if (!message) return InferenceError(500, "the answer could not be read");
  Json list = Json::array();
  for (const auto& [name, region] : message->regions()) {
    list.push_back(ToJson(region));
  }
  return JsonResponse(list);
}

// systemsharedmemory[/region/NAME]/ACTION, and the same of CUDA.
template <typename Status, typename StatusAnswer, typename Register,
          typename Unregister>
Route RouteOfMemory(const Parts& parts, absl::string_view prefix) {
  static const auto* const rpcs = new std::vector<std::string>{
      absl::StrCat(prefix, "Status"), absl::StrCat(prefix, "Register"),
      absl::StrCat(prefix, "Unregister")};
  std::string region;
  size_t next = 1;
  if (parts.size() == 4 && parts[1] == "region") {
    region = parts[2];
    next = 3;
  }
  if (parts.size() != next + 1) return {};
  const std::string& action = parts[next];
  const auto named = [&](auto request) {
    request.set_name(region);
    return BufferOf(request);
  };
  const auto nothing = [](const grpc::ByteBuffer&) { return HttpResponse(); };
  if (action == "status") {
    return {"GET", (*rpcs)[0], named(Status()), WriteRegions<StatusAnswer>};
  }
  if (action == "register") {
    Route route = {"POST", (*rpcs)[1], named(Register()), nothing};
    route.registers = true;
    return route;
  }
  if (action == "unregister") {
    return {"POST", (*rpcs)[2], named(Unregister()), nothing};
  }
  return {};
}

// Adds "key", "offset" and "byte_size" of a body to a request.
absl::Status AddRegion(const std::string& body, grpc::ByteBuffer& request) {
  auto message = Parse<inference::SystemSharedMemoryRegisterRequest>(request);
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!message || !json.is_object() || body.size() > kMostRegionText) {
    return FieldError("body",
                      "got something else, wanted a JSON object with "
                      "key, offset and byte_size");
  }
  for (const auto& [name, value] : json.items()) {
    if (name == "key" && value.is_string()) {
      message->set_key(value.get<std::string>());
    } else if (name == "offset" && value.is_number_unsigned()) {
      message->set_offset(value.get<uint64_t>());
    } else if (name == "byte_size" && value.is_number_unsigned()) {
      message->set_byte_size(value.get<uint64_t>());
    } else {
      return FieldError("body",
                        "wanted key as text, offset and byte_size as "
                        "numbers, and nothing else");
    }
  }
  request = BufferOf(*message);
  return absl::OkStatus();
}

Route RouteOf(absl::string_view path) {
  const Parts parts = absl::StrSplit(path, '/', absl::SkipEmpty());
  // The first is v2.
  const Parts below(parts.begin() + 1, parts.end());
  if (below.empty()) {
    return {"GET", "ServerMetadata",
            BufferOf(inference::ServerMetadataRequest()),
            WriteMessage<inference::ServerMetadataResponse>};
  }
  if (below == Parts{"models", "stats"}) {
    return {"GET", "ModelStatistics",
            BufferOf(inference::ModelStatisticsRequest()),
            WriteMessage<inference::ModelStatisticsResponse>};
  }
  if (below == Parts{"repository", "index"}) {
    return {"POST", "RepositoryIndex",
            BufferOf(inference::RepositoryIndexRequest()),
            WritePart<inference::RepositoryIndexResponse>(
                [](const auto& message) { return ToJson(message)["models"]; })};
  }
  if (below[0] == "models" && below.size() > 1) return RouteOfModel(below);
  if (below[0] == "systemsharedmemory") {
    return RouteOfMemory<inference::SystemSharedMemoryStatusRequest,
                         inference::SystemSharedMemoryStatusResponse,
                         inference::SystemSharedMemoryRegisterRequest,
                         inference::SystemSharedMemoryUnregisterRequest>(
        below, "SystemSharedMemory");
  }
  if (below[0] == "cudasharedmemory") {
    return RouteOfMemory<inference::CudaSharedMemoryStatusRequest,
                         inference::CudaSharedMemoryStatusResponse,
                         inference::CudaSharedMemoryRegisterRequest,
                         inference::CudaSharedMemoryUnregisterRequest>(
        below, "CudaSharedMemory");
  }
  return {};
}

// As given by Inference-Header-Content-Length; nothing if it is not there.
absl::StatusOr<std::optional<int64_t>> JsonBytes(const HttpRequest& request) {
  const absl::string_view text =
      request.Header("Inference-Header-Content-Length");
  if (text.empty()) return std::nullopt;
  int64_t bytes;
  if (!absl::SimpleAtoi(text, &bytes) || bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Inference-Header-Content-Length: got ", text,
                     ", wanted a number of bytes"));
  }
  return bytes;
}

HttpResponse InferAnswer(const Route& route, const InferBody& asked,
                         const GrpcCaller::Result& result,
                         HttpExchange& exchange) {
  if (!result.status.ok()) return ErrorOf(result.status);
  if (!route.infer) return route.write(result.response);
  // Numbers in JSON take far more than bytes, and are made from them.
  if (!HoldToWrite(result.response, exchange)) {
    return ErrorOf(ToGrpcStatus(TooMuchHeld()));
  }
  absl::StatusOr<HttpResponse> response =
      WriteInferBody(result.response, asked);
  if (!response.ok()) return ErrorOf(ToGrpcStatus(response.status()));
  return *std::move(response);
}

}  // namespace

InferenceGateway::InferenceGateway(const CallGuard& guard, GrpcCaller& caller,
                                   const std::atomic<bool>& ready)
    : guard_(guard), caller_(caller), ready_(ready) {}

HttpResponse InferenceGateway::Health(const HttpRequest& request) const {
  HttpResponse response;
  if (const absl::Status status = guard_.CheckHealth(request); !status.ok()) {
    response = ErrorOf(ToGrpcStatus(status));
  } else if (!ready_ && request.path != kHealthPaths[0]) {
    response = InferenceError(503, "not ready");
  }
  guard_.FinisherOf(request)(response);
  return response;
}

std::optional<HttpResponse> InferenceGateway::Guard(
    const HttpRequest& request) const {
  const Origins::Check origin = guard_.origins().Of(request);
  const auto refuse = [&](HttpResponse response) {
    guard_.FinisherOf(request)(response);
    return response;
  };
  Route route = RouteOf(request.path);
  // Served by Health(), but for other methods.
  for (const char* path : kHealthPaths) {
    if (request.path == path) route.http_method = "GET";
  }
  if (route.http_method.empty()) {
    return refuse(InferenceError(
        404, absl::StrCat("there is nothing at ", request.path)));
  }
  if (request.method == "OPTIONS" && origin.named()) {
    return refuse(origin.Preflight(route.http_method));
  }
  if (request.method != route.http_method &&
      !(request.method == "HEAD" && route.http_method == "GET")) {
    HttpResponse response = InferenceError(
        405, absl::StrCat(request.path, " takes ", route.http_method, ", not ",
                          request.method));
    response.headers.emplace_back("Allow", route.http_method);
    return refuse(std::move(response));
  }
  if (const auto tenant = guard_.Check(request); !tenant.ok()) {
    return refuse(ErrorOf(ToGrpcStatus(tenant.status())));
  }
  if (IsCompressed(request)) return refuse(InferenceError(415, kCompressed));
  if (const auto call = CallOf(request); !call.ok()) {
    return refuse(ErrorOf(ToGrpcStatus(call.status())));
  }
  if (const auto bytes = JsonBytes(request); !bytes.ok()) {
    return refuse(ErrorOf(ToGrpcStatus(bytes.status())));
  }
  return std::nullopt;
}

void InferenceGateway::Handle(
    const HttpRequest& request,
    const std::shared_ptr<HttpExchange>& exchange) const {
  const auto answer =
      [exchange, finish = guard_.FinisherOf(request)](HttpResponse response) {
        finish(response);
        exchange->Answer(std::move(response));
      };
  const auto fail = [answer](const absl::Status& status) {
    answer(ErrorOf(ToGrpcStatus(status)));
  };
  // Guard() has looked, but tokens may be others by now.
  absl::StatusOr<TenantPtr> tenant = guard_.Check(request);
  if (!tenant.ok()) return fail(tenant.status());
  absl::StatusOr<GrpcCaller::Call> made = CallOf(request);
  const auto json_bytes = JsonBytes(request);
  if (!made.ok() || !json_bytes.ok()) return exchange->Abort();
  const auto route = std::make_shared<Route>(RouteOf(request.path));
  const auto call = std::make_shared<GrpcCaller::Call>(*std::move(made));
  call->method = absl::StrCat("/inference.GRPCInferenceService/", route->rpc);
  call->tenant = *std::move(tenant);
  const auto body = std::make_shared<std::string>(std::move(request.body));

  WorkLane::Work work = {.exchange = exchange,
                         .tenant = call->tenant,
                         .bytes = static_cast<int64_t>(body->size()),
                         .deadline = call->deadline};
  work.expired = [fail] { fail(DeadlineBeforeWork()); };
  work.run = [this, exchange, answer, fail, route, call, body,
              json_bytes = *json_bytes] {
    const auto asked = std::make_shared<InferBody>();
    if (route->infer) {
      if (!HoldToRead(*body, *exchange)) return fail(TooMuchHeld());
      const auto bytes = static_cast<int64_t>(body->size());
      absl::StatusOr<InferBody> read = ReadInferBody(
          std::move(*body), json_bytes, route->model, route->version);
      if (!read.ok()) return fail(read.status());
      *asked = *std::move(read);
      // The body lives on in the message.
      if (!exchange->Hold(bytes +
                          static_cast<int64_t>(asked->request.Length()))) {
        return fail(TooMuchHeld());
      }
      call->request = asked->request;
      asked->request.Clear();
    } else {
      call->request = route->request;
    }
    if (route->registers && route->rpc == "SystemSharedMemoryRegister") {
      absl::Status status = AddRegion(*body, call->request);
      if (!status.ok()) return fail(status);
    }
    caller_.Start(
        exchange, *call,
        [exchange, answer, route, asked](const GrpcCaller::Result& result) {
          answer(InferAnswer(*route, *asked, result, *exchange));
        });
  };
  caller_.Post(std::move(work));
}

}  // namespace attention::server
