// Random bytes that nobody can foretell.
#ifndef ATTENTION_BASE_RANDOM_BYTES_H_
#define ATTENTION_BASE_RANDOM_BYTES_H_

#include <cstddef>

namespace attention {

// Fills `count` bytes from the system's generator. False, with the bytes
// undefined, if the system has none. Thread-safe.
bool RandomBytes(void* target, size_t count);

}  // namespace attention

#endif  // ATTENTION_BASE_RANDOM_BYTES_H_
