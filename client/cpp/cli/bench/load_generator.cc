#include "client/cpp/cli/bench/load_generator.h"

#include <grpc/support/time.h>
#include <grpcpp/alarm.h>
#include <sys/resource.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/client.h"
#include "attention/status.h"

namespace attention::cli {
namespace {

constexpr int kSenders = 4;

gpr_timespec DeadlineIn(absl::Duration time) {
  return gpr_time_add(
      gpr_now(GPR_CLOCK_MONOTONIC),
      gpr_time_from_nanos(std::max<int64_t>(absl::ToInt64Nanoseconds(time), 0),
                          GPR_TIMESPAN));
}

absl::Duration CpuTime() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) +
         absl::DurationFromTimeval(usage.ru_stime);
}

bool IsRefusal(const grpc::Status& status) {
  return status.error_code() == grpc::RESOURCE_EXHAUSTED ||
         status.error_code() == grpc::UNAVAILABLE;
}

// How long a refused client waits before its next call: what the server asks
// for, else long enough that refusals do not become the load.
absl::Duration PauseAfter(const grpc::Status& status) {
  const std::optional<absl::Duration> asked =
      RetryDelay(FromGrpcStatus(status));
  return std::clamp(asked.value_or(absl::Milliseconds(10)),
                    absl::Milliseconds(1), absl::Seconds(1));
}

// Tells the server what a call of `kind` sends, as attention::Client does.
void Announce(const CallKind& kind, grpc::ClientContext& context) {
  if (!kind.computes()) return;
  context.AddMetadata(kRequestBytesHeader, absl::StrCat(kind.request.Length()));
}

std::vector<double> Weights(const Workload& workload) {
  std::vector<double> weights;
  weights.reserve(workload.kinds.size());
  for (const CallKind& kind : workload.kinds) weights.push_back(kind.weight);
  return weights;
}

}  // namespace

grpc::ChannelArguments BenchArguments() {
  grpc::ChannelArguments arguments;
  // Else channels to the same server would share a connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A retried call would hide a refusal; gRPC also keeps a copy for it.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return arguments;
}

// What the completion queue's tags point to; deleted once it has ended.
class LoadGenerator::Event {
 public:
  virtual ~Event() = default;
  virtual void Ended(LoadGenerator& generator) = 0;
};

class LoadGenerator::Call final : public Event {
 public:
  Call(size_t client, size_t kind, Clock::time_point due)
      : client(client), kind(kind), due(due) {}

  void Ended(LoadGenerator& generator) override { generator.Finish(*this); }

  const size_t client;
  const size_t kind;
  const Clock::time_point due;
  grpc::ClientContext context;
  grpc::ByteBuffer answer;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
};

// Closed loop: between a refusal and the client's next call.
class LoadGenerator::Pause final : public Event {
 public:
  Pause(size_t client, absl::Duration time, grpc::CompletionQueue& queue)
      : client_(client) {
    alarm_.Set(&queue, DeadlineIn(time), static_cast<Event*>(this));
  }

  void Ended(LoadGenerator& generator) override {
    generator.SendNext(client_);
    const std::lock_guard<std::mutex> lock(generator.mutex_);
    --generator.open_;
  }

 private:
  const size_t client_;
  grpc::Alarm alarm_;
};

LoadGenerator::LoadGenerator(LoadOptions options, const Workload& workload,
                             const Connection& connection)
    : options_(std::move(options)),
      workload_(workload),
      arrivals_(options_.rate, options_.seed),
      choice_(Weights(workload), options_.seed + 1),
      checks_(workload.kinds.size()) {
  for (int i = 0; i < options_.clients; ++i) {
    connections_.push_back(connection.Another());
    stubs_.push_back(
        std::make_unique<grpc::GenericStub>(connections_.back().channel()));
  }
  statistics_.kinds.resize(workload.kinds.size());
  StartTimeline(options_.duration, statistics_);
}

