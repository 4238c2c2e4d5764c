// TLS for gRPC's server, with certificates that can be replaced while it runs.
//
// gRPC 1.51 has a FileWatcherCertificateProvider, which takes over whatever it
// reads: of a pair that does not match it drops the old one as well, and no
// client can connect any more. The credentials underneath, which ask for new
// certificates at each handshake, keep the old ones; gRPC's C interface has
// them, that of C++ does not.
#ifndef ATTENTION_SERVER_AUTH_TLS_CREDENTIALS_H_
#define ATTENTION_SERVER_AUTH_TLS_CREDENTIALS_H_

#include <memory>
#include <mutex>
#include <string>

#include "grpc/grpc_security.h"
#include "grpcpp/security/server_credentials.h"
#include "server/auth/tls_files.h"

namespace attention::server {

// Hands out the newest certificates. Thread-safe. Must outlive the gRPC server
// that its credentials were given to.
class TlsIdentity {
 public:
  explicit TlsIdentity(TlsMaterial material)
      : material_(std::move(material)),
        client_certificates_(!material_.client_ca.empty()) {}
  TlsIdentity(const TlsIdentity&) = delete;
  TlsIdentity& operator=(const TlsIdentity&) = delete;

  // For one listening port of one server. Clients need a certificate of the
  // client CA if there was one in the material at construction.
  std::shared_ptr<grpc::ServerCredentials> Credentials();

  // What LoadTls() gave. Handshakes from here on are made with it; connections
  // that are open go on. Needs a client CA exactly if there was one before.
  void Replace(TlsMaterial material);

 private:
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config);

  std::mutex mutex_;
  TlsMaterial material_;  // guarded by mutex_
  bool is_new_ = true;    // guarded by mutex_: gRPC has not fetched it yet
  const bool client_certificates_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_TLS_CREDENTIALS_H_
