#include "server/rpc/session_service.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/field_error.h"
#include "base/random_bytes.h"
#include "server/auth/authenticator.h"
#include "server/rpc/append_call.h"
#include "server/rpc/attend_call.h"
#include "server/rpc/step_call.h"
#include "server/rpc/unary_call.h"
#include "server/session_error.h"
#include "server/status.h"
#include "wire/data_type.h"

namespace attention::server {
namespace {

constexpr int kMaxPage = 1000;
// Of the sessions on a page, whose lengths it tells.
constexpr int64_t kMaxPageLayers = 1 << 16;
constexpr int kMaxForks = 128;
constexpr absl::Duration kLeastLease = absl::Seconds(1);
constexpr absl::Duration kDefaultLease = absl::Minutes(1);

absl::StatusOr<std::string> RandomId() {
  std::array<char, 16> bytes;
  if (!RandomBytes(bytes.data(), bytes.size())) {
    return absl::InternalError("the system has no random numbers");
  }
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

void SetTime(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  timestamp->set_seconds(seconds);
  timestamp->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

void SetDuration(absl::Duration duration, google::protobuf::Duration* to) {
  const int64_t seconds = absl::ToInt64Seconds(duration);
  to->set_seconds(seconds);
  to->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(duration - absl::Seconds(seconds))));
}

absl::StatusOr<v1::Session> Describe(absl::string_view id,
                                     const Session& session,
                                     const LeaseClock& clock) {
  const absl::StatusOr<std::vector<LayerExtent>> layers = session.layers();
  if (!layers.ok()) return SessionError(id, layers.status());
  const SessionConfig& config = session.config();
  v1::Session described;
  described.set_id(std::string(id));
  described.set_incarnation(session.incarnation());
  v1::SessionConfig* const to = described.mutable_config();
  to->set_num_layers(config.num_layers);
  to->set_kv_heads(config.format.kv_heads);
  to->set_head_size(config.format.key_size);
  to->set_value_head_size(config.format.value_size);
  to->set_data_type(wire::ToWire(config.format.type));
  to->set_value_is_key_prefix(config.format.value_is_key_prefix);
  SetDuration(config.lease, to->mutable_lease());
  to->mutable_retain_window()->Add(config.retain_window.begin(),
                                   config.retain_window.end());
  to->set_rollback_tokens(config.rollback_tokens);
  for (const LayerExtent& layer : *layers) {
    described.add_lengths(layer.length);
    described.add_first_tokens(layer.first_token);
    described.add_least_lengths(layer.least_length);
  }
  SetTime(clock.ToWallTime(session.expires()), described.mutable_expire_time());
  return described;
}

// A response that holds the session.
template <typename Response>
absl::StatusOr<Response> Answer(absl::string_view id, const Session& session,
                                const LeaseClock& clock) {
  absl::StatusOr<v1::Session> described = Describe(id, session, clock);
  if (!described.ok()) return described.status();
  Response response;
  *response.mutable_session() = *std::move(described);
  return response;
}

}  // namespace

void SessionService::AddTo(StreamedService& service) {
  const auto add = [&]<typename Request, typename Response>(
                       absl::string_view name,
                       absl::StatusOr<Response> (SessionService::*handle)(
                           const Request&, const Tenant&)) {
    AddUnary<Request>(
        service, absl::StrCat("/attention.v1.SessionService/", name),
        {"Sessions", Access::kTenants},
        [this, handle](const Request& request,
                       const Tenant& tenant) -> absl::StatusOr<Response> {
          absl::Status status = MayCompute(tenant);
          if (!status.ok()) return status;
          return (this->*handle)(request, tenant);
        });
  };
  add("CreateSession", &SessionService::Create);
  add("GetSession", &SessionService::Get);
  add("ListSessions", &SessionService::List);
  add("DeleteSession", &SessionService::Delete);
  add("ForkSessions", &SessionService::Fork);
  add("TruncateSession", &SessionService::Truncate);
  service.Add("/attention.v1.SessionService/AppendKeyValues",
              [this](grpc::GenericCallbackServerContext* context) {
                return StartAppendCall(environment_, store_, context);
              });
  service.Add("/attention.v1.SessionService/Attend",
              [this](grpc::GenericCallbackServerContext* context) {
                return StartAttendCall(environment_, store_, context);
              });
  service.Add("/attention.v1.SessionService/Step",
              [this](grpc::GenericCallbackServerContext* context) {
                return StartStepCall(environment_, store_, context);
              });
}

absl::StatusOr<SessionConfig> SessionService::ConfigOf(
    const v1::SessionConfig& config) const {
  SessionConfig to;
  to.num_layers = config.num_layers() == 0 ? 1 : config.num_layers();
  to.format.kv_heads = config.kv_heads();
  to.format.key_size = config.head_size();
  to.format.value_size = config.value_head_size() == 0
                             ? config.head_size()
                             : config.value_head_size();
  to.format.value_is_key_prefix = config.value_is_key_prefix();
  if (config.data_type() != v1::DATA_TYPE_UNSPECIFIED) {
    const std::optional<DataType> type =
        wire::StoredFromWire(config.data_type());
    if (!type) {
      return FieldError("data_type",
                        absl::StrCat("got ", config.data_type(),
                                     ", wanted a value of DataType"));
    }
    to.format.type = *type;
  }
  const auto& windows = config.retain_window();
  // All 0 is as none.
  if (std::any_of(windows.begin(), windows.end(),
                  [](int64_t window) { return window != 0; })) {
    to.retain_window.assign(windows.begin(), windows.end());
    if (windows.size() == 1) {
      // Where there are more layers SessionStore::Check() says so.
      to.retain_window.resize(static_cast<size_t>(std::clamp<int64_t>(
                                  to.num_layers, 1, Session::kMaxLayers)),
                              windows[0]);
    }
  }
  if (config.has_rollback_tokens()) {
    to.rollback_tokens = config.rollback_tokens();
  }
  to.lease = std::min(kDefaultLease, environment_.options.max_session_lease);
  if (config.has_lease()) {
    to.lease = absl::Seconds(config.lease().seconds()) +
               absl::Nanoseconds(config.lease().nanos());
    if (to.lease < kLeastLease ||
        to.lease > environment_.options.max_session_lease) {
      return FieldError(
          "lease",
          absl::StrCat(
              "got ", absl::FormatDuration(to.lease), ", wanted ",
              absl::FormatDuration(kLeastLease), " to ",
              absl::FormatDuration(environment_.options.max_session_lease)));
    }
  }
  return to;
}

absl::StatusOr<v1::CreateSessionResponse> SessionService::Create(
    const v1::CreateSessionRequest& request, const Tenant& tenant) {
  const absl::StatusOr<SessionConfig> config = ConfigOf(request.config());
  if (!config.ok()) return InField("config", config.status());
  absl::Status valid = SessionStore::Check(*config);
  if (!valid.ok()) return InField("config", valid);
  std::string id = request.id();
  if (id.empty()) {
    absl::StatusOr<std::string> random = RandomId();
    if (!random.ok()) return random.status();
    id = *std::move(random);
  }
  const auto session = store_.Create(tenant.name, id, *config, Now());
  if (!session.ok()) return SessionError(id, session.status());
  return Answer<v1::CreateSessionResponse>(id, **session, clock());
}

absl::StatusOr<v1::GetSessionResponse> SessionService::Get(
    const v1::GetSessionRequest& request, const Tenant& tenant) {
  const auto session =
      store_.Use(tenant.name, request.id(), Now(), request.incarnation());
  if (!session.ok()) return SessionError(request.id(), session.status());
  return Answer<v1::GetSessionResponse>(request.id(), **session, clock());
}

absl::StatusOr<v1::ListSessionsResponse> SessionService::List(
    const v1::ListSessionsRequest& request, const Tenant& tenant) {
  if (request.page_size() < 0 || request.page_size() > kMaxPage) {
    return FieldError("page_size", absl::StrCat("got ", request.page_size(),
                                                ", wanted 0 to ", kMaxPage));
  }
  const size_t most = request.page_size() == 0 ? kMaxPage : request.page_size();
  // One more tells whether there is another page.
  auto found = store_.List(tenant.name, request.page_token(), most + 1, Now());
  v1::ListSessionsResponse response;
  int64_t layers = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& [id, session] = found[i];
    layers += session->config().num_layers;
    if (i == most || (i > 0 && layers > kMaxPageLayers)) {
      response.set_next_page_token(found[i - 1].first);
      break;
    }
    absl::StatusOr<v1::Session> described = Describe(id, *session, clock());
    // Not one that has ended meanwhile.
    if (described.ok()) *response.add_sessions() = *std::move(described);
  }
  return response;
}

