// The certificate, key and CA that TLS is served with, as read from files.
#ifndef ATTENTION_SERVER_AUTH_TLS_FILES_H_
#define ATTENTION_SERVER_AUTH_TLS_FILES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace attention::server {

// Paths of PEM files; as the options of the same names.
struct TlsFiles {
  std::string cert;
  std::string key;
  std::string client_ca;  // Empty: clients need no certificate.
};

// What stood in them. The key is as secret as its file.
struct TlsMaterial {
  std::string cert_chain;
  std::string key;
  std::string client_ca;
  absl::Time expires;  // The server's own certificate.
};

// Reads the files and makes sure that they can be served with: each is PEM and
// whole, the key is that of the first certificate and has no password, and that
// certificate is valid now.
//
// Errors: InvalidArgument, one line that names the flag and the file. Nothing
// of the key is in it.
absl::StatusOr<TlsMaterial> LoadTls(const TlsFiles& files);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_TLS_FILES_H_
