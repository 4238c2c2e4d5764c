// A call that is let in before it is read, of one message and one answer; or of
// one message after another, each answered before the next one is read
// (InferStreamCall), which reads and sends by itself.
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

  // The message is answered; the call ends well.
  virtual void Answer(const grpc::ByteBuffer& response);

  void ReadFirst() override;
  std::optional<absl::Time> ReadingSince() const override {
    return read_since_;
  }
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void TellSuccess() override;
  void SendAnswer() override;

  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  absl::Time received_;

 private:
  absl::Status Accept();

  std::optional<absl::Time> read_since_;  // guarded by mutex_
  bool has_message_ = false;
  grpc::ByteBuffer surplus_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ONE_MESSAGE_CALL_H_
