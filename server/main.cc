// attention_server: flags, server, wait for a signal, shut down.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/protobuf/stubs/common.h"
#if __has_include("absl/log/globals.h")
#include "absl/log/globals.h"
#endif
#include "grpc/grpc.h"
#include "server/flags.h"
#include "server/last_words.h"
#include "server/line_writer.h"
#include "server/process_limits.h"
#include "server/server.h"
#include "server/version.h"

namespace attention::server {
namespace {

// A descriptor of a standard stream that is closed would go to the first file
// or connection opened, which would then get our lines.
void OpenStandardStreams() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    // The lowest free one, so `fd`.
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
  }
}

// Blocked in every thread, so that only sigwait() gets them. Must run before
// the first thread starts.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// How long a start that is told to stop may go on: one that goes well is over
// sooner, and then leaves no file of a socket behind.
constexpr std::chrono::milliseconds kStartTime(500);

// A thread that takes the signals to stop: the first drains within the grace,
// any later one at once. One that comes while the server still starts ends the
// process if the start hangs.
class StopSignals {
 public:
  // `grace` begins with the signal.
  StopSignals(const sigset_t& signals, absl::Duration grace)
      : signals_(signals), grace_(grace), thread_([this] { Run(); }) {}

  ~StopSignals() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
      started_.notify_all();
    }
    // The thread waits for it with sigwait(): it ends nothing.
    // NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread)
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // `server` has started, and outlives this.
  void SetServer(Server* server) {
    const std::lock_guard<std::mutex> lock(mutex_);
    server_ = server;
    started_.notify_all();
  }

 private:
  void Run() {
    for (bool first = true;; first = false) {
      int signal;
      sigwait(&signals_, &signal);
      if (ended_) return;
      Server* const server = StartedServer();
      if (ended_) return;
      if (server == nullptr) {
        TellOnStderr("told to stop while starting");
        _exit(0);
      }
      server->log().info("event=shutdown signal={} running_calls={}", signal,
                         server->running_calls());
      server->Shutdown(first ? absl::Now() + grace_ : absl::InfinitePast());
    }
  }

  // Null if the start takes too long, or has failed.
  Server* StartedServer() {
    std::unique_lock<std::mutex> lock(mutex_);
    started_.wait_for(lock, kStartTime,
                      [this] { return server_ != nullptr || ended_; });
    return server_;
  }

  const sigset_t signals_;
  const absl::Duration grace_;
  std::mutex mutex_;
  std::condition_variable started_;
  Server* server_ = nullptr;  // guarded by mutex_
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options) {
  const absl::StatusOr<Options> fitting = FitToProcessLimits(options);
  if (!fitting.ok()) return fitting.status();
  auto server = Server::Start(*fitting);
  if (server.ok() &&
      (fitting->max_inflight_bytes < options.max_inflight_bytes ||
       fitting->max_pooled_bytes < options.max_pooled_bytes)) {
    (*server)->log().warn(
        "event=memory_lowered max_inflight_bytes={} max_pooled_bytes={} "
        "max_request_bytes={} max_response_bytes={} "
        "reason=\"address space is limited (ulimit -v, ulimit -d)\"",
        fitting->max_inflight_bytes, fitting->max_pooled_bytes,
        fitting->max_request_bytes, fitting->max_response_bytes);
  }
  return server;
}

// Keeps gRPC from stopping its own threads once the server is destroyed: it
// would wait for one that helps with large answers, which may sleep for 10 s.
// They end with the process.
void KeepGrpcThreads() { grpc_init(); }

int Serve(const Options& options) {
  const sigset_t signals = BlockStopSignals();
  // Destroyed after `stop`, which uses it.
  absl::StatusOr<std::unique_ptr<Server>> server;
  StopSignals stop(signals, options.drain_delay + options.shutdown_grace);
  server = Start(options);
  if (!server.ok()) {
    TellOnStderr(server.status().message());
    return 1;
  }
  KeepGrpcThreads();
  Server& running = **server;
  // Nobody may read standard output either.
  LineWriter output({.fd = STDOUT_FILENO});
  StartSucceeded();
  running.log().info("event=start version={} threads={}", kVersion,
                     options.threads);
  stop.SetServer(&running);
  for (const std::string& address : running.addresses()) {
    output.Write(absl::StrCat("listening on ", address));
  }
  if (!running.http_address().empty()) {
    output.Write(absl::StrCat("listening on http://", running.http_address()));
  }
  running.Wait();
  running.log().info("event=stop");
  return 0;
}

int Main(int argc, const char* const* argv) {
  OpenStandardStreams();
  InstallLastWords();
  // Whoever reads the log may go away.
  std::signal(SIGPIPE, SIG_IGN);
  // protobuf writes to standard error of what clients send: a line for each
  // string that is not UTF-8, however many, and waits for who reads it. Later
  // versions write to Abseil's log.
#if GOOGLE_PROTOBUF_VERSION < 4022000
  google::protobuf::SetLogHandler(nullptr);
#elif __has_include("absl/log/globals.h")
  absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
#endif
  // gRPC's own log repeats, less clearly, what is said here.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  Invocation invocation = ParseFlags(argc, argv);
  if (invocation.options) {
    invocation.options->own_process = true;
    return Serve(*invocation.options);
  }
  std::fputs(invocation.standard_output.c_str(), stdout);
  std::fputs(invocation.standard_error.c_str(), stderr);
  return invocation.exit_code;
}

}  // namespace
}  // namespace attention::server

int main(int argc, char** argv) {
  try {
    return attention::server::Main(argc, argv);
  } catch (...) {
    attention::server::TellOfException();
    return 1;
  }
}
