// The descriptors that reflection shows.
#ifndef ATTENTION_SERVER_RPC_DESCRIBED_PROTOS_H_
#define ATTENTION_SERVER_RPC_DESCRIBED_PROTOS_H_

#include <string>
#include <vector>

#include "google/protobuf/descriptor.h"

namespace attention::server {

// They are in a pool of their own, so that nothing else that happens to be
// linked is shown, and so that google.rpc's messages can be in it: our statuses
// carry them under that name, while the program defines them under another
// (attention/details/v1/details.proto says why).
//
// Immutable, so thread-safe.
class DescribedProtos {
 public:
  // Of `files` every service is listed. What they import comes along.
  explicit DescribedProtos(
      const std::vector<const google::protobuf::FileDescriptor*>& files);

  const google::protobuf::DescriptorPool& pool() const { return pool_; }

  // Full names, in the order of the files.
  const std::vector<std::string>& services() const { return services_; }

 private:
  void Add(const google::protobuf::FileDescriptor& file);
  void AddStatusDetails();

  google::protobuf::DescriptorPool pool_;
  std::vector<std::string> services_;
};

// FileDescriptorProtos, serialized: of `file` first, then of everything that it
// imports, directly or not, each once.
std::vector<std::string> WithImports(
    const google::protobuf::FileDescriptor& file);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_DESCRIBED_PROTOS_H_
