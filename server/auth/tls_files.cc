#include "server/auth/tls_files.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "server/auth/read_file.h"

namespace attention::server {
namespace {

template <auto kFree>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Context = std::unique_ptr<SSL_CTX, Free<SSL_CTX_free>>;

// One of the files: what errors begin with.
struct Source {
  absl::string_view flag;
  const std::string& path;

  absl::Status Error(absl::string_view text) const {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, ": ", path, ": ", text));
  }
};

// Why OpenSSL's last call failed. Empties its queue of errors, in which others
// of this thread would find them.
std::string LastError() {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  std::string text = reason != nullptr ? reason : "unknown error";
  ERR_clear_error();
  return text;
}

absl::StatusOr<std::string> Read(const Source& source) {
  absl::StatusOr<std::string> text = ReadSmallFile(source.path);
  if (!text.ok()) return source.Error(text.status().message());
  // gRPC takes them as C strings.
  if (text->find('\0') != std::string::npos) {
    return source.Error("has a zero byte, wanted PEM");
  }
  return text;
}

Bio MemoryOf(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// At least one.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(
    const Source& source, const std::string& text) {
  const Bio memory = MemoryOf(text);
  std::vector<Certificate> certificates;
  for (;;) {
    Certificate next(
        PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr));
    if (next == nullptr) break;
    certificates.push_back(std::move(next));
  }
  const bool at_end =
      ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string error = LastError();
  if (!at_end) {
    return source.Error(absl::StrCat("certificate ", certificates.size() + 1,
                                     " is malformed (", error, ")"));
  }
  if (certificates.empty()) {
    return source.Error("holds no certificate, wanted PEM");
  }
  return certificates;
}

// Else OpenSSL would ask on the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

absl::StatusOr<Key> ParseKey(const Source& source, const std::string& text) {
  const Bio memory = MemoryOf(text);
  Key key(PEM_read_bio_PrivateKey(memory.get(), nullptr, NoPassword, nullptr));
  if (key != nullptr) return key;
  const std::string error = LastError();
  return source.Error(absl::StrCat(
      "holds no private key that can be read, wanted PEM without a password (",
      error, ")"));
}

absl::StatusOr<absl::Time> TimeOf(const Source& source, const ASN1_TIME* time) {
  tm fields{};
  if (ASN1_TIME_to_tm(time, &fields) != 1) {
    return source.Error("has a malformed time: " + LastError());
  }
  return absl::FromTM(fields, absl::UTCTimeZone());
}

// When it expires.
absl::StatusOr<absl::Time> CheckTimes(const Source& source,
                                      const Certificate& certificate) {
  const auto begin = TimeOf(source, X509_get0_notBefore(certificate.get()));
  if (!begin.ok()) return begin.status();
  const auto end = TimeOf(source, X509_get0_notAfter(certificate.get()));
  if (!end.ok()) return end.status();
  const absl::Time now = absl::Now();
  const auto text = [](absl::Time time) {
    return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone());
  };
  if (now < *begin) {
    return source.Error("is not valid before " + text(*begin));
  }
  if (now > *end) return source.Error("expired at " + text(*end));
  return *end;
}

// That OpenSSL will serve with them: it also refuses keys that are too short.
absl::Status CheckPair(const Source& cert, const Certificate& certificate,
                       const Source& key, const Key& private_key) {
  const Context context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr) return cert.Error(LastError());
  if (SSL_CTX_use_certificate(context.get(), certificate.get()) != 1) {
    return cert.Error("cannot be served with: " + LastError());
  }
  if (X509_check_private_key(certificate.get(), private_key.get()) != 1) {
    ERR_clear_error();
    return key.Error(
        absl::StrCat("is not the key of the first certificate in ", cert.path));
  }
  if (SSL_CTX_use_PrivateKey(context.get(), private_key.get()) != 1) {
    return key.Error("cannot be served with: " + LastError());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsMaterial> LoadTls(const TlsFiles& files) {
  const Source cert{"tls-cert", files.cert}, key{"tls-key", files.key},
      client_ca{"tls-client-ca", files.client_ca};
  ERR_clear_error();
  TlsMaterial material;
  auto text = Read(cert);
  if (!text.ok()) return text.status();
  material.cert_chain = *std::move(text);
  text = Read(key);
  if (!text.ok()) return text.status();
  material.key = *std::move(text);

  const auto certificates = ParseCertificates(cert, material.cert_chain);
  if (!certificates.ok()) return certificates.status();
  const auto private_key = ParseKey(key, material.key);
  if (!private_key.ok()) return private_key.status();
  absl::Status status =
      CheckPair(cert, certificates->front(), key, *private_key);
  if (!status.ok()) return status;
  const auto expires = CheckTimes(cert, certificates->front());
  if (!expires.ok()) return expires.status();
  material.expires = *expires;

  if (files.client_ca.empty()) return material;
  text = Read(client_ca);
  if (!text.ok()) return text.status();
  material.client_ca = *std::move(text);
  const auto authorities = ParseCertificates(client_ca, material.client_ca);
  if (!authorities.ok()) return authorities.status();
  return material;
}

}  // namespace attention::server
