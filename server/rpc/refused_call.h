// A call that ends before it has begun.
#ifndef ATTENTION_SERVER_RPC_REFUSED_CALL_H_
#define ATTENTION_SERVER_RPC_REFUSED_CALL_H_

#include "grpcpp/support/status.h"

namespace attention::server {

// `Reactor` is one of gRPC's for servers, of a stream. Deletes itself.
template <typename Reactor>
class RefusedCall final : public Reactor {
 public:
  explicit RefusedCall(const grpc::Status& status) { this->Finish(status); }

  void OnDone() override { delete this; }
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_REFUSED_CALL_H_
