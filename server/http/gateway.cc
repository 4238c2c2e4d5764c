#include "server/http/gateway.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "google/protobuf/util/json_util.h"
#include "server/http/answer_json.h"
#include "server/http/json_memory.h"
#include "server/http/status_json.h"
#include "server/http/tensor_lists.h"
#include "server/status.h"

namespace attention::server {
namespace {

using google::protobuf::Message;

// A gRPC method at a path. With "{id}" the path has any text there, which
// becomes the request's field `id`.
struct Method {
  absl::string_view http_method;
  absl::string_view path;
  absl::string_view rpc;
  const Message& request;
  const Message& response;
};

const std::vector<Method>& Methods() {
  static const auto* const methods = new std::vector<Method>{
      {"POST", "/v1/attention:compute",
       "/attention.v1.AttentionService/ComputeAttention",
       v1::ComputeAttentionRequest::default_instance(),
       v1::ComputeAttentionResponse::default_instance()},
      {"GET", "/v1/capabilities",
       "/attention.v1.AttentionService/GetCapabilities",
       v1::GetCapabilitiesRequest::default_instance(),
       v1::GetCapabilitiesResponse::default_instance()},
      {"GET", "/v1/sessions", "/attention.v1.SessionService/ListSessions",
       v1::ListSessionsRequest::default_instance(),
       v1::ListSessionsResponse::default_instance()},
      {"POST", "/v1/sessions", "/attention.v1.SessionService/CreateSession",
       v1::CreateSessionRequest::default_instance(),
       v1::CreateSessionResponse::default_instance()},
      {"POST", "/v1/sessions:fork", "/attention.v1.SessionService/ForkSessions",
       v1::ForkSessionsRequest::default_instance(),
       v1::ForkSessionsResponse::default_instance()},
      {"GET", "/v1/sessions/{id}", "/attention.v1.SessionService/GetSession",
       v1::GetSessionRequest::default_instance(),
       v1::GetSessionResponse::default_instance()},
      {"DELETE", "/v1/sessions/{id}",
       "/attention.v1.SessionService/DeleteSession",
       v1::DeleteSessionRequest::default_instance(),
       v1::DeleteSessionResponse::default_instance()},
      {"POST", "/v1/sessions/{id}:truncate",
       "/attention.v1.SessionService/TruncateSession",
       v1::TruncateSessionRequest::default_instance(),
       v1::TruncateSessionResponse::default_instance()},
      {"POST", "/v1/sessions/{id}:append",
       "/attention.v1.SessionService/AppendKeyValues",
       v1::AppendKeyValuesRequest::default_instance(),
       v1::AppendKeyValuesResponse::default_instance()},
      {"POST", "/v1/sessions/{id}:attend",
       "/attention.v1.SessionService/Attend",
       v1::AttendRequest::default_instance(),
       v1::AttendResponse::default_instance()}};
  return *methods;
}

bool HasVerb(absl::string_view path) {
  return absl::EndsWith(path, ":append") || absl::EndsWith(path, ":attend") ||
         absl::EndsWith(path, ":truncate");
}

// Whether `path` is the method's; *id: what stands for "{id}". A verb at the
// end is never part of an id.
bool Matches(const Method& method, absl::string_view path, std::string* id) {
  if (HasVerb(path) != HasVerb(method.path)) return false;
  const size_t mark = method.path.find("{id}");
  if (mark == absl::string_view::npos) return path == method.path;
  if (!absl::ConsumePrefix(&path, method.path.substr(0, mark)) ||
      !absl::ConsumeSuffix(&path, method.path.substr(mark + 4))) {
    return false;
  }
  *id = std::string(path);
  return !path.empty();
}

// Text of requests without tensors, which gRPC takes up to 64 KiB of: lists of
// small messages take many times as much when they have been read.
constexpr size_t kMostText = size_t{1} << 20;

bool HasTensors(const Method& method) {
  const auto& type = *method.request.GetDescriptor();
  return type.FindFieldByName("query") != nullptr ||
         type.FindFieldByName("key") != nullptr;
}

absl::Status Malformed(absl::string_view what) {
  return WithReason(Reason::kMalformedMessage,
                    absl::InvalidArgumentError(what));
}

// What the client sent, for the thread that reads it.
struct Input {
  const Method* method = nullptr;
  std::string id;
  std::string body;
  std::string page_size;
  std::string page_token;
  GrpcCaller::Call call;
};

bool IsJson(absl::string_view content_type) {
  const absl::string_view type = absl::StripAsciiWhitespace(
      content_type.substr(0, content_type.find(';')));
  return absl::EqualsIgnoreCase(type, "application/json");
}

// The request message, from the body, the path and the query.
absl::StatusOr<std::string> EncodeRequest(Input& input) {
  const std::unique_ptr<Message> message(input.method->request.New());
  const auto& type = *message->GetDescriptor();
  const std::string wanted =
      absl::StrCat("the body is not the JSON of ", type.full_name(), ": ");
  if (input.body.size() > kMostText && !HasTensors(*input.method)) {
    return WithReason(Reason::kRequestTooLarge,
                      absl::ResourceExhaustedError(
                          absl::StrCat("the body has ", input.body.size(),
                                       " bytes, wanted at most ", kMostText)));
  }
  if (input.method->http_method == "POST") {
    absl::StatusOr<std::string> json = ExpandTensorLists(input.body, type);
    if (!json.ok()) {
      return ErrorField(json.status()).empty()
                 ? Malformed(absl::StrCat(wanted, json.status().message()))
                 : json.status();
    }
    std::string().swap(input.body);
    const auto status =
        google::protobuf::util::JsonStringToMessage(*json, message.get());
    if (!status.ok()) {
      return Malformed(absl::StrCat(
          wanted,
          absl::string_view(status.message().data(), status.message().size())));
    }
  }
  const auto& reflection = *message->GetReflection();
  if (!input.id.empty()) {
    const auto* const field = type.FindFieldByName("id");
    const std::string given = reflection.GetString(*message, field);
    if (!given.empty() && given != input.id) {
      return FieldError("id", absl::StrCat("got ", given, " in the body and ",
                                           input.id, " in the path"));
    }
    reflection.SetString(message.get(), field, input.id);
  }
  if (!input.page_size.empty()) {
    int32_t size;
    if (!absl::SimpleAtoi(input.page_size, &size)) {
      return FieldError("page_size", absl::StrCat("got ", input.page_size,
                                                  ", wanted a number"));
    }
    reflection.SetInt32(message.get(), type.FindFieldByName("page_size"), size);
  }
  if (!input.page_token.empty()) {
    reflection.SetString(message.get(), type.FindFieldByName("page_token"),
                         input.page_token);
  }
  return message->SerializeAsString();
}

HttpResponse Answer(const Method& method, GrpcCaller::Result& result,
                    HttpExchange& exchange) {
  if (!result.status.ok()) return ErrorResponse(result.status);
  if (!HoldToWrite(result.response, exchange)) {
    return ErrorResponse(ToGrpcStatus(TooMuchHeld()));
  }
  std::optional<std::string> json =
      WriteAnswerJson(result.response, method.response);
  if (!json) {
    return ErrorResponse({grpc::StatusCode::INTERNAL,
                          "the answer could not be written as JSON"});
  }
  json->push_back('\n');
  HttpResponse response;
  response.body = *std::move(json);
  response.content_type = "application/json";
  return response;
}

// Which method a request is for.
struct Target {
  const Method* method = nullptr;
  std::string id;
  // Without a method: those that the path takes.
  std::string others;
};

Target TargetOf(const HttpRequest& request) {
  Target target;
  for (const Method& method : Methods()) {
    std::string id;
    if (!Matches(method, request.path, &id)) continue;
    if (method.http_method == request.method ||
        (request.method == "HEAD" && method.http_method == "GET")) {
      target.method = &method;
      target.id = std::move(id);
      break;
    }
    absl::StrAppend(&target.others, target.others.empty() ? "" : ", ",
                    method.http_method);
  }
  return target;
}

HttpResponse NoMethod(const HttpRequest& request, const std::string& others,
                      const Origins::Check& origin) {
  if (others.empty()) {
    return ErrorResponse({grpc::StatusCode::NOT_FOUND,
                          absl::StrCat("there is nothing at ", request.path)});
  }
  if (request.method == "OPTIONS" && origin.named()) {
    return origin.Preflight(others);
  }
  HttpResponse response = ErrorResponse(
      405,
      absl::StrCat(request.path, " takes ", others, ", not ", request.method));
  response.headers.emplace_back("Allow", others);
  return response;
}

}  // namespace

Gateway::Gateway(const CallGuard& guard, GrpcCaller& caller)
    : guard_(guard), caller_(caller) {}

std::optional<HttpResponse> Gateway::Guard(const HttpRequest& request) const {
  const auto refuse = [&](HttpResponse response) {
    guard_.FinisherOf(request)(response);
    return response;
  };
  const Target target = TargetOf(request);
  if (target.method == nullptr) {
    return refuse(
        NoMethod(request, target.others, guard_.origins().Of(request)));
  }
  if (const auto tenant = guard_.Check(request); !tenant.ok()) {
    return refuse(ErrorResponse(ToGrpcStatus(tenant.status())));
  }
  // A page of another origin may send other types without asking first.
  if (request.method == "POST" && !IsJson(request.Header("Content-Type"))) {
    const absl::string_view type = request.Header("Content-Type");
    return refuse(ErrorResponse(
        415, absl::StrCat("Content-Type: got ", type.empty() ? "none" : type,
                          ", wanted application/json")));
  }
  if (IsCompressed(request)) return refuse(ErrorResponse(415, kCompressed));
  if (const auto call = CallOf(request); !call.ok()) {
    return refuse(ErrorResponse(ToGrpcStatus(call.status())));
  }
  return std::nullopt;
}

void Gateway::Handle(const HttpRequest& request,
                     const std::shared_ptr<HttpExchange>& exchange) const {
  const auto answer =
      [exchange, finish = guard_.FinisherOf(request)](HttpResponse response) {
        finish(response);
        exchange->Answer(std::move(response));
      };
  const auto fail = [answer](const absl::Status& status) {
    answer(ErrorResponse(ToGrpcStatus(status)));
  };
  // Guard() has looked, but tokens may be others by now.
  absl::StatusOr<TenantPtr> tenant = guard_.Check(request);
  if (!tenant.ok()) return fail(tenant.status());
  Target target = TargetOf(request);
  absl::StatusOr<GrpcCaller::Call> call = CallOf(request);
  if (target.method == nullptr || !call.ok()) return exchange->Abort();
  const auto input = std::make_shared<Input>();
  input->method = target.method;
  input->id = std::move(target.id);
  input->call = *std::move(call);
  input->call.method = std::string(input->method->rpc);
  input->call.tenant = *std::move(tenant);
  if (input->method->path == "/v1/sessions" && request.method == "GET") {
    input->page_size = std::string(request.Parameter("page_size"));
    input->page_token = std::string(request.Parameter("page_token"));
  }
  input->body = std::move(request.body);

  WorkLane::Work work = {.exchange = exchange,
                         .tenant = input->call.tenant,
                         .bytes = static_cast<int64_t>(input->body.size()),
                         .deadline = input->call.deadline};
  work.expired = [fail] { fail(DeadlineBeforeWork()); };
  work.run = [this, exchange, input, answer, fail] {
    if (!HoldToRead(input->body, *exchange)) return fail(TooMuchHeld());
    absl::StatusOr<std::string> message = EncodeRequest(*input);
    if (!message.ok()) return fail(message.status());
    if (!exchange->Hold(static_cast<int64_t>(message->size()))) {
      return fail(TooMuchHeld());
    }
    const grpc::Slice slice(*message);
    input->call.request = grpc::ByteBuffer(&slice, 1);
    const Method& method = *input->method;
    caller_.Start(exchange, input->call,
                  [exchange, &method, answer](GrpcCaller::Result& result) {
                    answer(Answer(method, result, *exchange));
                  });
  };
  caller_.Post(std::move(work));
}

}  // namespace attention::server