LoadGenerator::~LoadGenerator() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status LoadGenerator::Connect(absl::Duration timeout) {
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoNanoseconds(timeout);
  for (const Connection& connection : connections_) {
    connection.channel()->GetState(true);
  }
  for (const Connection& connection : connections_) {
    if (connection.channel()->WaitForConnected(deadline)) continue;
    // A call fails at once, and knows why.
    const absl::Status status =
        Client(connection).CheckHealth("", {.timeout = timeout}).status();
    if (status.ok()) continue;
    if (absl::IsFailedPrecondition(status)) return status;
    return absl::UnavailableError(absl::StrCat(
        "cannot connect to ", options_.server, ": ", status.message()));
  }
  return absl::OkStatus();
}

absl::Status LoadGenerator::TryEachKind() {
  constexpr int kTries = 5;
  for (size_t kind = 0; kind < workload_.kinds.size(); ++kind) {
    for (int i = 0; i < kTries; ++i) {
      grpc::CompletionQueue queue;
      Call call(0, kind, Clock::now());
      call.context.set_deadline(DeadlineIn(options_.timeout));
      Announce(workload_.kinds[kind], call.context);
      connections_[0].Authorize(call.context);
      call.reader = stubs_[0]->PrepareUnaryCall(
          &call.context, workload_.kinds[kind].method,
          workload_.kinds[kind].request, &queue);
      call.reader->StartCall();
      call.reader->Finish(&call.answer, &call.status, nullptr);
      void* tag = nullptr;
      bool ok = false;
      queue.Next(&tag, &ok);
      if (call.status.ok()) {
        checks_[kind].SameAsFirst(call.answer);
        break;
      }
      const absl::Status status = connections_[0].Explain(call.status);
      const bool load =
          RetryDelay(status).has_value() || absl::IsUnavailable(status);
      if (!load && !absl::IsDeadlineExceeded(status)) return status;
      std::this_thread::sleep_for(
          absl::ToChronoNanoseconds(PauseAfter(call.status)));
    }
  }
  return absl::OkStatus();
}

void LoadGenerator::Run(
    const std::function<void(absl::Duration, const CallStatistics&)>&
        progress) {
  start_ = Clock::now();
  stop_ =
      start_ + absl::ToChronoNanoseconds(options_.warmup + options_.duration);
  last_answer_ = start_;
  const absl::Duration cpu = CpuTime();
  const int sender_count = options_.rate.empty() ? 0 : kSenders;
  senders_ = sender_count;
  std::vector<std::thread> senders;
  senders.reserve(sender_count);
  for (int i = 0; i < sender_count; ++i) {
    senders.emplace_back([this] { SendOnSchedule(); });
  }
  std::thread receiver([this] { WaitForAnswers(); });
  while (!AllDone()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    CallStatistics so_far;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      so_far = statistics_.Total();
    }
    progress(SinceStart(Clock::now()), so_far);
  }
  for (std::thread& sender : senders) sender.join();
  receiver.join();
  statistics_.wall = SinceStart(Clock::now());
  statistics_.cpu = CpuTime() - cpu;
  statistics_.elapsed = options_.duration;
  if (options_.rate.empty()) {
    statistics_.elapsed = std::max(SinceStart(last_answer_) - options_.warmup,
                                   absl::Milliseconds(1));
  }
}

// A call that is followed by another ends after that one was opened, so that
// open_ is 0 only at the end.
bool LoadGenerator::AllDone() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const bool over = !options_.rate.empty() || Clock::now() >= stop_;
  return over && senders_ == 0 && open_ == 0;
}

void LoadGenerator::Send(size_t client, size_t kind, Clock::time_point due) {
  auto* call = new Call(client, kind, due);
  const CallKind& sent = workload_.kinds[kind];
  call->context.set_deadline(
      DeadlineIn(options_.timeout - absl::FromChrono(Clock::now() - due)));
  Announce(sent, call->context);
  connections_[client].Authorize(call->context);
  call->reader = stubs_[client]->PrepareUnaryCall(&call->context, sent.method,
                                                  sent.request, &queue_);
  call->reader->StartCall();
  call->reader->Finish(&call->answer, &call->status, static_cast<Event*>(call));
}

