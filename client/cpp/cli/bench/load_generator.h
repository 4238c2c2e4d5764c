// Sends calls and measures how they fare.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_LOAD_GENERATOR_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_LOAD_GENERATOR_H_

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/connection.h"
#include "client/cpp/cli/bench/answer_check.h"
#include "client/cpp/cli/bench/arrivals.h"
#include "client/cpp/cli/bench/statistics.h"
#include "client/cpp/cli/bench/workload.h"

namespace attention::cli {

// What a channel must have so that what is measured is the server.
grpc::ChannelArguments BenchArguments();

struct LoadOptions {
  std::string server;
  // Connections, each a channel of its own; at least 1. Calls take turns.
  int clients = 1;
  // Open loop: the rates, warm-up included. Empty: closed loop.
  std::vector<RateStep> rate;
  // Closed loop: calls open per client, at least 1.
  int concurrency = 1;
  // Calls due before it are not counted.
  absl::Duration warmup;
  // What is measured after the warm-up.
  absl::Duration duration;
  // Of each call, from when it was due. Finite.
  absl::Duration timeout;
  // Open loop: calls open at once, at least 1. It bounds the memory of this
  // program. Calls that are due beyond it wait, and are not sent at all once
  // their deadline has passed.
  int64_t max_open = 10'000;
  uint64_t seed = 1;
  // Whether answers are held to the first of their kind.
  bool check = true;
};

// One measurement. Threads of its own while Run() runs: one waits for answers,
// in an open loop four send on schedule, since gRPC may keep the one that
// starts a call for a while, writing. Everything it starts has
// ended when Run() returns, which is at most warm-up, rate steps and timeout
// after the call (with a second for what gRPC is late).
class LoadGenerator {
 public:
  // Each client has a channel of its own like that of `connection`, which has
  // BenchArguments(). `workload` must outlive this.
  LoadGenerator(LoadOptions options, const Workload& workload,
                const Connection& connection);
  ~LoadGenerator();

  // Connects every client. UNAVAILABLE if one cannot within `timeout`.
  absl::Status Connect(absl::Duration timeout);

  // One call of each kind, so that what cannot work fails at once and each
  // kind has its first answer. A refusal for load is tried again a few times
  // and then left to Run(). Returns the first other error.
  absl::Status TryEachKind();

  // Blocks until every call has ended. Calls `progress` about ten times a
  // second with a copy of what was counted so far. Must be called once.
  void Run(const std::function<void(absl::Duration since_start,
                                    const CallStatistics&)>& progress);

  // After Run(): what was measured.
  const RunStatistics& statistics() const { return statistics_; }
  // After Run(): each kind's first answer.
  const std::vector<AnswerCheck>& answers() const { return checks_; }

 private:
  using Clock = std::chrono::steady_clock;
  class Event;
  class Call;
  class Pause;

  absl::Duration SinceStart(Clock::time_point time) const {
    return absl::FromChrono(time - start_);
  }
  // Starts a call that is counted in open_ already.
  void Send(size_t client, size_t kind, Clock::time_point due);
  void SendNext(size_t client);  // Closed loop.
  void Finish(Call& call);
  // One call to be sent; nothing once the schedule is over.
  struct Due {
    absl::Duration at;  // Since the start of the warm-up.
    size_t client;
    size_t kind;
  };
  std::optional<Due> TakeDue();
  void SendOnSchedule();
  // Blocks until fewer than max_open calls are open and counts one more, or
  // until `deadline`, in which case it returns false. Adds to `waited` if there
  // was no room at once.
  bool WaitForRoom(Clock::time_point deadline, int64_t& waited);
  void WaitForAnswers();
  // Whether nothing is open and nothing more will be sent.
  bool AllDone();

  const LoadOptions options_;
  const Workload& workload_;
  std::vector<Connection> connections_;  // One per client.
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  grpc::CompletionQueue queue_;
  Clock::time_point start_;  // Of the warm-up.
  Clock::time_point stop_;   // Closed loop: nothing is sent after it.

  std::mutex schedule_mutex_;  // Guards the next three.
  PoissonArrivals arrivals_;
  WeightedChoice choice_;
  size_t next_client_ = 0;

  // Used by the thread that waits for answers alone.
  std::vector<AnswerCheck> checks_;
  Clock::time_point last_answer_;

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable room_;
  RunStatistics statistics_;
  int64_t open_ = 0;     // Calls and pauses that have not ended.
  int64_t senders_ = 0;  // Threads that send on schedule and have not ended.
};

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_LOAD_GENERATOR_H_
