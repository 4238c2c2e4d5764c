#include "server/process_limits.h"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

// Beyond listeners: what gRPC polls with, and a few connections.
constexpr int kDescriptors = 24;
// Beside those that compute, HTTP's, that of shared memory and the one that
// looks at files: main(),
// signals, housekeeping, the acceptor, the guard of connections, and one each
// that writes the log and standard output.
constexpr int kOwnThreads = 7;
// gRPC 1.51's. Two executors may grow to two threads per core each. The pollers
// of callbacks and the event engine are as many as cores allow, within a range.
// Then two for timers, and some that come and go.
constexpr int kExecutorThreadsPerCore = 4;
constexpr int64_t kLeastPool = 2, kMostPool = 16;
constexpr int kOtherGrpcThreads = 7;
// For gRPC's start and small calls. Calls that need more than there is are
// refused one by one.
constexpr size_t kSpareBytes = size_t{192} << 20;
constexpr int kArenas = 2;
// With less than this for calls there is no use in a server.
constexpr int64_t kLeastCallBytes = int64_t{16} << 20;
constexpr int64_t kLeastMessageBytes = 1024;  // as in Options
constexpr int64_t kPoolPart = 5;

// The soft limit; negative if there is none.
int64_t Limit(__rlimit_resource resource) {
  rlimit limit;
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return -1;
  }
  return static_cast<int64_t>(limit.rlim_cur);
}

bool IsMemoryLimited() {
  return Limit(RLIMIT_AS) >= 0 || Limit(RLIMIT_DATA) >= 0;
}

std::string LimitText(__rlimit_resource resource, int64_t unit) {
  const int64_t limit = Limit(resource);
  return limit < 0 ? "none" : absl::StrCat(limit / unit);
}

// What pthread_create() gives a thread that asks for nothing else.
size_t StackBytes() {
  pthread_attr_t attributes;
  size_t bytes = size_t{8} << 20;
  if (pthread_getattr_default_np(&attributes) != 0) return bytes;
  pthread_attr_getstacksize(&attributes, &bytes);
  pthread_attr_destroy(&attributes);
  return bytes;
}

// Address space of its own, without pages. Move-only by being unmoved.
class Reservation {
 public:
  explicit Reservation(size_t bytes)
      : bytes_(bytes),
        start_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Reservation() {
    if (good()) munmap(start_, bytes_);
  }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  bool good() const { return start_ != MAP_FAILED; }

 private:
  const size_t bytes_;
  void* const start_;
};

// Threads that do nothing until the destructor lets them end. They allocate
// nothing, or each would take an arena of malloc's.
class IdleThreads {
 public:
  // Starts up to `count`, fewer where the system refuses.
  explicit IdleThreads(int64_t count) {
    threads_.reserve(count);
    pthread_t thread;
    while (started() < count &&
           pthread_create(&thread, nullptr, &Run, this) == 0) {
      threads_.push_back(thread);
    }
  }
  ~IdleThreads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      end_ = true;
    }
    changed_.notify_all();
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
  }
  IdleThreads(const IdleThreads&) = delete;
  IdleThreads& operator=(const IdleThreads&) = delete;

  int64_t started() const { return static_cast<int64_t>(threads_.size()); }

 private:
  static void* Run(void* self) {
    auto& threads = *static_cast<IdleThreads*>(self);
    std::unique_lock<std::mutex> lock(threads.mutex_);
    threads.changed_.wait(lock, [&] { return threads.end_; });
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool end_ = false;  // Guarded by mutex_.
  std::vector<pthread_t> threads_;
};

// How many of `count` more descriptors could be opened at once.
int64_t FreeDescriptors(int64_t count) {
  std::vector<int> descriptors;
  descriptors.reserve(count);
  const int any = open("/", O_PATH | O_CLOEXEC);
  while (any >= 0 && static_cast<int64_t>(descriptors.size()) < count) {
    const int fd = fcntl(any, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) break;
    descriptors.push_back(fd);
  }
  for (int fd : descriptors) close(fd);
  if (any >= 0) close(any);
  return static_cast<int64_t>(descriptors.size());
}

absl::Status CheckDescriptors(const Options& options) {
  const int64_t wanted =
      kDescriptors + 2 * static_cast<int64_t>(options.listen.size());
  const int64_t got = FreeDescriptors(wanted);
  if (got >= wanted) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "too few file descriptors: ", got, " are free of the ", wanted,
      " that the server needs; raise their limit, which is ",
      LimitText(RLIMIT_NOFILE, 1), " (ulimit -n)"));
}

