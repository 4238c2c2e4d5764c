// TLS, as clients and peers that are none meet it; tokens, as the log tells of
// them; plain text.
#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "server/auth/token_file.h"
#include "tests/support/certificates.h"
#include "tests/support/messages.h"
#include "tests/support/pipe.h"
#include "tests/support/raw_call.h"
#include "tests/support/socket.h"
#include "tests/support/subprocess.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// gRPC 1.51 may take 10 s to close down with the last channel; keep it up.
[[maybe_unused]] const bool kGrpcStaysUp = (grpc_init(), true);

// A channel of its own connection.
std::shared_ptr<grpc::Channel> ChannelTo(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

std::shared_ptr<grpc::ChannelCredentials> Trusting(const std::string& root,
                                                   const Pem& own = {}) {
  return grpc::SslCredentials({.pem_root_certs = root,
                               .pem_private_key = own.key,
                               .pem_cert_chain = own.cert});
}

std::string HealthAt(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  return HealthOf(ChannelTo(address, credentials), "");
}

class TlsTest : public ::testing::Test {
 protected:
  // `pem` as the server's certificate.
  server::Options OptionsWith(const Pem& pem) {
    server::Options options = TestServer::DefaultOptions();
    options.tls_cert = folder_.Write("cert.pem", pem.cert);
    options.tls_key = folder_.Write("key.pem", pem.key);
    options.reload_interval = absl::Milliseconds(1);
    return options;
  }

  const TestFolder folder_;
  const Authority authority_{"root"}, other_{"other"};
};

TEST_F(TlsTest, EncryptsTcpAndLeavesUnixSockets) {
  server::Options options = OptionsWith(authority_.Issue());
  options.listen = {"127.0.0.1:0", "unix:" + folder_.Path("socket")};
  TestServer server(options);
  const auto& addresses = server.server().addresses();
  const auto plain = grpc::InsecureChannelCredentials();
  EXPECT_EQ(HealthAt(addresses[0], Trusting(authority_.cert())), "SERVING");
  EXPECT_EQ(HealthAt(addresses[0], plain), "UNAVAILABLE");
  EXPECT_EQ(HealthAt(addresses[1], plain), "SERVING");
  EXPECT_EQ(HealthOf(server.Channel(Transport::kInProcess), ""), "SERVING");
}

TEST_F(TlsTest, ServesOnEveryAddress) {
  server::Options options = OptionsWith(authority_.Issue());
  // Nothing is sent beyond this machine.
  options.listen = {"0.0.0.0:0"};
  TestServer server(options);
  const std::string& address = server.server().addresses().front();
  EXPECT_EQ(HealthAt("localhost" + address.substr(address.rfind(':')),
                     Trusting(authority_.cert())),
            "SERVING");
}

TEST_F(TlsTest, AClientThatTrustsAnotherRootIsNotServed) {
  TestServer server(OptionsWith(authority_.Issue()));
  EXPECT_EQ(HealthAt(server.server().addresses()[0], Trusting(other_.cert())),
            "UNAVAILABLE");
}

TEST_F(TlsTest, ClientsNeedACertificateOfTheClientCa) {
  server::Options options = OptionsWith(authority_.Issue());
  const Authority clients("clients");
  options.tls_client_ca = folder_.Write("ca.pem", clients.cert());
  TestServer server(options);
  const std::string& address = server.server().addresses()[0];
  const std::string& root = authority_.cert();
  EXPECT_EQ(HealthAt(address, Trusting(root, clients.Issue())), "SERVING");
  EXPECT_EQ(HealthAt(address, Trusting(root)), "UNAVAILABLE");
  EXPECT_EQ(HealthAt(address, Trusting(root, other_.Issue())), "UNAVAILABLE");
  EXPECT_EQ(
      HealthAt(address,
               Trusting(root, clients.Issue({.ends = -absl::Minutes(1)}))),
      "UNAVAILABLE");
}

TEST_F(TlsTest, NewCertificatesAreServedAndOpenConnectionsGoOn) {
  TestServer server(OptionsWith(authority_.Issue()));
  const std::string& address = server.server().addresses()[0];
  const auto open = ChannelTo(address, Trusting(authority_.cert()));
  ASSERT_EQ(HealthOf(open, ""), "SERVING");
  const Pem next = other_.Issue();
  folder_.Write("cert.pem", next.cert);
  folder_.Write("key.pem", next.key);
  EXPECT_TRUE(WaitUntil(
      [&] { return HealthAt(address, Trusting(other_.cert())) == "SERVING"; }));
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "UNAVAILABLE");
  EXPECT_EQ(HealthOf(open, ""), "SERVING");
}

