#include "server/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "attention/v1/attention.grpc.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/create_channel_posix.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "inference/inference.pb.h"
#include "kernel/attention.h"
#include "server/connections/goaway.h"
#include "server/http/json_memory.h"
#include "server/http/page.h"
#include "server/http/status_json.h"
#include "server/version.h"

namespace attention::server {
namespace {

// Calls one connection may have open at once.
constexpr int kMaxStreams = 1024;
// gRPC works through all that it read at once before anybody else has his turn:
// with its own 4 MiB, tens of thousands of streams that were reset. More gains
// nothing for large messages.
constexpr int kMaxReadBytes = 256 << 10;
// Unused pages of sessions that are kept for the next tokens, bytes.
constexpr int64_t kPooledPages = int64_t{64} << 20;
// A peer that vanished holds its calls' memory no longer than this.
constexpr int kKeepaliveMs = 60'000;
// How long clients without a running call have to leave when the server stops.
// Those that live need a round trip.
constexpr absl::Duration kLeaveTime = absl::Milliseconds(500);
// How often the server looks whether they have left, at first and later.
constexpr absl::Duration kDrainLook = absl::Milliseconds(20);
constexpr absl::Duration kLateDrainLook = absl::Milliseconds(200);
// How long answers over HTTP, of calls that have ended, may take to be written
// and taken.
constexpr absl::Duration kAnswerTime = absl::Seconds(1);

constexpr char kNoClientCertificates[] =
    "this server wants client certificates (--tls-client-ca), which its HTTP "
    "listener cannot ask for: call by gRPC";

Admission::Settings AdmissionSettings(const Options& options,
                                      const ConnectionTable& connections) {
  Admission::Settings settings;
  settings.max_bytes = options.max_inflight_bytes;
  settings.max_request_bytes = options.max_request_bytes;
  settings.max_chunk_bytes = options.max_chunk_bytes;
  settings.max_queue = options.max_queue;
  settings.threads = std::min(options.threads, Options::DefaultThreads());
  settings.min_upload_rate = static_cast<double>(options.min_upload_rate);
  settings.min_answer_rate = static_cast<double>(options.min_answer_rate);
  settings.stall_grace = options.stall_grace;
  settings.received_bytes = [&connections](const std::string& peer) {
    return connections.BytesReceived(peer);
  };
  return settings;
}

void LimitConnections(const Options& options, grpc::ServerBuilder& builder) {
  const std::pair<const char*, absl::Duration> arguments[] = {
      {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, options.handshake_timeout},
      {GRPC_ARG_MAX_CONNECTION_IDLE_MS, options.max_connection_idle},
      {GRPC_ARG_MAX_CONNECTION_AGE_MS, options.max_connection_age},
      {GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, options.max_connection_age_grace}};
  for (const auto& [name, duration] : arguments) {
    // Without an argument there is no end.
    if (duration == absl::InfiniteDuration()) continue;
    builder.AddChannelArgument(
        name, static_cast<int>(absl::ToInt64Milliseconds(duration)));
  }
  builder.AddChannelArgument(
      GRPC_ARG_MAX_METADATA_SIZE,
      static_cast<int>(Options::kHeaderSlack * options.max_header_bytes));
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      static_cast<int>(absl::ToInt64Milliseconds(options.min_ping_interval)));
  // Without it gRPC bears a ping per two hours where no call is open.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

TlsFiles TlsFilesOf(const Options& options) {
  return {.cert = options.tls_cert,
          .key = options.tls_key,
          .client_ca = options.tls_client_ca};
}

std::vector<TenantSample> TenantSamples(const Authenticator& authenticator,
                                        const Admission& admission,
                                        const SessionStore& sessions) {
  std::vector<TenantSample> samples;
  for (const TenantPtr& tenant : authenticator.tenants()) {
    TenantSample& sample = samples.emplace_back();
    sample.name = tenant->name;
    const TenantUse& use = *tenant->use;
    std::copy(use.calls.begin(), use.calls.end(), sample.calls.begin());
    sample.used_seconds = use.used_seconds;
    sample.bytes = admission.tenant_bytes(tenant->id);
    const SessionStore::Totals held = sessions.totals(tenant->name);
    sample.sessions = held.sessions;
    sample.session_bytes = held.bytes;
  }
  return samples;
}

void Configure(grpc::ServerBuilder& builder) {
  // gRPC's own, which other code of the process may have asked for.
  builder.SetOption(
      std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
  // Checked by the handler instead, which can name the limit; gRPC would look
  // at it no earlier, once the message is whole.
  builder.SetMaxReceiveMessageSize(std::numeric_limits<int>::max());
  builder.SetMaxSendMessageSize(std::numeric_limits<int>::max());
  // A small compressed message could unfold to any size.
  for (auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPeerTimeoutMs);
  // A stream that has not been read yet may send so much and no more: what is
  // not let in waits in the client. A read then grants what its message needs.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                             static_cast<int>(kUnreadWindowBytes));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, kMaxReadBytes);
}

}  // namespace

Server::Server(const Options& options)
    : options_(options),
      log_(MakeLogger({.level = options.log_level,
                       .buffer_bytes = options.log_buffer_bytes})),
      log_limiter_(*log_, options.log_lines_per_second),
      metrics_({.version = kVersion,
                .simd_target = std::string(SimdTarget()),
                .grpc_version = grpc::Version(),
                .threads = options.threads}),
      authenticator_(options.open_health),
      guard_(connections_, *log_, log_limiter_),
      admission_(AdmissionSettings(options, connections_), costs_),
      buffers_(BufferPool::Create(options.max_pooled_bytes,
                                  options.max_inflight_bytes)),
      executor_(static_cast<int>(options.threads)),
      regions_(options.max_shared_bytes),
      sessions_({.bytes = options.max_session_bytes,
                 .sessions = options.max_sessions},
                BufferPool::Create(
                    std::min(kPooledPages, options.max_session_bytes))),
      environment_{{options_, authenticator_, connections_, *log_, log_limiter_,
                    metrics_},
                   admission_,
                   costs_,
                   *buffers_,
                   executor_,
                   regions_,
                   leaving_},
      service_(environment_),
      session_service_(environment_, sessions_),
      inference_service_(environment_, ready_),
      health_(v1::AttentionService::service_full_name()),
      reflection_({v1::GetCapabilitiesRequest::descriptor()->file(),
                   v1::Session::descriptor()->file(),
                   inference::ModelInferRequest::descriptor()->file(),
                   grpc::health::v1::HealthCheckRequest::descriptor()->file()}),
      streamed_service_({options_, authenticator_, connections_, *log_,
                         log_limiter_, metrics_}),
      quota_("server"),
      reloader_(options.reload_interval) {
  metrics_.SetSnapshotSource([this] { return TakeSnapshot(); });
  service_.AddTo(streamed_service_);
  session_service_.AddTo(streamed_service_);
  inference_service_.AddTo(streamed_service_);
  health_.AddTo(streamed_service_);
  reflection_.AddTo(streamed_service_);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options) {
  const std::vector<std::string> errors = Validate(options);
  if (!errors.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
  }
  std::unique_ptr<Server> server(new Server(options));
  if (absl::Status status = server->LoadIdentity(); !status.ok()) return status;
  if (absl::Status status = server->LoadTokens(); !status.ok()) return status;
  if (absl::Status status = server->ListenHttp(); !status.ok()) return status;
  if (absl::Status status = server->ListenSharedMemory(); !status.ok()) {
    return status;
  }
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  server->reloader_.Start();
  server->ready_ = true;
  return server;
}

Snapshot Server::TakeSnapshot() const {
  const Admission::Snapshot held = admission_.snapshot();
  const auto bytes = [&](MemoryKind kind) {
    return held.bytes[static_cast<size_t>(kind)];
  };
  return {.budget_bytes = options_.max_inflight_bytes,
          .reading_bytes = bytes(MemoryKind::kRequest),
          .tensor_bytes = bytes(MemoryKind::kTensors),
          .answer_bytes = bytes(MemoryKind::kAnswer),
          .scratch_bytes = bytes(MemoryKind::kScratch),
          .header_bytes = bytes(MemoryKind::kHeaders),
          .http_bytes = held.outside_bytes,
          .pooled_bytes = static_cast<int64_t>(buffers_->retained()),
          .waiting_calls = held.waiting_calls,
          .running_calls = held.calls,
          .queued_seconds = held.queued_seconds,
          .multiply_adds_per_second = costs_.multiply_adds_per_second(),
          .bytes_per_second = costs_.bytes_per_second(),
          .connections = connections_.open(),
          .max_connections = options_.max_connections,
          .connections_cut = guard_.cut(),
          .sessions = sessions_.totals().sessions,
          .session_bytes = sessions_.totals().bytes,
          .max_session_bytes = options_.max_session_bytes,
          .shared_bytes = regions_.bytes(),
          .max_shared_bytes =
              options_.shared_memory.empty() ? 0 : options_.max_shared_bytes,
          .log_lines_dropped = LogLinesDropped(*log_),
          .draining = draining_,
          .tenants = TenantSamples(authenticator_, admission_, sessions_)};
}

absl::Status Server::LoadIdentity() {
  if (options_.tls_cert.empty()) return absl::OkStatus();
  const TlsFiles files = TlsFilesOf(options_);
  std::vector<std::string> paths = {files.cert, files.key};
  if (!files.client_ca.empty()) paths.push_back(files.client_ca);
  reloader_.Watch(std::move(paths), [this] { return ReloadIdentity(); });
  absl::StatusOr<TlsMaterial> material = LoadTls(files);
  if (!material.ok()) return material.status();
  tls_.emplace(*std::move(material));
  return absl::OkStatus();
}

bool Server::ReloadIdentity() {
  absl::StatusOr<TlsMaterial> material = LoadTls(TlsFilesOf(options_));
  TellRefused(material.status(), identity_error_);
  if (!material.ok()) return false;
  const absl::Time expires = material->expires;
  tls_->Replace(*std::move(material));
  // Who reads it may connect at once.
  log_->info(
      "event=reloaded file={} expires={}", Quoted(options_.tls_cert),
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", expires, absl::UTCTimeZone()));
  return true;
}

// Once for each error, which may well last.
void Server::TellRefused(const absl::Status& status, std::string& last) {
  if (status.message() == last) return;
  last = std::string(status.message());
  if (!status.ok()) log_->warn("event=reload_refused error={}", Quoted(last));
}

absl::Status Server::LoadTokens() {
  if (options_.tokens.empty()) return absl::OkStatus();
  reloader_.Watch({options_.tokens}, [this] { return ReloadTokens(); });
  absl::StatusOr<TokenFile> file = LoadTokenFile(options_.tokens);
  if (!file.ok()) return file.status();
  SetTokens(*std::move(file));
  return absl::OkStatus();
}

void Server::SetTokens(TokenFile file) {
  for (const TenantSettings& tenant : file.tenants) {
    sessions_.SetLimits(tenant.name, {.bytes = tenant.max_session_bytes,
                                      .sessions = tenant.max_sessions});
  }
  authenticator_.SetTokens(std::move(file));
}

bool Server::ReloadTokens() {
  absl::StatusOr<TokenFile> file = LoadTokenFile(options_.tokens);
  TellRefused(file.status(), tokens_error_);
  if (!file.ok()) return false;
  const size_t tokens = file->tokens.size(), tenants = file->tenants.size();
  SetTokens(*std::move(file));
  log_->info("event=reloaded file={} tokens={} tenants={}",
             Quoted(options_.tokens), tokens, tenants);
  return true;
}

// A body that is read, or an answer that is written, takes several times its
// size, and a tenant has a quarter of the budget for what it does over HTTP.
int64_t Server::HttpBodyBytes() const {
  return std::clamp(options_.max_inflight_bytes / (4 * kReadFactor), kSmallJson,
                    options_.http_max_body_bytes);
}

absl::Status Server::ListenHttp() {
  if (options_.http_listen.empty()) return absl::OkStatus();
  const auto livez = [](const HttpRequest&) {
    return HttpResponse{.body = "ok\n"};
  };
  const auto readyz = [this](const HttpRequest&) {
    if (ready_) return HttpResponse{.body = "ok\n"};
    return HttpResponse{.status = 503, .body = "not serving\n"};
  };
  const auto metrics = [this](const HttpRequest&) {
    return HttpResponse{
        .body = metrics_.Text(),
        .content_type = "text/plain; version=0.0.4; charset=utf-8"};
  };
  auto caller =
      GrpcCaller::Create([this] { return ConnectToItself(); }, HttpBodyBytes());
  if (!caller.ok()) return caller.status();
  origins_.emplace(
      options_.http_allow_origins,
      options_.http_listen.substr(0, options_.http_listen.rfind(':')));
  call_guard_.emplace(
      *origins_, authenticator_,
      options_.tls_client_ca.empty() ? "" : kNoClientCertificates);
  gateway_.emplace(*call_guard_, **caller);
  inference_gateway_.emplace(*call_guard_, **caller, ready_);
  grpc_caller_ = *std::move(caller);
  const HttpTask call = [this](const HttpRequest& request,
                               const std::shared_ptr<HttpExchange>& exchange) {
    gateway_->Handle(request, exchange);
  };
  const HttpTask infer = [this](const HttpRequest& request,
                                const std::shared_ptr<HttpExchange>& exchange) {
    inference_gateway_->Handle(request, exchange);
  };
  const auto guard = [this](const HttpRequest& request) {
    return gateway_->Guard(request);
  };
  const auto infer_guard = [this](const HttpRequest& request) {
    return inference_gateway_->Guard(request);
  };
  const auto error = [this](int status, absl::string_view text,
                            const HttpRequest& request) -> HttpResponse {
    const bool v1 = absl::StartsWith(request.path, "/v1/");
    if (!v1 && !absl::StartsWith(request.path, "/v2")) {
      return {.status = status, .body = absl::StrCat(text, "\n")};
    }
    HttpResponse response =
        v1 ? ErrorResponse(status, text) : InferenceError(status, text);
    call_guard_->FinisherOf(request)(response);
    return response;
  };
  const auto hold = [this](const HttpOwner& owner, int64_t before,
                           int64_t bytes) {
    return admission_.HoldOutside(owner.id, owner.max_bytes, before, bytes);
  };
  const int64_t exchanges =
      std::max<int64_t>(1, options_.http_max_connections * 3 / 4);
  std::vector<HttpRoute> routes = {{"GET", "/", PageHandler()},
                                   {"GET", "/livez", livez},
                                   {"GET", "/readyz", readyz},
                                   {"GET", "/metrics", metrics},
                                   {"", "/v1/*", call, guard}};
  for (const char* path : kHealthPaths) {
    routes.push_back({"GET", path, [this](const HttpRequest& request) {
                        return inference_gateway_->Health(request);
                      }});
  }
  // Other methods of those too.
  routes.push_back({"", "/v2", infer, infer_guard});
  routes.push_back({"", "/v2/*", infer, infer_guard});
  auto http = HttpServer::Start(
      {.address = options_.http_listen,
       .loopback_only = !options_.allow_plaintext,
       .max_connections = options_.http_max_connections,
       .timeout = options_.http_timeout,
       .max_body_bytes = HttpBodyBytes(),
       .hold = hold,
       .max_exchanges = exchanges,
       .max_owner_exchanges = (exchanges + 1) / 2,
       .error_response = error,
       .on_answer = [this](int status) { metrics_.CountHttpAnswer(status); }},
      std::move(routes));
  if (!http.ok()) {
    return absl::Status(
        http.status().code(),
        absl::StrCat("--http-listen: ", http.status().message()));
  }
  http_server_ = *std::move(http);
  http_address_ = http_server_->address();
  return absl::OkStatus();
}

absl::Status Server::ListenSharedMemory() {
  if (options_.shared_memory.empty()) return absl::OkStatus();
  auto socket = RegionSocket::Start(
      {.address = options_.shared_memory,
       .mode = options_.unix_socket_mode,
       .max_connection_bytes = options_.max_shared_bytes / 2},
      regions_, authenticator_, *log_, log_limiter_);
  if (!socket.ok()) return socket.status();
  region_socket_ = *std::move(socket);
  log_->info("event=shared_memory address={} max_bytes={}",
             Quoted(options_.shared_memory), options_.max_shared_bytes);
  return absl::OkStatus();
}

absl::Status Server::Listen() {
  std::vector<Listener> listeners;
  for (const std::string& address : options_.listen) {
    absl::StatusOr<Listener> listener = Listener::Open(
        address, {.loopback_only = !tls_ && !options_.allow_plaintext,
                  .unix_mode = options_.unix_socket_mode});
    if (!listener.ok()) return listener.status();
    addresses_.push_back(listener->address());
    listeners.push_back(*std::move(listener));
  }
  grpc::ServerBuilder builder;
  Configure(builder);
  builder.SetResourceQuota(quota_);
  LimitConnections(options_, builder);
  const auto add_sink = [&](std::shared_ptr<grpc::ServerCredentials> with) {
    return builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        std::move(with));
  };
  unix_sink_ = add_sink(grpc::InsecureServerCredentials());
  tcp_sink_ =
      add_sink(tls_ ? tls_->Credentials() : grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&streamed_service_);
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr) {
    return absl::UnavailableError("the server could not start");
  }
  health_.SetServing(true);
  housekeeping_.emplace(admission_, costs_, log_limiter_, sessions_, quota_,
                        options_);
  acceptor_ = std::make_unique<Acceptor>(
      std::move(listeners), options_.max_connections,
      Acceptor::Sinks{*tcp_sink_, *unix_sink_}, connections_, *log_);
  serving_ = true;
  return absl::OkStatus();
}

// Null where clients are told to leave. The connection is not counted among
// those of clients, nor does it take one of their places.
std::shared_ptr<grpc::Channel> Server::ConnectToItself() {
  grpc::ChannelArguments arguments;
  // The server has been told of the limit, and keeps it.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                 ends) != 0) {
    return nullptr;
  }
  Descriptor server_end(ends[0]);
  Descriptor client_end(ends[1]);
  {
    // A server that has stopped would keep the descriptor for ever.
    const std::lock_guard<std::mutex> lock(connect_mutex_);
    if (!serving_ || leaving_) return nullptr;
    Acceptor::Sink::NewConnectionParameters parameters;
    // There is no listener, but later versions of gRPC want a descriptor.
    parameters.listener_fd = server_end.get();
    parameters.fd = server_end.Release();
    unix_sink_->HandleNewConnection(&parameters);
  }
  return grpc::CreateCustomInsecureChannelFromFd("http", client_end.Release(),
                                                 arguments);
}

