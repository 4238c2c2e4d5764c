#include "server/auth/tls_credentials.h"

#include <utility>

#include "grpc/grpc.h"
#include "grpcpp/version_info.h"

namespace attention::server {
namespace {

#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR <= 51
// Owns the credentials of the C interface.
class Wrapped final : public grpc::ServerCredentials {
 public:
  explicit Wrapped(grpc_server_credentials* credentials)
      : credentials_(credentials) {}
  ~Wrapped() override { grpc_server_credentials_release(credentials_); }

  // Never called: nothing here wants one.
  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address,
                      grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};
#else
class Wrapped final : public grpc::ServerCredentials {
 public:
  // The base class takes them over.
  explicit Wrapped(grpc_server_credentials* credentials)
      : grpc::ServerCredentials(credentials) {}
};
#endif

}  // namespace

std::shared_ptr<grpc::ServerCredentials> TlsIdentity::Credentials() {
  grpc_ssl_server_credentials_options* const options =
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          client_certificates_
              ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
              : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
          &TlsIdentity::Fetch, this);
  return std::make_shared<Wrapped>(
      grpc_ssl_server_credentials_create_with_options(options));
}

void TlsIdentity::Replace(TlsMaterial material) {
  std::lock_guard<std::mutex> lock(mutex_);
  material_ = std::move(material);
  is_new_ = true;
}

// At the start, and at each handshake.
grpc_ssl_certificate_config_reload_status TlsIdentity::Fetch(
    void* self, grpc_ssl_server_certificate_config** config) {
  auto& identity = *static_cast<TlsIdentity*>(self);
  std::lock_guard<std::mutex> lock(identity.mutex_);
  if (!std::exchange(identity.is_new_, false)) {
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  }
  const TlsMaterial& material = identity.material_;
  const grpc_ssl_pem_key_cert_pair pair{material.key.c_str(),
                                        material.cert_chain.c_str()};
  // gRPC 1.51 aborts without roots, also where clients are asked for no
  // certificate and nothing is held to them.
  const std::string& roots =
      identity.client_certificates_ ? material.client_ca : material.cert_chain;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

}  // namespace attention::server
