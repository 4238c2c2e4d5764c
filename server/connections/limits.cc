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

int64_t MostConnections() {
  const int64_t limit = DescriptorLimit();
  return std::max<int64_t>(1, limit - DescriptorReserve(limit));
}

}  // namespace attention::server
