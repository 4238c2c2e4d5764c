#include "server/server.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "kernel/attention.h"
#include "server/version.h"

namespace attention::server {
namespace {

// Calls one connection may have open at once.
constexpr int kMaxStreams = 1024;
// Threads of reflection, gRPC's only service here that blocks one a stream.
constexpr int kMaxSyncThreads = 16;
constexpr int kLookaheadBytes = 65535;
// A peer that vanished holds its calls' memory no longer than this.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;

// Whether a server accepts connections at the Unix socket `path`; gRPC would
// take its place without a word.
bool IsServedUnixPath(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool served = connect(fd, reinterpret_cast<const sockaddr*>(&address),
                              sizeof(address)) == 0;
  close(fd);
  return served;
}

absl::Status CannotListen(absl::string_view address) {
  return absl::UnavailableError(
      absl::StrCat("--listen: cannot listen on \"", address,
                   "\": in use, or not an address of this machine"));
}

// `address` with the port that it got.
std::string WithPort(const std::string& address, int port) {
  if (absl::StartsWith(address, "unix")) return address;
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

Admission::Settings AdmissionSettings(const Options& options) {
  Admission::Settings settings;
  settings.max_bytes = options.max_inflight_bytes;
  settings.max_request_bytes = options.max_request_bytes;
  settings.max_queue = options.max_queue;
  settings.threads = std::min(options.threads, Options::DefaultThreads());
  settings.min_upload_rate = static_cast<double>(options.min_upload_rate);
  settings.min_answer_rate = static_cast<double>(options.min_answer_rate);
  settings.stall_grace = options.stall_grace;
  return settings;
}

void Configure(grpc::ServerBuilder& builder) {
  static const bool reflection = [] {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  static_cast<void>(reflection);
  grpc::EnableDefaultHealthCheckService(true);
  // Checked by the handler instead, which can name the limit; gRPC would look
  // at it no earlier, once the message is whole.
  builder.SetMaxReceiveMessageSize(std::numeric_limits<int>::max());
  builder.SetMaxSendMessageSize(std::numeric_limits<int>::max());
  // A small compressed message could unfold to any size.
  for (auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  // Two servers on one port would each get some of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             kKeepaliveTimeoutMs);
  // A stream that has not been read yet may send so much and no more: what is
  // not let in waits in the client. A read then grants what its message needs.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES,
                             kLookaheadBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
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
      admission_(AdmissionSettings(options), costs_),
      buffers_(BufferPool::Create(options.max_pooled_bytes,
                                  options.max_inflight_bytes)),
      executor_(static_cast<int>(options.threads)),
      service_(options_),
      streamed_service_(CallEnvironment{options_, admission_, costs_, *buffers_,
                                        executor_, *log_, log_limiter_,
                                        metrics_}),
      quota_("server") {
  quota_.SetMaxThreads(kMaxSyncThreads);
  metrics_.SetSnapshotSource([this] { return TakeSnapshot(); });
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options) {
  const std::vector<std::string> errors = Validate(options);
  if (!errors.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
  }
  std::unique_ptr<Server> server(new Server(options));
  if (absl::Status status = server->ListenHttp(); !status.ok()) return status;
  if (absl::Status status = server->Listen(); !status.ok()) return status;
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
          .pooled_bytes = static_cast<int64_t>(buffers_->retained()),
          .waiting_calls = held.waiting_calls,
          .running_calls = held.calls,
          .queued_seconds = held.queued_seconds,
          .multiply_adds_per_second = costs_.multiply_adds_per_second(),
          .bytes_per_second = costs_.bytes_per_second(),
          .draining = draining_};
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
  auto http =
      HttpServer::Start({.address = options_.http_listen,
                         .max_connections = options_.http_max_connections,
                         .timeout = options_.http_timeout},
                        {{"GET", "/livez", livez},
                         {"GET", "/readyz", readyz},
                         {"GET", "/metrics", metrics}});
  if (!http.ok()) {
    return absl::UnavailableError(
        absl::StrCat("--http-listen: ", http.status().message()));
  }
  http_server_ = *std::move(http);
  http_address_ = http_server_->address();
  return absl::OkStatus();
}

absl::Status Server::Listen() {
  grpc::ServerBuilder builder;
  Configure(builder);
  builder.SetResourceQuota(quota_);
  std::vector<int> ports(options_.listen.size(), 0);
  for (size_t i = 0; i < ports.size(); ++i) {
    absl::string_view path = options_.listen[i];
    if (absl::ConsumePrefix(&path, "unix:")) {
      absl::ConsumePrefix(&path, "//");  // "unix:///path" is "unix:/path".
      if (IsServedUnixPath(std::string(path))) {
        return CannotListen(options_.listen[i]);
      }
    }
    builder.AddListeningPort(options_.listen[i],
                             grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&service_);
  builder.RegisterCallbackGenericService(&streamed_service_);
  grpc_server_ = builder.BuildAndStart();
  for (size_t i = 0; i < ports.size(); ++i) {
    if (ports[i] <= 0) return CannotListen(options_.listen[i]);
    addresses_.push_back(WithPort(options_.listen[i], ports[i]));
  }
  if (grpc_server_ == nullptr) {
    return absl::UnavailableError("the server could not start");
  }
  grpc_server_->GetHealthCheckService()->SetServingStatus(
      v1::AttentionService::service_full_name(), true);
  housekeeping_.emplace(admission_, costs_, quota_,
                        options_.max_inflight_bytes);
  return absl::OkStatus();
}

Server::~Server() {
  if (grpc_server_ == nullptr) return;
  Shutdown(absl::InfinitePast());
  Wait();
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel(
    const grpc::ChannelArguments& arguments) {
  return grpc_server_->InProcessChannel(arguments);
}

void Server::Shutdown(absl::Time deadline) {
  ready_ = false;
  draining_ = true;
  grpc_server_->GetHealthCheckService()->SetServingStatus(false);
  admission_.SetDeadline(deadline);
  admission_.Drain();
}

void Server::Wait() {
  admission_.WaitUntilIdle();
  std::lock_guard<std::mutex> lock(stop_mutex_);
  // Cancels calls past the deadline, health watches and reflection streams.
  grpc_server_->Shutdown(std::chrono::system_clock::now());
  grpc_server_->Wait();
  http_server_.reset();
}

}  // namespace attention::server
