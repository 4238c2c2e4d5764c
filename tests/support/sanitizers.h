// What the tests are compiled with.
#ifndef ATTENTION_TESTS_SUPPORT_SANITIZERS_H_
#define ATTENTION_TESTS_SUPPORT_SANITIZERS_H_

#ifndef __has_feature
#define __has_feature(name) 0
#endif

namespace attention::testing {

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_SANITIZERS_H_