TEST_F(TlsTest, NewClientCasCount) {
  server::Options options = OptionsWith(authority_.Issue());
  const Authority before("before"), after("after");
  options.tls_client_ca = folder_.Write("ca.pem", before.cert());
  TestServer server(options);
  const std::string& address = server.server().addresses()[0];
  folder_.Write("ca.pem", after.cert());
  EXPECT_TRUE(WaitUntil([&] {
    return HealthAt(address, Trusting(authority_.cert(), after.Issue())) ==
           "SERVING";
  }));
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert(), before.Issue())),
            "UNAVAILABLE");
}

// What starts the server and reads its log.
class TlsProgramTest : public TlsTest {
 protected:
  // With "--tls-cert" and so on for `pem`, and these.
  std::unique_ptr<Subprocess> Run(const Pem& pem,
                                  std::vector<std::string> flags = {},
                                  int standard_error = -1) {
    flags.insert(flags.begin(),
                 {ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0", "--threads=1",
                  "--tls-cert=" + folder_.Write("cert.pem", pem.cert),
                  "--tls-key=" + folder_.Write("key.pem", pem.key)});
    return std::make_unique<Subprocess>(
        flags, Subprocess::Streams{.standard_error = standard_error});
  }
  std::string AddressOf(Subprocess& server) {
    const std::string line = server.ReadLine();
    EXPECT_THAT(line, StartsWith("listening on "));
    return line.substr(13);
  }
  // Stops it, and what it logged between its start and its end, without times.
  std::vector<std::string> Stop(Subprocess& server) {
    server.Signal(SIGTERM);
    const auto result = server.Wait();
    EXPECT_EQ(result.exit_code, 0);
    std::vector<std::string> lines;
    for (absl::string_view line :
         absl::StrSplit(result.standard_error, '\n', absl::SkipEmpty())) {
      line.remove_prefix(line.find(' ') + 1);
      if (absl::StrContains(line, "event=start ") ||
          absl::StrContains(line, "event=shutdown ") ||
          absl::StrContains(line, "event=stop")) {
        continue;
      }
      lines.emplace_back(line);
    }
    return lines;
  }
};

TEST_F(TlsProgramTest, PeersThatFailTheHandshakeAreClosedWithoutALine) {
  const Authority clients("clients");
  const auto server =
      Run(authority_.Issue(),
          {"--tls-client-ca=" + folder_.Write("ca.pem", clients.cert())});
  const std::string address = AddressOf(*server);
  EXPECT_EQ(HealthAt(address, grpc::InsecureChannelCredentials()),
            "UNAVAILABLE");
  EXPECT_EQ(HealthAt(address, Trusting(other_.cert(), clients.Issue())),
            "UNAVAILABLE");
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "UNAVAILABLE");
  for (const std::string& start :
       {Http2Start(), std::string("GET / HTTP/1.1\r\n\r\n"),
        std::string("\x16\x03\x01\xff\xff", 5) + std::string(100, 'x')}) {
    const Descriptor peer = ConnectTo(address);
    Send(peer, start);
    // Closed; an alert at most is said before.
    EXPECT_LT(ReceiveAll(peer).size(), 100u);
  }
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert(), clients.Issue())),
            "SERVING");
  EXPECT_THAT(Stop(*server), ElementsAre());
}

