#include "attention/connection.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/create_channel.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/internal/connect_failure.h"
#include "attention/internal/proxy.h"
#include "attention/internal/small_file.h"
#include "attention/internal/target.h"
#include "attention/internal/token_source.h"
#include "attention/status.h"

namespace attention {
namespace {

using internal::TokenSource;

// Adds the token to calls.
class BearerToken final : public grpc::MetadataCredentialsPlugin {
 public:
  explicit BearerToken(std::shared_ptr<TokenSource> source)
      : source_(std::move(source)) {}

  // A thread per call would cost more than what it waits for.
  bool IsBlocking() const override { return false; }
  const char* GetType() const override { return "bearer token"; }
  grpc::Status GetMetadata(
      grpc::string_ref /*service_url*/, grpc::string_ref /*method_name*/,
      const grpc::AuthContext& /*channel_auth_context*/,
      std::multimap<grpc::string, grpc::string>* metadata) override {
    metadata->emplace("authorization", absl::StrCat("Bearer ", source_->Get()));
    return grpc::Status::OK;
  }

 private:
  const std::shared_ptr<TokenSource> source_;
};

absl::StatusOr<std::shared_ptr<TokenSource>> TokenOf(
    const ClientOptions& options) {
  if (options.token_file.empty()) {
    return options.token.empty()
               ? absl::StatusOr<std::shared_ptr<TokenSource>>(nullptr)
               : TokenSource::Of(options.token);
  }
  if (!options.token.empty()) {
    return absl::InvalidArgumentError(
        "token_file: got a token as well, wanted only one of both");
  }
  return TokenSource::OfFile(options.token_file);
}

bool WantsTls(const ClientOptions& options) {
  return options.tls || !options.tls_ca.empty() || !options.tls_cert.empty() ||
         !options.tls_key.empty();
}

// Reads a file of PEM blocks into `pem`, if one is named. Whether gRPC can use
// the blocks shows when it connects.
absl::Status ReadPem(const char* option, const std::string& path,
                     const char* block, std::string& pem) {
  constexpr size_t kMostBytes = 16 << 20;  // Every authority there is: 1 MB.
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> text = internal::ReadSmallFile(path, kMostBytes);
  if (!text.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, ": ", text.status().message()));
  }
  pem = *std::move(text);
  if (absl::StrContains(pem, block)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(option, ": ", path, ": has no PEM block '", block, "'"));
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(
    const ClientOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(options.tls_key.empty()
                                          ? "tls_cert: needs tls_key as well"
                                          : "tls_key: needs tls_cert as well");
  }
  constexpr char kCertificate[] = "CERTIFICATE-----";
  constexpr char kPrivateKey[] = "PRIVATE KEY-----";
  grpc::SslCredentialsOptions pem;
  for (const absl::Status& status :
       {ReadPem("tls_ca", options.tls_ca, kCertificate, pem.pem_root_certs),
        ReadPem("tls_cert", options.tls_cert, kCertificate, pem.pem_cert_chain),
        ReadPem("tls_key", options.tls_key, kPrivateKey,
                pem.pem_private_key)}) {
    if (!status.ok()) return status;
  }
  return grpc::SslCredentials(pem);
}

// Arguments with which neither themselves nor the environment choose a proxy:
// one on loopback could send the call elsewhere.
grpc::ChannelArguments WithoutProxy(const grpc::ChannelArguments& arguments) {
  grpc::ChannelArguments direct;
  const grpc_channel_args given = arguments.c_channel_args();
  for (size_t i = 0; i < given.num_args; ++i) {
    const grpc_arg& argument = given.args[i];
    if (absl::StrContains(argument.key, "http_proxy")) continue;
    switch (argument.type) {
      case GRPC_ARG_STRING:
        direct.SetString(argument.key, argument.value.string);
        break;
      case GRPC_ARG_INTEGER:
        direct.SetInt(argument.key, argument.value.integer);
        break;
      case GRPC_ARG_POINTER:
        direct.SetPointerWithVtable(argument.key, argument.value.pointer.p,
                                    argument.value.pointer.vtable);
        break;
    }
  }
  direct.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Of later versions than 1.51, which complain of it where the variable is not
  // set.
  if (std::getenv("GRPC_ADDRESS_HTTP_PROXY") != nullptr) {
    direct.SetString("grpc.address_http_proxy", "");
  }
  return direct;
}

// gRPC's own limit, 8 KiB, is little for the trailers of an error that a proxy
// has added to.
constexpr int kMaxHeaderBytes = 64 << 10;

bool Has(const grpc::ChannelArguments& arguments, absl::string_view name) {
  const grpc_channel_args list = arguments.c_channel_args();
  return std::any_of(list.args, list.args + list.num_args,
                     [&](const grpc_arg& given) { return name == given.key; });
}