// The most address space that can be had, in steps of 1 MiB, `wanted` at most.
int64_t FreeAddressBytes(int64_t wanted) {
  if (Reservation(wanted).good()) return wanted;
  constexpr int64_t kStep = int64_t{1} << 20;
  int64_t had = 0, refused = wanted;
  while (refused - had > kStep) {
    const int64_t middle = had + (refused - had) / 2;
    (Reservation(middle).good() ? had : refused) = middle;
  }
  return had;
}

absl::Status MemoryError(const Options& options, int64_t threads) {
  const int64_t mib = int64_t{1} << 20;
  const int64_t wanted = threads * static_cast<int64_t>(StackBytes()) +
                         int64_t{kSpareBytes} + kLeastCallBytes;
  return absl::ResourceExhaustedError(absl::StrCat(
      "too little address space: ", threads, " threads need about ",
      wanted / mib, " MiB of it beside the program; raise its limit (MiB, ",
      "ulimit -v: ", LimitText(RLIMIT_AS, mib),
      ", ulimit -d: ", LimitText(RLIMIT_DATA, mib),
      ") or lower --threads, which is ", options.threads));
}

absl::StatusOr<Options> FitToThreadsAndMemory(const Options& options) {
  const int64_t wanted = ThreadsNeeded(options);
  const bool limited = IsMemoryLimited();
  const Reservation spare(limited ? kSpareBytes : 1);
  if (!spare.good()) return MemoryError(options, wanted);
  const IdleThreads threads(wanted);
  if (threads.started() == wanted) {
    if (!limited) return options;
    const int64_t bytes =
        FreeAddressBytes(options.max_inflight_bytes + options.max_pooled_bytes);
    if (bytes < kLeastCallBytes) return MemoryError(options, wanted);
    return WithMemory(options, bytes);
  }
  if (!Reservation(StackBytes()).good()) return MemoryError(options, wanted);
  return absl::ResourceExhaustedError(absl::StrCat(
      "too few threads: the system starts ", threads.started(), " of the ",
      wanted, " that the server needs; raise their limit (ulimit -u: ",
      LimitText(RLIMIT_NPROC, 1),
      ", or the pids limit of the container) or lower --threads, which is ",
      options.threads));
}

}  // namespace

Options WithMemory(Options options, int64_t bytes) {
  if (options.max_inflight_bytes + options.max_pooled_bytes <= bytes) {
    return options;
  }
  options.max_pooled_bytes =
      std::min(options.max_pooled_bytes, bytes / kPoolPart);
  const int64_t budget =
      std::min(options.max_inflight_bytes, bytes - options.max_pooled_bytes);
  options.max_inflight_bytes = budget;
  // What Validate() wants room for.
  const int64_t one_call =
      2 * options.max_request_bytes + options.max_response_bytes;
  if (one_call <= budget) return options;
  const double part =
      static_cast<double>(budget) / static_cast<double>(one_call);
  const auto lowered = [part](int64_t message, int64_t most) {
    return std::clamp(static_cast<int64_t>(part * static_cast<double>(message)),
                      kLeastMessageBytes, most);
  };
  options.max_request_bytes =
      lowered(options.max_request_bytes, (budget - kLeastMessageBytes) / 2);
  options.max_response_bytes = lowered(options.max_response_bytes,
                                       budget - 2 * options.max_request_bytes);
  return options;
}

int64_t ThreadsNeeded(const Options& options) {
  const int64_t cores = std::thread::hardware_concurrency();
  const bool watches = !options.tls_cert.empty() || !options.tokens.empty();
  const int64_t own =
      options.threads + kOwnThreads + (options.http_listen.empty() ? 0 : 1) +
      (options.shared_memory.empty() ? 0 : 1) + (watches ? 1 : 0);
  const int64_t pollers = std::clamp(cores / 2, kLeastPool, kMostPool);
  const int64_t event_engine = std::clamp(cores, kLeastPool, kMostPool);
  return own + kExecutorThreadsPerCore * cores + pollers + event_engine +
         kOtherGrpcThreads;
}

absl::StatusOr<Options> FitToProcessLimits(const Options& options) {
  if (IsMemoryLimited()) mallopt(M_ARENA_MAX, kArenas);
  if (absl::Status status = CheckDescriptors(options); !status.ok()) {
    return status;
  }
  return FitToThreadsAndMemory(options);
}

}  // namespace attention::server
