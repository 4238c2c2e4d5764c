// The client's side of the socket at which memory is registered with a server
// (SharedMemoryRequest in attention.proto).
#ifndef ATTENTION_INTERNAL_REGION_SOCKET_H_
#define ATTENTION_INTERNAL_REGION_SOCKET_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/attention.pb.h"
#include "base/descriptor.h"

namespace attention::internal {

// Every function takes a second at the most, after which the socket is broken.
// Not thread-safe.
class RegionSocket {
 public:
  // Not connected.
  RegionSocket() = default;
  // To "unix:/path"; not connected if nobody serves it, or it cannot be reached
  // from here.
  explicit RegionSocket(const std::string& address);

  // Whether the server has not ended it. Looks, does not ask.
  bool connected() const;

  // The region's id. What the server says if it refuses, with its code;
  // UNAVAILABLE: the socket is broken.
  absl::StatusOr<std::string> Register(int memory, const std::string& token);

  // Best effort.
  void Drop(const std::string& region);

 private:
  absl::StatusOr<v1::SharedMemoryResponse> Ask(
      const v1::SharedMemoryRequest& request, int descriptor);

  Descriptor socket_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_REGION_SOCKET_H_