// Lets TCP give up a connection to a peer that takes nothing: a call returns
// only when nothing of it waits to be written any more. gRPC sets this limit
// where keepalive is on; the longest interval there is keeps it from sending
// pings, which servers may take for abuse.
void BoundWrites(grpc::ChannelArguments& arguments) {
  constexpr int kPeerTimeoutMs = 20000;
  if (Has(arguments, GRPC_ARG_KEEPALIVE_TIME_MS)) return;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS,
                   std::numeric_limits<int>::max() - 1);
  if (Has(arguments, GRPC_ARG_KEEPALIVE_TIMEOUT_MS)) return;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPeerTimeoutMs);
}

}  // namespace

absl::StatusOr<Connection> Connection::Make(const std::string& target,
                                            const ClientOptions& options) {
  if (target.empty() || absl::StartsWithIgnoreCase(target, "http://") ||
      absl::StartsWithIgnoreCase(target, "https://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("target: got \"", target,
                     "\", wanted an address such as 127.0.0.1:50051"));
  }
  if (options.max_attempts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_attempts: got ", options.max_attempts,
                     ", wanted at least 1, which is one try"));
  }
  Connection connection;
  connection.target_ = target;
  connection.max_attempts_ = options.max_attempts;
  connection.arguments_ = options.arguments;
  connection.may_share_memory_ =
      options.use_shared_memory && internal::IsLocal(target);
  if (!Has(connection.arguments_, GRPC_ARG_MAX_METADATA_SIZE)) {
    connection.arguments_.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  }
  BoundWrites(connection.arguments_);
  connection.arguments_.SetMaxReceiveMessageSize(options.max_receive_bytes);
  connection.max_receive_bytes_ = options.max_receive_bytes;
  if (!options.use_proxy || internal::IsLocal(target)) {
    connection.arguments_.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  } else {
    connection.proxy_ = internal::ProxyOf(target);
  }
  if (absl::Status status = connection.Secure(options); !status.ok()) {
    return status;
  }
  connection.Open();
  return connection;
}

Connection::Connection(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)) {}

// Chooses the credentials of channel and calls.
absl::Status Connection::Secure(const ClientOptions& options) {
  absl::StatusOr<std::shared_ptr<TokenSource>> token = TokenOf(options);
  if (!token.ok()) return token.status();
  tls_ = WantsTls(options);
  has_certificate_ = !options.tls_cert.empty();
  credentials_ = options.credentials;
  if (credentials_ != nullptr && tls_) {
    return absl::InvalidArgumentError(
        "credentials: got TLS options as well, wanted only one of both");
  }
  if (tls_) {
    absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> tls =
        TlsCredentials(options);
    if (!tls.ok()) return tls.status();
    credentials_ = *std::move(tls);
  } else if (credentials_ == nullptr) {
    plaintext_ = true;
    credentials_ = grpc::InsecureChannelCredentials();
  }
  if (*token == nullptr) return absl::OkStatus();
  token_source_ = *token;
  if (plaintext_ && !options.allow_plaintext_token) {
    if (internal::IsBeyondLoopback(target_)) {
      return absl::InvalidArgumentError(internal::PlaintextToken(target_));
    }
    // Refuses connections that are not what they are said to be, after names
    // are resolved.
    credentials_ = grpc::experimental::LocalCredentials(
        internal::IsUnixSocket(target_) ? UDS : LOCAL_TCP);
    arguments_ = WithoutProxy(arguments_);
    proxy_.clear();
  }
  // With the caller's own credentials gRPC judges by what they tell of
  // themselves.
  token_ = grpc::experimental::MetadataCredentialsFromPlugin(
      std::make_unique<BearerToken>(*std::move(token)),
      plaintext_ || options.allow_plaintext_token ? GRPC_SECURITY_NONE
                                                  : GRPC_PRIVACY_AND_INTEGRITY);
  return absl::OkStatus();
}

void Connection::Open() {
  channel_ = grpc::CreateCustomChannel(target_, credentials_, arguments_);
}

Connection Connection::Another() const {
  Connection another = *this;
  another.Open();
  return another;
}

Connection Connection::WithMaxAttempts(int attempts) const {
  Connection same = *this;
  same.max_attempts_ = std::max(attempts, 1);
  return same;
}

void Connection::Authorize(grpc::ClientContext& context) const {
  if (token_ != nullptr) context.set_credentials(token_);
}

absl::Status Connection::Explain(const grpc::Status& status,
                                 const grpc::ClientContext& context) const {
  return Explained(FromGrpcStatus(status, context));
}

absl::Status Connection::Explain(const grpc::Status& status) const {
  return Explained(FromGrpcStatus(status));
}

absl::Status Connection::Explained(const absl::Status& status) const {
  return internal::WithProxy(internal::ExplainConnectFailure(
                                 status, {.target = target_,
                                          .plaintext = plaintext_,
                                          .tls = tls_,
                                          .has_certificate = has_certificate_}),
                             proxy_);
}

}  // namespace attention
