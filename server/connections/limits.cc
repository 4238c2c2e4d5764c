#include "server/connections/limits.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>

namespace attention::server {

int64_t DescriptorLimit() {
  constexpr rlim_t kMost = std::numeric_limits<int>::max();
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  return static_cast<int64_t>(std::min(limit.rlim_cur, kMost));
}

int64_t DescriptorReserve(int64_t limit) {
  return std::min<int64_t>(128, limit / 4);
}

int64_t HttpReserve(int64_t limit) {
  // What is needed by the rest (process_limits.cc), and what the acceptor
  // leaves (acceptor.cc).
  constexpr int64_t kOthers = 24;
  const int64_t left = DescriptorReserve(limit) * 3 / 4 - kOthers;
  return std::clamp<int64_t>(left, 4, 64);
}

int64_t MostHttpConnections() {
  const int64_t limit = DescriptorLimit();
  return std::max<int64_t>(
      1, limit - DescriptorReserve(limit) + HttpReserve(limit) - 1);
}

int64_t MostConnections(int64_t http_connections) {
  const int64_t limit = DescriptorLimit();
  const int64_t beyond_reserve =
      std::max<int64_t>(0, http_connections - HttpReserve(limit));
  return std::max<int64_t>(1,
                           limit - DescriptorReserve(limit) - beyond_reserve);
}

}  // namespace attention::server
