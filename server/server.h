// The gRPC server: attention, health and reflection on its listeners.
//
//   absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
//   ... (*server)->addresses() ...
//   (*server)->Shutdown(absl::Now() + options.drain_delay +
//                       options.shutdown_grace);
//   (*server)->Wait();
#ifndef ATTENTION_SERVER_SERVER_H_
#define ATTENTION_SERVER_SERVER_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "grpcpp/channel.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/support/channel_arguments.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/auth/authenticator.h"
#include "server/auth/reloader.h"
#include "server/auth/tls_credentials.h"
#include "server/auth/token_file.h"
#include "server/connections/acceptor.h"
#include "server/connections/connection_guard.h"
#include "server/connections/connection_table.h"
#include "server/housekeeping.h"
#include "server/http/call_guard.h"
#include "server/http/gateway.h"
#include "server/http/grpc_caller.h"
#include "server/http/http_server.h"
#include "server/http/inference_gateway.h"
#include "server/http/origins.h"
#include "server/log_limiter.h"
#include "server/logging.h"
#include "server/metrics/metrics.h"
#include "server/options.h"
#include "server/rpc/attention_service.h"
#include "server/rpc/health_service.h"
#include "server/rpc/inference_service.h"
#include "server/rpc/reflection_service.h"
#include "server/rpc/session_service.h"
#include "server/rpc/streamed_service.h"
#include "server/shared_memory/region_socket.h"
#include "server/shared_memory/region_table.h"
#include "server/stop_request.h"

namespace attention::server {

// Thread-safe. Its life: Start() serves; Shutdown() asks to stop; Wait() blocks
// until then, drains, and stops: once it has returned nothing of it runs any
// more.
class Server {
 public:
  // Serves as soon as it returns, health SERVING. Never takes an address that
  // is in use. On failure nothing is left behind.
  //
  // Errors: InvalidArgument, one line for each bad option or file; Unavailable
  // or FailedPrecondition, naming the flag and the address that could not or
  // may not be listened on.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options);

  // Cancels what still runs, and waits.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Where it listens, in the order of Options::listen, with real ports.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // Where it serves HTTP, "host:port" with the real port; empty if it does not.
  // /livez says 200, /readyz 200 until Shutdown() and 503 from then on,
  // /metrics what metrics() counts; /v1/ takes calls in JSON, as gRPC does,
  // and /v2 those of the Open Inference Protocol.
  const std::string& http_address() const { return http_address_; }

  // A channel inside the process. MUST be destroyed before the server. It can
  // not tell its callers to leave: with such channels calls that come after
  // Shutdown() get UNAVAILABLE once Wait() runs.
  std::shared_ptr<grpc::Channel> InProcessChannel(
      const grpc::ChannelArguments& arguments);

  // Asks to stop, without blocking: health is NOT_SERVING at once, the thread
  // in Wait() does the rest. Calls that have not ended by `deadline` are
  // cancelled. May be called again, to set another deadline.
  void Shutdown(absl::Time deadline);

  // Blocks until Shutdown() was called, then drains and stops:
  // - For Options::drain_delay everything is served as before.
  // - The listeners close, and each client is told to make its next calls
  //   elsewhere (GOAWAY). Those that were on their way are served.
  // - Calls over HTTP are refused; those that run go on.
  // - When no ComputeAttention call runs and every client has left, or had half
  //   a second for it, or at the deadline, what is left is closed; HTTP and
  //   shared memory last.
  // May be called from several threads.
  void Wait();

  // What clients on this machine share with it.
  const RegionTable& regions() const { return regions_; }

  const SessionStore& sessions() const { return sessions_; }

  // ComputeAttention calls being worked on.
  int64_t running_calls() const { return admission_.calls(); }

  // Its open connections.
  const ConnectionTable& connections() const { return connections_; }
  Metrics& metrics() { return metrics_; }
  spdlog::logger& log() { return *log_; }
  // The threads that compute.
  Executor& executor() { return executor_; }

 private:
  explicit Server(const Options& options);
  absl::Status LoadIdentity();
  bool ReloadIdentity();
  absl::Status LoadTokens();
  void SetTokens(TokenFile file);
  bool ReloadTokens();
  void TellRefused(const absl::Status& status, std::string& last);
  absl::Status Listen();
  absl::Status ListenHttp();
  int64_t HttpBodyBytes() const;
  std::shared_ptr<grpc::Channel> ConnectToItself();
  absl::Status ListenSharedMemory();
  void Drain();
  Snapshot TakeSnapshot() const;

  // What reads files again, the HTTP listener and the acceptor come last, so
  // that they die first; then gRPC's server, to which connections are handed;
  // then what its calls use.
  const Options options_;
  const std::shared_ptr<spdlog::logger> log_;
  LogLimiter log_limiter_;
  Metrics metrics_;
  ConnectionTable connections_;
  Authenticator authenticator_;
  ConnectionGuard guard_;
  CostModel costs_;
  Admission admission_;
  const std::shared_ptr<BufferPool> buffers_;
  Executor executor_;
  RegionTable regions_;
  SessionStore sessions_;
  const ComputeEnvironment environment_;
  AttentionService service_;
  SessionService session_service_;
  InferenceService inference_service_;
  HealthService health_;
  ReflectionService reflection_;
  StreamedService streamed_service_;
  grpc::ResourceQuota quota_;
  std::vector<std::string> addresses_;
  std::string http_address_;
  // From when every listener serves until Shutdown().
  std::atomic<bool> ready_{false};
  std::atomic<bool> serving_{false};  // gRPC's listeners do, or have done so
  std::atomic<bool> draining_{false};
  std::atomic<bool> in_process_{false};  // there was such a channel
  std::atomic<bool> leaving_{false};     // clients were told to
  StopRequest stop_;
  std::optional<Housekeeping> housekeeping_;
  std::mutex stop_mutex_;
  // With TLS; outlives the gRPC server.
  std::optional<TlsIdentity> tls_;
  std::unique_ptr<Acceptor::Sink> tcp_sink_, unix_sink_;
  std::unique_ptr<grpc::Server> grpc_server_;
  // Held while a connection of the server's own is handed over.
  std::mutex connect_mutex_;
  // What handlers of the HTTP server use, each before who uses it.
  std::optional<Origins> origins_;
  std::optional<CallGuard> call_guard_;
  std::optional<Gateway> gateway_;
  std::optional<InferenceGateway> inference_gateway_;
  std::unique_ptr<GrpcCaller> grpc_caller_;
  // Guarded by stop_mutex_ once Start() has returned.
  std::unique_ptr<HttpServer> http_server_;
  std::unique_ptr<RegionSocket> region_socket_;
  std::unique_ptr<Acceptor> acceptor_;
  // Why files could not be read again; of the reloader's thread.
  std::string identity_error_;
  std::string tokens_error_;
  Reloader reloader_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SERVER_H_