TEST_F(TlsProgramTest, TlsAgainstPlainTextIsClosedWithoutALine) {
  Subprocess server({ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0"});
  const std::string address = AddressOf(server);
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "UNAVAILABLE");
  EXPECT_EQ(HealthAt(address, grpc::InsecureChannelCredentials()), "SERVING");
  EXPECT_THAT(Stop(server), ElementsAre());
}

TEST_F(TlsProgramTest, FilesThatCannotBeServedWithLeaveTheOldOnes) {
  Pipe log;
  const auto server = Run(authority_.Issue(), {}, log.writer());
  const std::string address = AddressOf(*server);
  log.ReadUntil("event=start");
  log.ReadUntil("\n");
  const auto next_line = [&log] { return log.ReadUntil("\n"); };
  const Pem old = other_.Issue({.ends = -absl::Minutes(1)});
  const Pem next = other_.Issue();

  folder_.Write("key.pem", next.key);
  EXPECT_THAT(
      next_line(),
      HasSubstr("level=warning event=reload_refused error=\"--tls-key"));
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "SERVING");
  folder_.Write("cert.pem", next.cert.substr(0, next.cert.size() / 2));
  EXPECT_THAT(
      next_line(),
      HasSubstr("level=warning event=reload_refused error=\"--tls-cert"));
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "SERVING");
  folder_.Write("key.pem", old.key);
  folder_.Write("cert.pem", old.cert);
  // Both at once, or one after the other.
  std::string line = next_line();
  if (!absl::StrContains(line, "expired at")) line = next_line();
  EXPECT_THAT(line, HasSubstr("cert.pem: expired at "));
  EXPECT_EQ(HealthAt(address, Trusting(authority_.cert())), "SERVING");
  folder_.Write("key.pem", next.key);
  folder_.Write("cert.pem", next.cert);
  line = next_line();
  if (!absl::StrContains(line, "event=reloaded")) line = next_line();
  EXPECT_THAT(line, HasSubstr("level=info event=reloaded file="));
  EXPECT_EQ(HealthAt(address, Trusting(other_.cert())), "SERVING");
}

TEST_F(TlsProgramTest, AStartWithFilesThatCannotBeServedWithFails) {
  const Pem good = authority_.Issue();
  const Pem old = authority_.Issue({.ends = -absl::Minutes(1)});
  const auto error_of = [&](const Pem& pem,
                            std::vector<std::string> flags = {}) {
    const auto result = Run(pem, std::move(flags))->Wait();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.standard_output, "");
    EXPECT_EQ(std::count(result.standard_error.begin(),
                         result.standard_error.end(), '\n'),
              1)
        << result.standard_error;
    return result.standard_error;
  };
  EXPECT_THAT(error_of(old), HasSubstr("cert.pem: expired at "));
  EXPECT_THAT(
      error_of({good.cert, old.key}),
      HasSubstr("key.pem: is not the key of the first certificate in "));
  EXPECT_THAT(error_of({"", good.key}), HasSubstr("holds no certificate"));
  EXPECT_THAT(error_of(good, {"--tls-client-ca=/no/ca"}),
              HasSubstr("--tls-client-ca: /no/ca: cannot be read: No such "
                        "file or directory"));
}

