#include "tests/support/certificates.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "absl/time/clock.h"

namespace attention::testing {
namespace {

void Need(bool good, const char* what) {
  if (good) return;
  std::cerr << "OpenSSL: " << what << std::endl;
  std::abort();
}

template <typename Write>
std::string ToPem(const Write& write) {
  BIO* const memory = BIO_new(BIO_s_mem());
  Need(write(memory) == 1, "PEM");
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(memory, &bytes);
  std::string text(bytes, size);
  BIO_free(memory);
  return text;
}

std::string CertPem(X509* cert) {
  return ToPem([&](BIO* to) { return PEM_write_bio_X509(to, cert); });
}

std::string KeyPem(EVP_PKEY* key) {
  return ToPem([&](BIO* to) {
    return PEM_write_bio_PrivateKey(to, key, nullptr, nullptr, 0, nullptr,
                                    nullptr);
  });
}

void SetTime(ASN1_TIME* time, absl::Duration from_now) {
  Need(ASN1_TIME_set(time, absl::ToTimeT(absl::Now() + from_now)) != nullptr,
       "time");
}

void AddExtension(X509* cert, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  X509_EXTENSION* const extension =
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  Need(extension != nullptr && X509_add_ext(cert, extension, -1) == 1,
       value.c_str());
  X509_EXTENSION_free(extension);
}

// Not signed yet.
X509* NewCertificate(const std::string& name, EVP_PKEY* key,
                     absl::Duration begins, absl::Duration ends) {
  static long serial = 0;
  X509* const cert = X509_new();
  X509_set_version(cert, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), ++serial);
  SetTime(X509_getm_notBefore(cert), begins);
  SetTime(X509_getm_notAfter(cert), ends);
  X509_set_pubkey(cert, key);
  X509_NAME_add_entry_by_txt(
      X509_get_subject_name(cert), "CN", MBSTRING_ASC,
      reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return cert;
}

}  // namespace

struct Authority::State {
  EVP_PKEY* key = nullptr;
  X509* cert = nullptr;
  std::string pem;
};

Authority::Authority(const std::string& name)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.key = EVP_EC_gen("P-256");
  Need(state.key != nullptr, "key");
  state.cert =
      NewCertificate(name, state.key, -absl::Hours(24), absl::Hours(24));
  X509_set_issuer_name(state.cert, X509_get_subject_name(state.cert));
  AddExtension(state.cert, state.cert, NID_basic_constraints,
               "critical,CA:TRUE");
  AddExtension(state.cert, state.cert, NID_subject_key_identifier, "hash");
  Need(X509_sign(state.cert, state.key, EVP_sha256()) > 0, "sign");
  state.pem = CertPem(state.cert);
}

Authority::~Authority() {
  X509_free(state_->cert);
  EVP_PKEY_free(state_->key);
}

const std::string& Authority::cert() const { return state_->pem; }

Pem Authority::Issue(const Wanted& wanted) const {
  EVP_PKEY* const key = EVP_EC_gen("P-256");
  X509* const cert =
      NewCertificate(wanted.name, key, wanted.begins, wanted.ends);
  X509_set_issuer_name(cert, X509_get_subject_name(state_->cert));
  AddExtension(cert, state_->cert, NID_subject_alt_name,
               "DNS:" + wanted.name + ",IP:127.0.0.1");
  Need(X509_sign(cert, state_->key, EVP_sha256()) > 0, "sign");
  Pem pem{CertPem(cert), KeyPem(key)};
  X509_free(cert);
  EVP_PKEY_free(key);
  return pem;
}

TestFolder::TestFolder() {
  path_ =
      (std::filesystem::temp_directory_path() / "attention_XXXXXX").string();
  Need(mkdtemp(path_.data()) != nullptr, "no folder");
}

TestFolder::~TestFolder() { std::filesystem::remove_all(path_); }

std::string TestFolder::Write(const std::string& name,
                              const std::string& text) const {
  const std::string path = Path(name), next = path + ".next";
  std::ofstream(next, std::ios::binary) << text;
  std::filesystem::rename(next, path);
  return path;
}

}  // namespace attention::testing
