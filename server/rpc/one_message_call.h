// A call that is let in before it is read, of one message and one answer.
#ifndef ATTENTION_SERVER_RPC_ONE_MESSAGE_CALL_H_
#define ATTENTION_SERVER_RPC_ONE_MESSAGE_CALL_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/rpc/admitted_call.h"

namespace attention::server {

// Reads the message, and makes sure that there is no second one; sends the
// answer. The rest is the derived class's.
class OneMessageCall : public AdmittedCall {
 protected:
  using AdmittedCall::AdmittedCall;

  // The message is in request_, and may stay. What is thrown for want of memory
  // ends the call.
  virtual void Received() = 0;

  // The call ends well, with this answer.
  void Answer(const grpc::ByteBuffer& response);

  grpc::ByteBuffer request_;
  absl::Time received_;

 private:
  void ReadFirst() final;
  std::optional<absl::Time> ReadingSince() const final { return read_since_; }
  void OnReadDone(bool ok) final;
  void OnWriteDone(bool ok) final;
  void TellSuccess() final;
  void SendAnswer() final;

  absl::Status Accept();

  std::optional<absl::Time> read_since_;  // guarded by mutex_
  bool has_message_ = false;
  grpc::ByteBuffer surplus_;
  grpc::ByteBuffer response_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ONE_MESSAGE_CALL_H_
