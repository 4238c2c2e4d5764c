// Shared memory with a name, as clients of Triton's make it.
#ifndef ATTENTION_TESTS_SUPPORT_NAMED_MEMORY_H_
#define ATTENTION_TESTS_SUPPORT_NAMED_MEMORY_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"

namespace attention::testing {

// An object of shm_open(), which is removed at the end.
class NamedMemory {
 public:
  explicit NamedMemory(int64_t bytes)
      : key_(absl::StrCat("/attention-test-", getpid(), "-", ++count_)),
        fd_(shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) {
    EXPECT_TRUE(fd_.valid());
    Resize(bytes);
  }
  ~NamedMemory() { shm_unlink(key_.c_str()); }

  void Resize(int64_t bytes) const {
    EXPECT_EQ(ftruncate(fd_.get(), bytes), 0);
  }
  char At(int64_t offset) const { return Bytes(offset, 1)[0]; }
  std::string Bytes(int64_t offset, size_t bytes) const {
    std::string read(bytes, '\0');
    EXPECT_EQ(pread(fd_.get(), read.data(), bytes, offset),
              static_cast<ssize_t>(bytes));
    return read;
  }
  void Set(int64_t offset, absl::string_view bytes) const {
    EXPECT_EQ(pwrite(fd_.get(), bytes.data(), bytes.size(), offset),
              static_cast<ssize_t>(bytes.size()));
  }
  const std::string& key() const { return key_; }

 private:
  static inline int count_ = 0;
  const std::string key_;
  const Descriptor fd_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_NAMED_MEMORY_H_
