#include "attention/connection.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attention/client.h"
#include "tests/client/certificates.h"
#include "tests/client/fake_service.h"

namespace attention {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kToken[] = "secret-token";
constexpr char kHeader[] = "Bearer secret-token";
constexpr char kPlaintext[] =
    " in plain text, beyond loopback and Unix sockets: use TLS, or set this "
    "option";

ClientOptions WithToken() {
  ClientOptions options;
  options.token = kToken;
  return options;
}

ClientOptions Trusting(const std::string& authority) {
  ClientOptions options;
  options.tls_ca = Certificates::Get().Path(authority);
  return options;
}

ClientOptions Showing(const std::string& certificate, const std::string& key) {
  ClientOptions options = Trusting("ca.pem");
  options.tls_cert = Certificates::Get().Path(certificate);
  options.tls_key = Certificates::Get().Path(key);
  return options;
}

// What a call meets, which takes no longer than it must.
absl::Status Call(const std::string& target, const ClientOptions& options) {
  return Client(target, options)
      .GetCapabilities({.timeout = absl::Seconds(30)})
      .status();
}

grpc::Status Echo(grpc::ServerContext&,
                  const v1::ComputeAttentionRequest& request,
                  v1::ComputeAttentionResponse& response) {
  *response.mutable_output() = request.query();
  return grpc::Status::OK;
}

// An address of this machine that is not of the loopback interface; empty if it
// has none. Nothing is sent to find out.
std::string OwnAddress() {
  const int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(9);
  inet_pton(AF_INET, "198.51.100.1", &address.sin_addr);
  socklen_t size = sizeof(address);
  char text[INET_ADDRSTRLEN] = "";
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (connect(descriptor, generic, size) == 0 &&
      getsockname(descriptor, generic, &size) == 0) {
    inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text));
  }
  close(descriptor);
  return text;
}

TEST(ConnectionTest, TheTokenGoesWithEachCallToLoopback) {
  FakeService service(Echo);
  for (const char* host :
       {"127.0.0.1", "localhost", "dns:///localhost", "dns:localhost",
        "ipv4:127.0.0.1", "[::ffff:127.0.0.1]"}) {
    const Client client(absl::StrCat(host, ":", service.port()), WithToken());
    const auto answer = client.GetCapabilities();
    ASSERT_TRUE(answer.ok()) << host << ": " << answer.status();
    const std::vector<float> one = {1};
    ComputeRequest request;
    request.query = TensorSpan::Of<float>(one, {1, 1});
    EXPECT_TRUE(client.Compute(request).ok()) << host;
    EXPECT_TRUE(client.CheckHealth().ok()) << host;
  }
  EXPECT_EQ(service.authorizations().size(), 12);
  EXPECT_THAT(service.authorizations(), Each(kHeader));
}

TEST(ConnectionTest, TheTokenGoesToUnixSockets) {
  const std::string path =
      absl::StrCat(::testing::TempDir(), "/connection_test_", getpid());
  for (const std::string& address :
       {absl::StrCat("unix:", path), absl::StrCat("unix://", path),
        absl::StrCat("unix-abstract:connection_test_", getpid())}) {
    FakeService service(nullptr, address);
    EXPECT_EQ(Call(address, WithToken()), absl::OkStatus()) << address;
    EXPECT_THAT(service.authorizations(), ElementsAre(kHeader));
  }
}

TEST(ConnectionTest, WithoutATokenNoneIsSent) {
  FakeService service;
  EXPECT_EQ(Call(service.address(), {}), absl::OkStatus());
  EXPECT_THAT(service.authorizations(), ElementsAre(""));
}

TEST(ConnectionTest, AUrlIsNoAddress) {
  for (const char* target : {"", "http://127.0.0.1:50051", "HTTPS://a:1"}) {
    EXPECT_EQ(Call(target, {}),
              absl::InvalidArgumentError(absl::StrCat(
                  "target: got \"", target,
                  "\", wanted an address such as 127.0.0.1:50051")));
  }
}

TEST(ConnectionTest, AnAddressBeyondLoopbackIsRefusedAtOnce) {
  for (const char* target : {"192.0.2.1:50051", "dns:///192.0.2.1:50051",
                             "ipv6:[2001:db8::1]:50051"}) {
    EXPECT_EQ(Call(target, WithToken()),
              absl::InvalidArgumentError(
                  absl::StrCat("allow_plaintext_token: the token would travel "
                               "to ",
                               target, kPlaintext)));
    ClientOptions allowed = WithToken();
    allowed.allow_plaintext_token = true;
    EXPECT_TRUE(Connection::Make(target, allowed).ok());
    EXPECT_TRUE(Connection::Make(target, {}).ok());
  }
}

