// attention_server: flags, server, wait for a signal, shut down.
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "server/flags.h"
#include "server/server.h"
#include "server/version.h"

namespace attention::server {
namespace {

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

// The first signal drains within the grace, any later one at once.
void ShutdownOnSignals(const sigset_t& signals, absl::Duration grace,
                       const std::atomic<bool>& stopped, Server& server) {
  for (bool first = true;; first = false) {
    int signal;
    sigwait(&signals, &signal);
    if (stopped) return;
    server.log().info("event=shutdown signal={} running_calls={}", signal,
                      server.running_calls());
    server.Shutdown(first ? absl::Now() + grace : absl::InfinitePast());
  }
}

int Serve(const Options& options) {
  const sigset_t signals = BlockStopSignals();
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options);
  if (!server.ok()) {
    std::fprintf(stderr, "attention_server: %s\n",
                 std::string(server.status().message()).c_str());
    return 1;
  }
  Server& running = **server;
  running.log().info("event=start version={} threads={}", kVersion,
                     options.threads);
  for (const std::string& address : running.addresses()) {
    std::printf("listening on %s\n", address.c_str());
  }
  if (!running.http_address().empty()) {
    std::printf("listening on http://%s\n", running.http_address().c_str());
  }
  std::fflush(stdout);
  std::atomic<bool> stopped{false};
  std::thread signal_thread([&] {
    ShutdownOnSignals(signals, options.shutdown_grace, stopped, running);
  });
  running.Wait();
  stopped = true;
  // The thread waits for it with sigwait(): it ends nothing.
  // NOLINTNEXTLINE(bugprone-bad-signal-to-kill-thread)
  pthread_kill(signal_thread.native_handle(), SIGTERM);
  signal_thread.join();
  running.log().info("event=stop");
  return 0;
}

int Main(int argc, const char* const* argv) {
  // gRPC's own log repeats, less clearly, what is said here.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  const Invocation invocation = ParseFlags(argc, argv);
  if (invocation.options) return Serve(*invocation.options);
  std::fputs(invocation.standard_output.c_str(), stdout);
  std::fputs(invocation.standard_error.c_str(), stderr);
  return invocation.exit_code;
}

}  // namespace
}  // namespace attention::server

int main(int argc, char** argv) { return attention::server::Main(argc, argv); }
