// What a thread takes from new, counted in the program that this is linked
// into.
#ifndef ATTENTION_TESTS_SERVER_HTTP_PEAK_MEMORY_H_
#define ATTENTION_TESTS_SERVER_HTTP_PEAK_MEMORY_H_

#include <cstdint>
#include <limits>

// Sanitizers have operators of their own, and nothing is counted.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ATTENTION_SANITIZED
#endif
#endif

namespace attention::testing {

// Bytes that this thread got from new and has not freed, and the most that
// there were, while a Peak lives. What was there before may not be freed
// meanwhile, or only at the end. One at a time.
class Peak {
 public:
  // So many allocations succeed; then all fail.
  explicit Peak(int64_t allocations = std::numeric_limits<int64_t>::max());
  ~Peak();
  Peak(const Peak&) = delete;
  Peak& operator=(const Peak&) = delete;

  static int64_t bytes();
  // Those that are not freed.
  static int64_t live_bytes();
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SERVER_HTTP_PEAK_MEMORY_H_
