#ifndef ATTENTION_CLIENT_CPP_CLI_READ_EXACTLY_H_
#define ATTENTION_CLIENT_CPP_CLI_READ_EXACTLY_H_

#include <cstdint>
#include <istream>

namespace attention::cli {

// Whether the next `count` bytes are there; they go to `to`.
inline bool ReadExactly(std::istream& in, void* to, uint64_t count) {
  in.read(static_cast<char*>(to), static_cast<std::streamsize>(count));
  return in.gcount() == static_cast<std::streamsize>(count);
}

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_READ_EXACTLY_H_