absl::StatusOr<v1::DeleteSessionResponse> SessionService::Delete(
    const v1::DeleteSessionRequest& request, const Tenant& tenant) {
  store_.Delete(tenant.name, request.id(), request.incarnation());
  return v1::DeleteSessionResponse();
}

absl::StatusOr<v1::ForkSessionsResponse> SessionService::Fork(
    const v1::ForkSessionsRequest& request, const Tenant& tenant) {
  if (request.forks().empty() || request.forks_size() > kMaxForks) {
    return FieldError("forks", absl::StrCat("got ", request.forks_size(),
                                            ", wanted 1 to ", kMaxForks));
  }
  std::vector<SessionStore::ForkRequest> forks;
  for (const auto& fork : request.forks()) {
    forks.push_back({fork.source(), fork.target(), fork.source_incarnation()});
    if (!fork.target().empty()) continue;
    absl::StatusOr<std::string> random = RandomId();
    if (!random.ok()) return random.status();
    forks.back().target = *std::move(random);
  }
  const auto made = store_.Fork(tenant.name, forks, Now());
  if (!made.ok()) {
    return SessionError(MissingSession(made.status()), made.status());
  }
  v1::ForkSessionsResponse response;
  for (size_t i = 0; i < forks.size(); ++i) {
    absl::StatusOr<v1::Session> described =
        Describe(forks[i].target, *(*made)[i], clock());
    if (!described.ok()) return described.status();
    *response.add_sessions() = *std::move(described);
  }
  return response;
}

absl::StatusOr<v1::TruncateSessionResponse> SessionService::Truncate(
    const v1::TruncateSessionRequest& request, const Tenant& tenant) {
  const auto session =
      store_.Use(tenant.name, request.id(), Now(), request.incarnation());
  if (!session.ok()) return SessionError(request.id(), session.status());
  if (absl::Status status = (*session)->Truncate(request.length());
      !status.ok()) {
    return SessionError(request.id(), status);
  }
  return Answer<v1::TruncateSessionResponse>(request.id(), **session, clock());
}

}  // namespace attention::server