// Written so that only the connection can tell, as of a name.
TEST(ConnectionTest, WhatLeadsBeyondLoopbackGetsNoToken) {
  const std::string own = OwnAddress();
  if (own.empty()) GTEST_SKIP() << "there is only the loopback interface";
  FakeService service(nullptr, absl::StrCat(own, ":0"));
  const std::string target =
      absl::StrCat("[::ffff:", own, "]:", service.port());
  EXPECT_EQ(Call(target, WithToken()),
            absl::FailedPreconditionError(
                absl::StrCat("allow_plaintext_token: the token would travel "
                             "to ",
                             target, kPlaintext)));
  EXPECT_TRUE(service.authorizations().empty());
  ClientOptions allowed = WithToken();
  allowed.allow_plaintext_token = true;
  EXPECT_EQ(Call(target, allowed), absl::OkStatus());
  EXPECT_THAT(service.authorizations(), ElementsAre(kHeader));
}

// A proxy on loopback would pass for the server itself.
TEST(ConnectionTest, NoProxyGetsATokenInPlainText) {
  FakeService service;
  FakeService proxy;
  const std::string target = absl::StrCat("localhost:", service.port());
  const std::string name = absl::StrCat("http://", proxy.address());
  setenv("http_proxy", name.c_str(), 1);
  const absl::Status status = Call(target, WithToken());
  unsetenv("http_proxy");
  EXPECT_EQ(status, absl::OkStatus());
  ClientOptions asked = WithToken();
  asked.arguments.SetString(GRPC_ARG_HTTP_PROXY, name);
  asked.arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 1);
  EXPECT_EQ(Call(target, asked), absl::OkStatus());
  EXPECT_THAT(service.authorizations(), ElementsAre(kHeader, kHeader));
}

// gRPC itself judges credentials that the caller made.
TEST(ConnectionTest, CredentialsThatDoNotEncryptGetNoToken) {
  FakeService service;
  ClientOptions options = WithToken();
  options.credentials = grpc::InsecureChannelCredentials();
  const absl::Status status = Call(service.address(), options);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(kPlaintext));
  EXPECT_TRUE(service.authorizations().empty());
  options.allow_plaintext_token = true;
  EXPECT_EQ(Call(service.address(), options), absl::OkStatus());
  EXPECT_THAT(service.authorizations(), ElementsAre(kHeader));
}

TEST(ConnectionTest, TheTokenGoesOverTls) {
  FakeService service(nullptr, "127.0.0.1:0",
                      Certificates::Get().Server("server.pem"));
  for (const char* host : {"127.0.0.1", "localhost"}) {
    ClientOptions options = Trusting("ca.pem");
    options.token = kToken;
    EXPECT_EQ(Call(absl::StrCat(host, ":", service.port()), options),
              absl::OkStatus());
  }
  EXPECT_THAT(service.authorizations(), ElementsAre(kHeader, kHeader));
}

TEST(ConnectionTest, AClientShowsItsCertificate) {
  FakeService service(nullptr, "127.0.0.1:0",
                      Certificates::Get().Server("server.pem", true));
  EXPECT_EQ(Call(service.address(), Showing("client.pem", "client.key")),
            absl::OkStatus());
}

TEST(ConnectionTest, TheTokenOfAFileIsSent) {
  FakeService service;
  const std::string path =
      absl::StrCat(::testing::TempDir(), "/connection_test_token_", getpid());
  std::ofstream(path) << "of-a-file\n";
  ClientOptions options;
  options.token_file = path;
  EXPECT_EQ(Call(service.address(), options), absl::OkStatus());
  EXPECT_THAT(service.authorizations(), ElementsAre("Bearer of-a-file"));
}

TEST(ConnectionTest, AnotherConnectionHasTheSameToken) {
  FakeService service;
  const auto first = Connection::Make(service.address(), WithToken());
  ASSERT_TRUE(first.ok()) << first.status();
  const Connection second = first->Another();
  EXPECT_NE(second.channel(), first->channel());
  EXPECT_TRUE(Client(second).GetCapabilities().ok());
  EXPECT_THAT(service.authorizations(), ElementsAre(kHeader));
}

struct Failure {
  const char* what;
  // The server's certificate; null: plain text.
  const char* certificate;
  bool asks_for_one;
  ClientOptions client;
  std::string cause;
};

