// Memory to share with a server, and the datagrams that do it, by hand.
#ifndef ATTENTION_TESTS_SUPPORT_SHARED_MEMORY_H_
#define ATTENTION_TESTS_SUPPORT_SHARED_MEMORY_H_

#include <fcntl.h>
#include <sys/mman.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "base/descriptor.h"

namespace attention::testing {

// A memfd of `bytes` bytes.
Descriptor NewMemory(size_t bytes, int seals = F_SEAL_SHRINK,
                     unsigned flags = MFD_ALLOW_SEALING);

// A memfd, mapped while it lives.
class MappedMemory {
 public:
  explicit MappedMemory(size_t bytes);
  ~MappedMemory();
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  int fd() const { return fd_.get(); }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  const Descriptor fd_;
  std::span<std::byte> bytes_;
};

// A connection to a server's --shared-memory. Fails the test if there is none.
// Not thread-safe.
class RegionClient {
 public:
  // "unix:/path".
  explicit RegionClient(const std::string& address);

  bool connected() const { return socket_.valid(); }

  // What the server answers; nothing if it closes the connection instead.
  std::optional<v1::SharedMemoryResponse> Register(
      const std::vector<int>& descriptors, const std::string& token = "");
  std::optional<v1::SharedMemoryResponse> Drop(const std::string& region);
  // The same of any bytes.
  std::optional<v1::SharedMemoryResponse> Send(
      const std::string& bytes, const std::vector<int>& descriptors = {});
  // Does not wait for the answer. False if nothing can be sent.
  bool Write(const std::string& bytes, const std::vector<int>& descriptors);
  std::optional<v1::SharedMemoryResponse> Read();

  // The id of `memory`, registered. Fails the test if it is refused.
  std::string Share(const MappedMemory& memory, const std::string& token = "");

  // Blocks until the server closes the connection. False if it says something.
  bool WaitForEnd();
  void Close() { socket_ = Descriptor(); }

 private:
  Descriptor socket_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_SHARED_MEMORY_H_
