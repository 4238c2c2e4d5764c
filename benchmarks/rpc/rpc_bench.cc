// What a call costs, and what its parts cost alone. Started by
// benchmarks/rpc/__main__.py:
//
//   rpc_bench --serve-bare                a server of bare calls
//   rpc_bench SERVER BARE_SERVER          measures: for each line
//                                         "CASE CONTENDER CALLS" of standard
//                                         input one with a time per call, in
//                                         milliseconds
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "attention/client.h"
#include "base/executor.h"
#include "benchmarks/rpc/bare_calls.h"
#include "benchmarks/rpc/generated_client.h"
#include "benchmarks/rpc/workload.h"
#include "kernel/attention.h"

namespace attention::benchmarks {
namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::exit(1);
}

// The contenders on one case.
class Contenders {
 public:
  Contenders(const std::string& name, const std::string& server,
             const std::string& bare_server)
      : workload_(FindCase(name).value()),
        client_(server, Sending()),
        sharing_(server),
        generated_(server),
        bare_(bare_server, workload_.request(), workload_.output_bytes()),
        echo_(bare_server, workload_.request(), 0),
        executor_(static_cast<int>(std::thread::hardware_concurrency()) - 1) {
    into_memory_ = workload_.request();
    into_memory_.outputs.output = std::as_writable_bytes(
        std::span(workload_.output(), workload_.output_bytes() / 4));
  }

  // One call; null for a name that no contender has.
  std::function<void()> Find(const std::string& contender) {
    if (contender == "client") {
      return [this] { Check(client_.Compute(workload_.request()).status()); };
    }
    if (contender == "client_shared") {
      return [this] { Check(sharing_.Compute(workload_.request()).status()); };
    }
    if (contender == "client_allocated") {
      Allocate();
      return [this] { Check(sharing_.Compute(allocated_).status()); };
    }
    if (contender == "client_into_memory") {
      return [this] { Check(client_.Compute(into_memory_).status()); };
    }
    if (contender == "client_async") {
      return [this] {
        Check(client_.ComputeAsync(workload_.request()).get().status());
      };
    }
    if (contender == "generated") {
      return [this] { generated_.Call(workload_.request()); };
    }
    if (contender == "transfer") return [this] { bare_.Call(); };
    if (contender == "echo") return [this] { echo_.Call(); };
    if (contender == "compute") {
      return [this] {
        Check(RunAttention(workload_.plan(), {.output = workload_.output()},
                           executor_));
      };
    }
    return nullptr;
  }

 private:
  static ClientOptions Sending() {
    ClientOptions options;
    options.use_shared_memory = false;
    return options;
  }

  // The tensors once more, in memory that the server reads where it is.
  void Allocate() {
    if (!memory_.empty()) return;
    allocated_ = workload_.request();
    for (TensorSpan* tensor :
         {&allocated_.query, &allocated_.key, &allocated_.value}) {
      const std::span<const std::byte> from = tensor->bytes;
      memory_.push_back(sharing_.AllocateShared(from.size()));
      std::copy(from.begin(), from.end(), memory_.back().get());
      tensor->bytes = {memory_.back().get(), from.size()};
    }
  }

  Workload workload_;
  ComputeRequest into_memory_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  ComputeRequest allocated_;
  const Client client_;
  const Client sharing_;
  const GeneratedClient generated_;
  const BareClient bare_;
  const BareClient echo_;
  Executor executor_;
};

double Milliseconds(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  const std::chrono::duration<double, std::milli> taken =
      std::chrono::steady_clock::now() - begin;
  return taken.count();
}

int Measure(const std::string& server, const std::string& bare_server) {
  std::map<std::string, std::unique_ptr<Contenders>> cases;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string name, contender;
    int calls = 0;
    words >> name >> contender >> calls;
    if (!FindCase(name)) {
      std::cerr << "no case '" << name << "'\n";
      return 2;
    }
    std::unique_ptr<Contenders>& contenders = cases[name];
    if (contenders == nullptr) {
      contenders = std::make_unique<Contenders>(name, server, bare_server);
    }
    const std::function<void()> call = contenders->Find(contender);
    if (call == nullptr) {
      std::cerr << "no contender '" << contender << "'\n";
      return 2;
    }
    call();  // Warms caches and memory.
    for (int i = 0; i < calls; ++i) std::printf("%.6f ", Milliseconds(call));
    std::printf("\n");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace attention::benchmarks

int main(int argc, char** argv) {
#ifndef NDEBUG
  std::cerr << "warning: built without optimisation, or with assertions\n";
#endif
  if (argc == 2 && std::string(argv[1]) == "--serve-bare") {
    attention::benchmarks::RunBareServer();
    return 0;
  }
  if (argc == 3) return attention::benchmarks::Measure(argv[1], argv[2]);
  std::cerr << "usage: rpc_bench --serve-bare | SERVER BARE_SERVER\n";
  return 2;
}
