// Certificates for tests of TLS, made anew for each program.
#ifndef ATTENTION_TESTS_CLIENT_CERTIFICATES_H_
#define ATTENTION_TESTS_CLIENT_CERTIFICATES_H_

#include <grpcpp/security/server_credentials.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include "absl/strings/str_cat.h"

namespace attention {

// Those that tests/support/certificates.sh lists. The folder goes with the
// object. What cannot be made throws, which fails the test.
class Certificates {
 public:
  Certificates()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                absl::StrCat("certificates_", getpid())) {
    std::filesystem::create_directory(folder_);
    const std::string command =
        absl::StrCat(ATTENTION_SOURCE_DIR, "/tests/support/certificates.sh '",
                     folder_.string(), "' 2>'", Path("log"), "'");
    if (std::system(command.c_str()) != 0) {
      const std::string log = Read("log");
      std::filesystem::remove_all(folder_);
      throw std::runtime_error(absl::StrCat(command, ": ", log));
    }
  }
  ~Certificates() { std::filesystem::remove_all(folder_); }
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  static const Certificates& Get() {
    static const Certificates certificates;
    return certificates;
  }

  std::string Path(const std::string& name) const { return folder_ / name; }

  // A server that shows `certificate`, and asks for one of ca.pem's if told to.
  std::shared_ptr<grpc::ServerCredentials> Server(
      const std::string& certificate, bool asks_for_one = false) const {
    grpc::SslServerCredentialsOptions options(
        asks_for_one
            ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
            : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
    options.pem_root_certs = Read("ca.pem");
    options.pem_key_cert_pairs = {{Read("server.key"), Read(certificate)}};
    return grpc::SslServerCredentials(options);
  }

 private:
  std::string Read(const std::string& name) const {
    std::ifstream file(Path(name));
    if (!file) throw std::runtime_error(absl::StrCat("no ", Path(name)));
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::filesystem::path folder_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_CERTIFICATES_H_