TEST(ConnectionTest, FailuresOfTlsNameTheCause) {
  // gRPC 1.51 cannot tell the first three apart, later versions can.
  const std::string refused = "the server's certificate was refused: ";
  ClientOptions system;
  system.tls = true;
  const std::vector<Failure> failures = {
      {"expired", "expired.pem", false, Trusting("ca.pem"), refused},
      {"wrong authority", "server.pem", false, Trusting("other_ca.pem"),
       refused},
      {"the system's authorities", "server.pem", false, system, refused},
      {"wrong name", "elsewhere.pem", false, Trusting("ca.pem"),
       "the server's certificate is not for 127.0.0.1"},
      {"no certificate of the client", "server.pem", true, Trusting("ca.pem"),
       "the server closed the connection after the TLS handshake: it may want "
       "a certificate of the client (tls_cert, tls_key)"},
      {"a stranger's certificate", "server.pem", true,
       Showing("stranger.pem", "client.key"),
       "the server closed the connection after the TLS handshake: it may not "
       "trust the client's certificate (tls_cert)"},
      {"another's key", "server.pem", true, Showing("client.pem", "server.key"),
       "gRPC cannot use the client's certificate and key (tls_cert, tls_key): "
       "they are damaged, or do not belong together"},
      {"TLS against plain text", nullptr, false, Trusting("ca.pem"),
       "the server does not speak TLS on this port"},
      {"plain text against TLS",
       "server.pem",
       false,
       {},
       "the server closed the connection at once: it may want TLS (tls, "
       "tls_ca)"},
      {"a token in plain text against TLS", "server.pem", false, WithToken(),
       "the server closed the connection at once: it may want TLS (tls, "
       "tls_ca)"},
  };
  for (const Failure& failure : failures) {
    FakeService service(nullptr, "127.0.0.1:0",
                        failure.certificate == nullptr
                            ? grpc::InsecureServerCredentials()
                            : Certificates::Get().Server(failure.certificate,
                                                         failure.asks_for_one));
    ClientOptions client = failure.client;
    client.max_attempts = 1;  // No other one would end otherwise.
    const absl::Status status = Call(service.address(), client);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << failure.what;
    EXPECT_THAT(std::string(status.message()),
                ::testing::StartsWith(failure.cause))
        << failure.what;
    EXPECT_TRUE(service.authorizations().empty()) << failure.what;
  }
}

TEST(ConnectionTest, OptionsThatCannotBeUsedAreNamed) {
  const auto& certificates = Certificates::Get();
  const std::string ca = certificates.Path("ca.pem");
  const std::string key = certificates.Path("client.key");
  const std::vector<std::pair<std::function<void(ClientOptions&)>, std::string>>
      cases = {
          {[&](auto& o) { o.tls_ca = "/no/such.pem"; },
           "tls_ca: /no/such.pem: cannot open: No such file or directory"},
          {[&](auto& o) { o.tls_ca = key; },
           absl::StrCat("tls_ca: ", key,
                        ": has no PEM block 'CERTIFICATE-----'")},
          {[&](auto& o) { o.tls_cert = ca; },
           "tls_cert: needs tls_key as well"},
          {[&](auto& o) { o.tls_key = key; },
           "tls_key: needs tls_cert as well"},
          {[&](auto& o) { o.tls_cert = o.tls_key = ca; },
           absl::StrCat("tls_key: ", ca,
                        ": has no PEM block 'PRIVATE KEY-----'")},
          {[&](auto& o) {
             o.tls = true;
             o.credentials = grpc::InsecureChannelCredentials();
           },
           "credentials: got TLS options as well, wanted only one of both"},
          {[&](auto& o) {
             o.token = kToken;
             o.token_file = "/no/such";
           },
           "token_file: got a token as well, wanted only one of both"},
          {[&](auto& o) { o.token = "secret token"; },
           "token: has white space within the token, wanted one word"},
          {[&](auto& o) { o.token_file = "/no/such"; },
           "token_file: /no/such: cannot open: No such file or directory"},
      };
  for (const auto& [set, error] : cases) {
    ClientOptions options;
    set(options);
    const Client client("127.0.0.1:1", options);
    EXPECT_EQ(client.Compute({}).status(), absl::InvalidArgumentError(error));
    EXPECT_EQ(client.CheckHealth().status(), absl::InvalidArgumentError(error));
    EXPECT_EQ(client.GetCapabilities().status(),
              absl::InvalidArgumentError(error));
  }
}

}  // namespace
}  // namespace attention