Server::~Server() {
  if (grpc_server_ == nullptr) return;
  Shutdown(absl::InfinitePast());
  Wait();
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel(
    const grpc::ChannelArguments& arguments) {
  in_process_ = true;
  return grpc_server_->InProcessChannel(arguments);
}

void Server::Shutdown(absl::Time deadline) {
  ready_ = false;
  draining_ = true;
  health_.SetServing(false);
  admission_.SetDeadline(deadline);
  stop_.Set(deadline);
}

// No call is lost on the way: docs/decisions/0011-drain.md.
void Server::Drain() {
  stop_.WaitUntil(absl::Now() + options_.drain_delay);
  acceptor_.reset();
  if (region_socket_ != nullptr) region_socket_->StopListening();
  {
    const std::lock_guard<std::mutex> lock(connect_mutex_);
    leaving_ = true;
  }
  // They know no GOAWAY, and would be cut.
  if (in_process_) return;
  const absl::Time leave = absl::Now() + kLeaveTime;
  do {
    // Again each time: a connection may just have been made.
    SendGoaways(*grpc_server_);
    admission_.EndAwaiting();
    connections_.Prune();
    if (admission_.calls() == 0 &&
        (connections_.open() == 0 || absl::Now() >= leave)) {
      return;
    }
  } while (stop_.WaitUntil(absl::Now() + (absl::Now() < leave + kLeaveTime
                                              ? kDrainLook
                                              : kLateDrainLook)));
}

void Server::Wait() {
  std::lock_guard<std::mutex> lock(stop_mutex_);
  stop_.Wait();
  if (acceptor_ != nullptr) Drain();
  admission_.Drain();
  admission_.WaitUntilIdle();
  // Cancels calls past the deadline, health watches and reflection streams.
  grpc_server_->Shutdown(std::chrono::system_clock::now());
  grpc_server_->Wait();
  // Jobs of calls that were cut end within a turn.
  admission_.WaitUntilEmpty();
  if (http_server_ != nullptr) {
    http_server_->WaitUntilAnswered(absl::Now() + kAnswerTime);
  }
  region_socket_.reset();
  http_server_.reset();
}

}  // namespace attention::server