// The code of a call with this token; without, if it is empty.
grpc::StatusCode ComputeAt(const std::string& address,
                           const std::string& token) {
  const auto stub = v1::AttentionService::NewStub(
      ChannelTo(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  v1::ComputeAttentionResponse response;
  return stub->ComputeAttention(&context, SmallRequest(), &response)
      .error_code();
}

TEST(TokensProgramTest, LogsTenantsButNoTokensAndKeepsThemOverABadFile) {
  const TestFolder folder;
  const server::TokenHash hash = server::HashOf("secret-a");
  const std::string good =
      absl::BytesToHexString(absl::string_view(
          reinterpret_cast<const char*>(hash.data()), hash.size())) +
      " tenant-a\n";
  Pipe log;
  Subprocess server(
      {ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0", "--log-level=debug",
       "--tokens=" + folder.Write("tokens", good)},
      {.standard_error = log.writer()});
  const std::string line = server.ReadLine();
  ASSERT_THAT(line, StartsWith("listening on "));
  const std::string address = line.substr(13);
  std::string said = log.ReadUntil("event=start");
  const auto reads = [&](const std::string& until) {
    said += log.ReadUntil(until);
    said += log.ReadUntil("\n");
  };
  EXPECT_EQ(ComputeAt(address, "secret-a"), grpc::StatusCode::OK);
  reads("event=call rpc=ComputeAttention tenant=tenant-a code=OK ");
  {
    const auto stub = v1::AttentionService::NewStub(
        ChannelTo(address, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer secret-a");
    v1::GetCapabilitiesResponse response;
    EXPECT_TRUE(stub->GetCapabilities(&context, {}, &response).ok());
  }
  reads("event=call rpc=GetCapabilities tenant=tenant-a code=OK ");
  EXPECT_EQ(ComputeAt(address, "secret-b"), grpc::StatusCode::UNAUTHENTICATED);
  reads("level=info event=call rpc=ComputeAttention code=UNAUTHENTICATED ");
  // A token in place of its hash.
  folder.Write("tokens", good + "secret-c tenant-c\n");
  reads("level=warning event=reload_refused error=\"--tokens: " +
        folder.Path("tokens") + ": line 2: the first word has 8 characters");
  EXPECT_EQ(ComputeAt(address, "secret-a"), grpc::StatusCode::OK);
  folder.Write("tokens", "# Changed.\n" + good);
  reads("level=info event=reloaded file=\"" + folder.Path("tokens") +
        "\" tokens=1 tenants=1");
  EXPECT_EQ(ComputeAt(address, "secret-a"), grpc::StatusCode::OK);
  EXPECT_THAT(said, Not(HasSubstr("secret-")));
}

TEST(PlainTextTest, OtherMachinesAreServedOnlyIfThatIsAllowed) {
  const auto error_of = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), ATTENTION_SERVER_PATH);
    const auto result = Subprocess(flags).Wait();
    EXPECT_EQ(result.exit_code, 1);
    return result.standard_error;
  };
  for (const std::string address : {"0.0.0.0:0", "[::]:0"}) {
    EXPECT_EQ(error_of({"--listen=" + address}),
              absl::StrCat("attention_server: --listen: got \"", address,
                           "\", which other machines may reach, without "
                           "encryption: give --tls-cert and --tls-key, or "
                           "allow it with --allow-plaintext\n"));
  }
  EXPECT_EQ(error_of({"--listen=127.0.0.1:0", "--http-listen=0.0.0.0:0"}),
            "attention_server: --http-listen: got \"0.0.0.0:0\", which other "
            "machines may reach: HTTP here is without encryption; name a "
            "loopback address, or allow it with --allow-plaintext\n");
  Subprocess server({ATTENTION_SERVER_PATH, "--listen=0.0.0.0:0",
                     "--http-listen=0.0.0.0:0", "--allow-plaintext"});
  EXPECT_THAT(server.ReadLine(), StartsWith("listening on 0.0.0.0:"));
  EXPECT_THAT(server.ReadLine(), StartsWith("listening on http://0.0.0.0:"));
}

// TLS does not cover HTTP.
TEST_F(TlsProgramTest, HttpStaysPlainAndAsksForIt) {
  const auto result =
      Run(authority_.Issue(), {"--http-listen=0.0.0.0:0"})->Wait();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.standard_error, HasSubstr("--allow-plaintext"));
}

TEST(UnixSocketTest, HasThePermissionsThatTheFlagSays) {
  const TestFolder folder;
  const mode_t before = umask(077);
  for (const mode_t mode : {0600, 0666, 0777, 0000}) {
    const std::string path = folder.Path(absl::StrCat("socket", mode));
    server::Options options = TestServer::DefaultOptions();
    options.listen = {"unix:" + path};
    options.unix_socket_mode = mode;
    TestServer server(options);
    struct stat file;
    ASSERT_EQ(stat(path.c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 07777, mode);
  }
  umask(before);
}

}  // namespace
}  // namespace attention::testing