void LoadGenerator::SendNext(size_t client) {
  const Clock::time_point now = Clock::now();
  if (now >= stop_) return;
  size_t kind = 0;
  {
    const std::lock_guard<std::mutex> lock(schedule_mutex_);
    kind = choice_.Next();
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++open_;
  }
  Send(client, kind, now);
}

void LoadGenerator::Finish(Call& call) {
  const Clock::time_point now = Clock::now();
  CallOutcome outcome;
  outcome.due = SinceStart(call.due) - options_.warmup;
  outcome.latency = absl::FromChrono(now - call.due);
  outcome.code = call.status.error_code();
  outcome.in_time = outcome.latency <= options_.timeout;
  outcome.request_bytes =
      static_cast<int64_t>(workload_.kinds[call.kind].request.Length());
  if (call.status.ok()) {
    outcome.answer_bytes = static_cast<int64_t>(call.answer.Length());
    outcome.same_bits =
        !options_.check || checks_[call.kind].SameAsFirst(call.answer);
  }
  if (options_.rate.empty()) {
    if (IsRefusal(call.status) && now < stop_) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++open_;
      }
      new Pause(call.client, PauseAfter(call.status), queue_);
    } else {
      SendNext(call.client);
    }
  }
  last_answer_ = now;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (outcome.due >= absl::ZeroDuration()) {
    Count(outcome, call.kind, statistics_);
  }
  --open_;
  room_.notify_one();
}

bool LoadGenerator::WaitForRoom(Clock::time_point deadline, int64_t& waited) {
  const auto room = [this] { return open_ < options_.max_open; };
  std::unique_lock<std::mutex> lock(mutex_);
  if (!room()) {
    ++waited;
    if (!room_.wait_until(lock, deadline, room)) return false;
  }
  ++open_;
  return true;
}

std::optional<LoadGenerator::Due> LoadGenerator::TakeDue() {
  const std::lock_guard<std::mutex> lock(schedule_mutex_);
  const std::optional<absl::Duration> at = arrivals_.Next();
  if (!at) return std::nullopt;
  const size_t client = next_client_;
  next_client_ = (next_client_ + 1) % stubs_.size();
  return Due{*at, client, choice_.Next()};
}

void LoadGenerator::SendOnSchedule() {
  while (const std::optional<Due> due = TakeDue()) {
    const Clock::time_point at = start_ + absl::ToChronoNanoseconds(due->at);
    const Clock::time_point deadline =
        at + absl::ToChronoNanoseconds(options_.timeout);
    std::this_thread::sleep_until(at);
    int64_t waited = 0;
    const bool room = WaitForRoom(deadline, waited);
    const Clock::time_point now = Clock::now();
    const bool sends = room && now < deadline;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (room && !sends) --open_;
      if (due->at >= options_.warmup) {
        statistics_.lag.Add(absl::FromChrono(now - at));
        statistics_.waited += waited;
        if (!sends) {
          CountUnsent(due->at - options_.warmup, due->kind, statistics_);
        }
      }
    }
    if (sends) Send(due->client, due->kind, at);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  --senders_;
}

void LoadGenerator::WaitForAnswers() {
  if (options_.rate.empty()) {
    for (int i = 0; i < options_.concurrency; ++i) {
      for (size_t client = 0; client < stubs_.size(); ++client) {
        SendNext(client);
      }
    }
  }
  void* tag = nullptr;
  bool ok = false;
  while (!AllDone()) {
    // The pause bounds how long the end goes unnoticed when nothing is open.
    if (queue_.AsyncNext(
            &tag, &ok,
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                         gpr_time_from_millis(50, GPR_TIMESPAN))) !=
        grpc::CompletionQueue::GOT_EVENT) {
      continue;
    }
    const std::unique_ptr<Event> event(static_cast<Event*>(tag));
    event->Ended(*this);
  }
}

}  // namespace attention::cli
