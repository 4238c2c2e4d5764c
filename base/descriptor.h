// A file descriptor with an owner.
#ifndef ATTENTION_BASE_DESCRIPTOR_H_
#define ATTENTION_BASE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace attention {

// Closes its descriptor when it dies. Negative stands for none. Movable; not
// thread-safe.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Leaves it open, to be closed by the caller.
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace attention

#endif  // ATTENTION_BASE_DESCRIPTOR_H_
