// The programs in C++ of benchmarks/rpc, whose programs.py tells what they say:
//
//   rpc_bench --serve-bare FOLDER    servers of bare calls and of plain
//   sockets,
//                                    each on a port and a Unix socket in FOLDER
//   rpc_bench CONTENDER ADDRESS      a client
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "benchmarks/rpc/bare_calls.h"
#include "benchmarks/rpc/contenders.h"
#include "benchmarks/rpc/plain_sockets.h"
#include "benchmarks/rpc/workload.h"

namespace attention::benchmarks {
namespace {

void Listening(const std::string& address) {
  std::printf("listening on %s\n", address.c_str());
  std::fflush(stdout);
}

int ServeBare(const std::string& folder) {
  const absl::StatusOr<std::string> tcp = ServeTcpSockets();
  const absl::StatusOr<std::string> local =
      ServeUnixSockets(absl::StrCat(folder, "/sockets"));
  for (const auto& address : {tcp, local}) {
    if (address.ok()) continue;
    std::cerr << address.status() << "\n";
    return 1;
  }
  int addresses = 0;
  RunBareServer(absl::StrCat(folder, "/bare"), [&](const std::string& address) {
    Listening(address);
    if (++addresses < 2) return;
    Listening(*tcp);
    Listening(*local);
  });
  return 0;
}

// The monotonic clock, which all processes share.
double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// User and system time of this process.
double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * time.tv_usec;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A client: a contender and the case that it was told to prepare. Each
// function reads the words after its verb and gives an answer in JSON.
class Session {
 public:
  explicit Session(Contender contender) : contender_(std::move(contender)) {}

  absl::StatusOr<std::string> Prepare(std::istream& words) {
    std::string folder;
    Case shape = {};
    words >> folder >> shape.query_heads >> shape.kv_heads >> shape.queries >>
        shape.keys >> shape.head_size >> shape.causal;
    if (!words) return absl::InvalidArgumentError("prepare: words are missing");
    call_ = nullptr;  // Uses the workload.
    auto workload = Workload::Open(folder, shape);
    if (!workload.ok()) return workload.status();
    workload_ = *std::move(workload);
    absl::StatusOr<Call> call = MakeCall(contender_, *workload_);
    if (!call.ok()) return call.status();
    call_ = *std::move(call);
    return "{}";
  }

  absl::StatusOr<std::string> Answer(std::istream& words) {
    std::string path;
    words >> path;
    const absl::StatusOr<Tensor> output = call_();
    if (!output.ok()) return output.status();
    const std::span<const float> numbers = output->elements<float>();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(numbers.data()),
               static_cast<std::streamsize>(numbers.size_bytes()));
    file.close();
    if (!file) return absl::UnknownError(absl::StrCat(path, ": not written"));
    return "{}";
  }

  absl::StatusOr<std::string> Run(std::istream& words) {
    size_t calls = 0;
    double seconds = 0;
    words >> calls >> seconds;
    std::vector<double> times;
    const double cpu = CpuSeconds();
    const double begin = Seconds();
    double before = begin;
    do {
      const absl::Status status = call_().status();
      if (!status.ok()) return status;
      const double after = Seconds();
      times.push_back(1000 * (after - before));
      before = after;
    } while (times.size() < calls && before < begin + seconds);
    const double used = CpuSeconds() - cpu;
    std::ostringstream answer;
    answer.precision(15);
    answer << "{\"ms\": [" << absl::StrJoin(times, ", ")
           << "], \"begin\": " << begin << ", \"end\": " << before
           << ", \"cpu\": " << used << "}";
    return answer.str();
  }

  bool prepared() const { return call_ != nullptr; }

 private:
  const Contender contender_;
  std::unique_ptr<Workload> workload_;
  Call call_;
};

absl::StatusOr<std::string> Obey(Session& session, std::istream& words) {
  std::string verb;
  words >> verb;
  if (verb == "prepare") return session.Prepare(words);
  if (!session.prepared()) {
    return absl::FailedPreconditionError("no case is prepared");
  }
  if (verb == "answer") return session.Answer(words);
  if (verb == "run") return session.Run(words);
  return absl::InvalidArgumentError(absl::StrCat("no verb '", verb, "'"));
}

std::string ErrorAnswer(const absl::Status& status) {
  return absl::StrCat(
      "{\"error\": \"",
      absl::StrReplaceAll(status.ToString(),
                          {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", " "}}),
      "\"}");
}

int RunClient(Contender contender) {
  Session session(std::move(contender));
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    const absl::StatusOr<std::string> answer = Obey(session, words);
    std::cout << (answer.ok() ? *answer : ErrorAnswer(answer.status()))
              << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace attention::benchmarks

int main(int argc, char** argv) {
#ifndef NDEBUG
  std::cerr << "warning: built without optimisation, or with assertions\n";
#endif
  if (argc == 3 && std::string(argv[1]) == "--serve-bare") {
    return attention::benchmarks::ServeBare(argv[2]);
  }
  if (argc == 3) return attention::benchmarks::RunClient({argv[1], argv[2]});
  std::cerr << "usage: rpc_bench --serve-bare FOLDER | CONTENDER ADDRESS\n";
  return 2;
}
