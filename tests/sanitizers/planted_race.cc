// Races on purpose, to prove that the thread sanitizer still sees them despite
// its suppressions. Usage: planted_race handler|task

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "base/executor.h"
#include "base/parallel_for.h"

namespace {

constexpr int kRacers = 2;

// Adds to a counter without a lock, from kRacers threads that first wait for
// each other. The waiting itself orders nothing between them. Many times, for
// the sanitizer can miss two accesses that fall into the same instant.
class Race {
 public:
  void Run() {
    met_.fetch_add(1, std::memory_order_relaxed);
    while (met_.load(std::memory_order_relaxed) < kRacers) {
      std::this_thread::yield();
    }
    for (int i = 0; i < 1000; ++i) PlantedRace();
  }

 private:
  [[gnu::noinline]] void PlantedRace() { ++counter_; }

  std::atomic<int> met_{0};
  int counter_ = 0;
};

class RacyService final
    : public attention::v1::AttentionService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetCapabilities(
      grpc::CallbackServerContext* context,
      const attention::v1::GetCapabilitiesRequest* /*request*/,
      attention::v1::GetCapabilitiesResponse* /*response*/) override {
    race_.Run();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  Race race_;
};

void RaceInHandlers() {
  RacyService service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  std::vector<std::thread> clients;
  clients.reserve(kRacers);
  for (int i = 0; i < kRacers; ++i) {
    clients.emplace_back([&server] {
      const auto stub = attention::v1::AttentionService::NewStub(
          server->InProcessChannel(grpc::ChannelArguments()));
      grpc::ClientContext context;
      attention::v1::GetCapabilitiesResponse response;
      stub->GetCapabilities(&context, {}, &response);
    });
  }
  for (std::thread& client : clients) client.join();
}

void RaceInTasks() {
  attention::Executor executor(kRacers - 1);
  Race race;
  ParallelFor(executor, kRacers, [&race](int64_t) { race.Run(); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view where = argc == 2 ? argv[1] : "";
  if (where == "handler") {
    RaceInHandlers();
  } else if (where == "task") {
    RaceInTasks();
  } else {
    return 2;
  }
}
