// How a client connects to a server, and what it shows there: TLS and a token.
//
//   attention::ClientOptions options;
//   options.tls_ca = "/etc/attention/ca.pem";
//   options.token_file = "/run/secrets/attention-token";
//   attention::Client client("attention.example:50051", options);
//
// Client needs no more than ClientOptions. Connection is for those who call the
// service through stubs of their own:
//
//   auto connection = attention::Connection::Make("host:50051", options);
//   if (!connection.ok()) return connection.status();
//   auto stub =
//   attention::v1::AttentionService::NewStub(connection->channel());
//   grpc::ClientContext context;
//   connection->Authorize(context);
//   grpc::Status status = stub->ComputeAttention(&context, request, &response);
//   if (!status.ok()) return connection->Explain(status, context);
#ifndef ATTENTION_CONNECTION_H_
#define ATTENTION_CONNECTION_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace attention {

namespace internal {
class SharedMemory;
class TokenSource;
}  // namespace internal

inline constexpr int kDefaultMaxAttempts = 4;

struct ClientOptions {
  // TLS, if any of these four is given; plain text if none is. Names of PEM
  // files, which are read once. `tls` alone trusts the authorities that gRPC
  // trusts by default, `tls_ca` those in the file instead. `tls_cert` and
  // `tls_key` are the client's own certificate (with its chain) and key, for
  // servers that ask for one: both or neither.
  bool tls = false;
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;

  // How the connection is secured, by other means of gRPC's, in place of the
  // four above.
  std::shared_ptr<grpc::ChannelCredentials> credentials;

  // Who calls: sent with each call as "authorization: Bearer TOKEN". At most
  // one of both. The file holds the token on one line; it is read now, and
  // again with a call when the last time is a second ago, so that it may be
  // replaced. Nothing that this library says holds a token.
  std::string token;
  std::string token_file;

  // Without TLS a token goes to loopback addresses and Unix sockets only. gRPC
  // looks at the connection itself, whatever the target's name, and no HTTP
  // proxy is used for it. Where it leads elsewhere, calls fail with
  // FAILED_PRECONDITION, or INVALID_ARGUMENT if the target says so itself, and
  // nothing is sent. True: the token may travel where others can read it.
  bool allow_plaintext_token = false;

  // Largest answer accepted, in bytes, however it comes: in one message, in
  // pieces or through shared memory. A larger one fails with
  // RESOURCE_EXHAUSTED. gRPC 1.83 does not say why a stream ended: with it a
  // step fails with CANCELLED, and so does a streamed request whose output
  // alone would be taken. -1: no limit. gRPC's own default, 4 MiB, is too small
  // for tensors; set a limit where the server is not trusted.
  int max_receive_bytes = -1;

  // Whether calls go through the HTTP proxy that grpc_proxy, https_proxy or
  // http_proxy names, unless no_grpc_proxy or no_proxy lists the end of the
  // server's name. Never to loopback or a Unix socket. If such a call fails,
  // its status names the proxy.
  bool use_proxy = true;

  // Whether a client of a server on this machine shares memory with it, if the
  // server offers that: tensors then need not travel. Those of ordinary memory
  // are copied through up to 1 GiB that the client keeps for that, of which up
  // to 512 MiB stay for half a minute between calls; memory of
  // Client::AllocateShared() is used as it is. Where the server cannot be
  // reached so, bytes are sent as ever.
  bool use_shared_memory = true;

  // How often a call is tried at most, by the rules of docs/retries.md: within
  // its timeout, which is that of all tries together. 1: once, and its error is
  // the caller's to decide about. More makes a busy server wait for longer
  // before it is given up.
  int max_attempts = kDefaultMaxAttempts;

  // Anything else gRPC lets be set, such as a load balancing policy. gRPC
  // itself sends a call again only if the server has not seen it, unless a
  // service config given here asks for more: set max_attempts to 1 with one
  // that does, else both try again.
  grpc::ChannelArguments arguments;
};

// A channel, and what each call on it carries. Copies share both. Thread-safe,
// but for assignment.
class Connection {
 public:
  // Reads the files that `options` name; does not connect, as for Client.
  // INVALID_ARGUMENT, "OPTION: what is wrong", if they cannot be used, or
  // "target: ..." for a URL.
  static absl::StatusOr<Connection> Make(const std::string& target,
                                         const ClientOptions& options = {});

  // A channel that exists; nothing is added to calls, which are tried
  // kDefaultMaxAttempts times.
  explicit Connection(std::shared_ptr<grpc::Channel> channel);

  // One more to the same server, with the same token, of one that Make() made.
  // Channels that have the same arguments share a connection, unless those say
  // otherwise (GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL).
  Connection Another() const;

  // The same channel, whose calls are tried so often; at least 1.
  Connection WithMaxAttempts(int attempts) const;

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Gives the token to a call that has not begun.
  void Authorize(grpc::ClientContext& context) const;

  // FromGrpcStatus() of a call that has ended, and in place of gRPC's text that
  // of the cause, where the text tells why TLS failed or why the token was not
  // sent.
  absl::Status Explain(const grpc::Status& status,
                       const grpc::ClientContext& context) const;
  // The same without what the trailers say of another try.
  absl::Status Explain(const grpc::Status& status) const;

  // Whether memory may be shared with the server.
  bool may_share_memory() const { return may_share_memory_; }

  // Of ClientOptions; -1 where the channel was made by others.
  int max_receive_bytes() const { return max_receive_bytes_; }

  // How often those who make calls by this library try one at most.
  int max_attempts() const { return max_attempts_; }

 private:
  friend class internal::SharedMemory;
  Connection() = default;
  absl::Status Secure(const ClientOptions& options);
  absl::Status Explained(const absl::Status& status) const;
  void Open();

  std::string target_;
  // How it is secured, for Explain(); the caller's own credentials are neither.
  bool plaintext_ = false;
  bool tls_ = false;
  bool has_certificate_ = false;
  bool may_share_memory_ = false;
  int max_receive_bytes_ = -1;
  int max_attempts_ = kDefaultMaxAttempts;
  // What ProxyOf() says; empty: none.
  std::string proxy_;
  grpc::ChannelArguments arguments_;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;
  // Null: no token.
  std::shared_ptr<grpc::CallCredentials> token_;
  std::shared_ptr<internal::TokenSource> token_source_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace attention

#endif  // ATTENTION_CONNECTION_H_
