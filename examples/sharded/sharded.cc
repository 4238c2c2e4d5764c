// A context of 100 000 tokens over three servers, which answer as one would;
// then one of them is gone.
//
//   sharded_example path/to/attention_server
#include <attention/client.h>
#include <attention/sharded_session.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace {

constexpr int64_t kTokens = 100'000, kAppend = 20'000;
constexpr int64_t kHeads = 2, kQueryHeads = 8, kHeadSize = 32;

// Ends the example where it cannot go on.
template <typename T>
T Need(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << value.status() << "\n";
  std::exit(1);
}

// An attention_server on a free port, which ends with this object, or with
// this process.
class Server {
 public:
  explicit Server(const char* program) {
    int ends[2];
    if (pipe(ends) != 0) std::exit(1);
    process_ = fork();
    if (process_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]);
      execl(program, program, "--listen=127.0.0.1:0", "--log-level=error",
            nullptr);
      std::perror(program);
      _exit(1);
    }
    close(ends[1]);
    FILE* const output = fdopen(ends[0], "r");
    char address[100] = "";
    if (process_ < 0 || output == nullptr ||
        std::fscanf(output, "listening on %99s", address) != 1) {
      std::cerr << "no server\n";
      std::exit(1);
    }
    std::fclose(output);
    address_ = address;
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() { Kill(); }

  const std::string& address() const { return address_; }
  void Kill() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    process_ = 0;
  }

 private:
  pid_t process_ = 0;
  std::string address_;
};

attention::Tensor Random(std::mt19937& random, std::vector<int64_t> shape) {
  std::vector<float> numbers(*attention::ElementCount(shape));
  std::normal_distribution<float> normal;
  for (float& number : numbers) number = normal(random);
  return attention::Tensor::Of<float>(numbers, std::move(shape));
}

bool SameBits(const attention::Tensor& a, const attention::Tensor& b) {
  return std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(),
                    b.bytes().end());
}

int64_t CountOf(const std::vector<attention::TokenRange>& ranges) {
  int64_t tokens = 0;
  for (const auto& range : ranges) tokens += range.end - range.begin;
  return tokens;
}

void Run(const char* program) {
  Server servers[] = {Server(program), Server(program), Server(program)};
  Server one(program);
  std::vector<attention::Client> clients;
  for (const Server& server : servers) clients.emplace_back(server.address());
  const attention::Client client(one.address());

  attention::v1::SessionConfig config;
  config.set_kv_heads(kHeads);
  config.set_head_size(kHeadSize);
  auto sharded = Need(attention::ShardedSession::Create(clients, config));
  auto whole = Need(client.CreateSession(config));
  std::mt19937 random(1);
  for (int64_t tokens = 0; tokens < kTokens; tokens += kAppend) {
    const auto key = Random(random, {kHeads, kAppend, kHeadSize});
    const auto value = Random(random, {kHeads, kAppend, kHeadSize});
    Need(sharded.Append(0, key, value));
    Need(whole.Append(0, key, value));
  }
  std::cout << sharded.length() << " tokens: ";
  for (int64_t shard = 0; shard < 3; ++shard) {
    std::cout << (shard == 0 ? "" : " + ") << CountOf(sharded.TokensOf(shard));
  }
  std::cout << "\n";

  const auto query = Random(random, {kQueryHeads, 1, kHeadSize});
  const auto wanted = Need(whole.Attend(0, query));
  const auto got = Need(sharded.Attend(0, query));
  std::cout << "the bits of one server: "
            << (SameBits(got.output, wanted.output) ? "yes" : "no") << "\n";

  servers[1].Kill();
  const absl::Status lost = sharded.Attend(0, query).status();
  std::cout << "without the second server: "
            << absl::StatusCodeToString(lost.code()) << ", "
            << attention::ErrorReason(lost) << "\n";
  for (const auto& range : attention::MissingTokens(lost)) {
    std::cout << "  missing: [" << range.begin << ", " << range.end << ")\n";
  }
  attention::ShardedAttendOptions attend;
  attend.allow_missing = true;
  const auto partial = Need(sharded.Attend(0, query, attend));
  std::cout << "answered over the other "
            << partial.length - CountOf(partial.missing) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: sharded_example path/to/attention_server\n";
    return 1;
  }
  Run(argv[1]);
}
