#include "base/random_bytes.h"

#include <sys/random.h>

#include <cerrno>

namespace attention {

bool RandomBytes(void* target, size_t count) {
  auto* const bytes = static_cast<unsigned char*>(target);
  for (size_t filled = 0; filled < count;) {
    const ssize_t got = getrandom(bytes + filled, count - filled, 0);
    if (got < 0 && errno != EINTR) return false;
    if (got > 0) filled += static_cast<size_t>(got);
  }
  return true;
}

}  // namespace attention
