#include "server/auth/tls_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/support/certificates.h"

namespace attention::server {
namespace {

using ::attention::testing::Authority;
using ::attention::testing::Pem;
using ::attention::testing::TestFolder;

class TlsFilesTest : public ::testing::Test {
 protected:
  // With the text of each file; none: there is no client CA.
  std::string ErrorOf(const std::string& cert, const std::string& key,
                      const std::string& client_ca = "") {
    const TlsFiles files{
        .cert = folder_.Write("c", cert),
        .key = folder_.Write("k", key),
        .client_ca = client_ca.empty() ? "" : folder_.Write("a", client_ca)};
    const auto material = LoadTls(files);
    if (material.ok()) return "";
    EXPECT_EQ(material.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(material.status().message());
  }
  std::string Cert() { return "--tls-cert: " + folder_.Path("c") + ": "; }
  std::string Key() { return "--tls-key: " + folder_.Path("k") + ": "; }
  std::string ClientCa() {
    return "--tls-client-ca: " + folder_.Path("a") + ": ";
  }

  const TestFolder folder_;
  const Authority authority_{"root"};
  const Pem pem_ = authority_.Issue();
};

TEST_F(TlsFilesTest, AreTakenAsTheyAre) {
  const std::string chain = pem_.cert + authority_.cert();
  const auto material =
      LoadTls({.cert = folder_.Write("c", chain),
               .key = folder_.Write("k", pem_.key),
               .client_ca = folder_.Write("a", authority_.cert())});
  ASSERT_TRUE(material.ok()) << material.status();
  EXPECT_EQ(material->cert_chain, chain);
  EXPECT_EQ(material->key, pem_.key);
  EXPECT_EQ(material->client_ca, authority_.cert());
  EXPECT_GT(material->expires, absl::Now() + absl::Minutes(59));
  EXPECT_LE(material->expires, absl::Now() + absl::Minutes(60));
}

TEST_F(TlsFilesTest, OneFileMayHoldBoth) {
  EXPECT_EQ(ErrorOf(pem_.cert + pem_.key, pem_.key + pem_.cert), "");
}

TEST_F(TlsFilesTest, MissingFiles) {
  const std::string cert = folder_.Write("c", pem_.cert),
                    key = folder_.Write("k", pem_.key);
  const auto error = [](const TlsFiles& files) {
    return std::string(LoadTls(files).status().message());
  };
  EXPECT_EQ(error({.cert = "/no/c", .key = key, .client_ca = ""}),
            "--tls-cert: /no/c: cannot be read: No such file or directory");
  EXPECT_EQ(error({.cert = cert, .key = "/no/k", .client_ca = ""}),
            "--tls-key: /no/k: cannot be read: No such file or directory");
  EXPECT_EQ(error({.cert = cert, .key = key, .client_ca = "/no/a"}),
            "--tls-client-ca: /no/a: cannot be read: No such file or "
            "directory");
  EXPECT_EQ(error({.cert = "/", .key = key, .client_ca = ""}),
            "--tls-cert: /: cannot be read: Is a directory");
}

TEST_F(TlsFilesTest, FilesThatAreNotPem) {
  EXPECT_EQ(ErrorOf("", pem_.key), Cert() + "holds no certificate, wanted PEM");
  EXPECT_EQ(ErrorOf(pem_.key, pem_.key),
            Cert() + "holds no certificate, wanted PEM");
  EXPECT_EQ(ErrorOf(pem_.cert, pem_.key, "what"),
            ClientCa() + "holds no certificate, wanted PEM");
  EXPECT_EQ(ErrorOf(std::string("a\0b", 3), pem_.key),
            Cert() + "has a zero byte, wanted PEM");
  EXPECT_EQ(ErrorOf(std::string((1 << 20) + 1, 'a'), pem_.key),
            Cert() + "has more than 1048576 bytes, the most that are read");
  EXPECT_EQ(
      ErrorOf(pem_.cert, pem_.cert)
          .find(Key() + "holds no private key that can be read, wanted PEM "
                        "without a password ("),
      0u);
}

TEST_F(TlsFilesTest, HalfWrittenFiles) {
  const std::string chain = pem_.cert + authority_.cert();
  // In the second certificate: what comes before it is whole.
  EXPECT_EQ(ErrorOf(chain.substr(0, chain.size() - 100), pem_.key)
                .find(Cert() + "certificate 2 is malformed ("),
            0u);
  EXPECT_EQ(ErrorOf(pem_.cert, pem_.key.substr(0, pem_.key.size() / 2))
                .find(Key() + "holds no private key"),
            0u);
}

TEST_F(TlsFilesTest, AKeyWithAPasswordIsRefusedWithoutAsking) {
  constexpr char kEncrypted[] =
      "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
      "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhmlfFpRQaRMgICCAAw\n"
      "-----END ENCRYPTED PRIVATE KEY-----\n";
  EXPECT_EQ(ErrorOf(pem_.cert, kEncrypted).find(Key() + "holds no private key"),
            0u);
}

TEST_F(TlsFilesTest, AKeyOfAnotherCertificate) {
  EXPECT_EQ(ErrorOf(pem_.cert, authority_.Issue().key),
            Key() + "is not the key of the first certificate in " +
                folder_.Path("c"));
}

TEST_F(TlsFilesTest, CertificatesOfAnotherTime) {
  const Pem old = authority_.Issue({.ends = -absl::Minutes(1)});
  EXPECT_EQ(ErrorOf(old.cert, old.key).find(Cert() + "expired at "), 0u);
  const Pem early = authority_.Issue({.begins = absl::Minutes(1)});
  EXPECT_EQ(
      ErrorOf(early.cert, early.key).find(Cert() + "is not valid before "), 0u);
}

TEST_F(TlsFilesTest, NothingOfTheKeyIsTold) {
  const std::string secret = pem_.key.substr(60, 40);
  for (const std::string& key :
       {pem_.key.substr(0, pem_.key.size() - 40), "x" + pem_.key.substr(20)}) {
    const std::string error = ErrorOf(pem_.cert, key);
    EXPECT_NE(error, "");
    EXPECT_EQ(error.find(secret), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace attention::server
