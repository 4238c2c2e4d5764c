#include "attention/internal/proxy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/client.h"
#include "attention/details/v1/details.pb.h"
#include "tests/client/fake_service.h"
#include "tests/client/proxy_environment.h"

namespace attention::internal {
namespace {

using Variables = ProxyEnvironment::Variables;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ProxyOf, TheFirstVariableThatIsSet) {
  {
    ProxyEnvironment set(Variables{});
    EXPECT_EQ(ProxyOf("server:1"), "");
  }
  {
    ProxyEnvironment set(Variables{{"http_proxy", "http://a:1"}});
    EXPECT_EQ(ProxyOf("server:1"), "http_proxy=a:1");
    EXPECT_EQ(ProxyOf("localhost:1"), "");
  }
  {
    ProxyEnvironment set(Variables{{"http_proxy", "http://a:1"},
                                   {"https_proxy", "http://user:secret@b:2/"}});
    EXPECT_EQ(ProxyOf("server:1"), "https_proxy=b:2");
  }
  {
    ProxyEnvironment set(
        Variables{{"http_proxy", "http://a:1"}, {"grpc_proxy", ""}});
    EXPECT_EQ(ProxyOf("server:1"), "");
  }
  {
    ProxyEnvironment set(Variables{{"http_proxy", "socks5://a:1"}});
    EXPECT_EQ(ProxyOf("server:1"), "");
  }
}

TEST(ProxyOf, NoProxyExceptsNamesByTheirEnd) {
  ProxyEnvironment set(Variables{{"http_proxy", "http://a:1"},
                                 {"no_proxy", "other,.Example.org"}});
  EXPECT_EQ(ProxyOf("server.example.org:1"), "");
  EXPECT_EQ(ProxyOf("dns:///server.example.org:1"), "");
  EXPECT_EQ(ProxyOf("server.example.com:1"), "http_proxy=a:1");
  ProxyEnvironment both(Variables{{"http_proxy", "http://a:1"},
                                  {"no_proxy", "server"},
                                  {"no_grpc_proxy", "x"}});
  EXPECT_EQ(ProxyOf("server:1"), "http_proxy=a:1");
}

TEST(WithProxy, NamesItWhereItMayBeTheCause) {
  EXPECT_EQ(WithProxy(absl::UnavailableError("refused"), "http_proxy=a:1"),
            absl::UnavailableError(
                "refused; the call went through the proxy of http_proxy=a:1: "
                "if that is wrong, name the server in no_proxy"));
  EXPECT_THAT(WithProxy(absl::DeadlineExceededError("late"), "http_proxy=a:1")
                  .ToString(),
              HasSubstr("http_proxy=a:1"));
  for (const absl::Status& status :
       {absl::OkStatus(), absl::InvalidArgumentError("x")}) {
    EXPECT_EQ(WithProxy(status, "http_proxy=a:1"), status);
  }
  EXPECT_EQ(WithProxy(absl::UnavailableError("x"), ""),
            absl::UnavailableError("x"));
  details::v1::ErrorInfo info;
  info.set_domain("attention");
  info.set_reason("DRAINING");
  absl::Status refused = absl::UnavailableError("x");
  refused.SetPayload("type.googleapis.com/google.rpc.ErrorInfo",
                     absl::Cord(absl::string_view(info.SerializeAsString())));
  EXPECT_EQ(WithProxy(refused, "http_proxy=a:1"), refused);
}

TEST(Proxy, IsNotAskedForLoopback) {
  const RefusingPort proxy;
  const ProxyEnvironment set(
      Variables{{"http_proxy", "http://" + proxy.address()}});
  FakeService service;
  EXPECT_EQ(Client(service.address()).CheckHealth().value(), Health::kServing);
  EXPECT_EQ(Client("dns:///" + service.address()).CheckHealth().value(),
            Health::kServing);
}

TEST(Proxy, IsNamedIfACallThroughItFails) {
  const RefusingPort proxy;
  const ProxyEnvironment set(
      Variables{{"http_proxy", "http://" + proxy.address()}});
  // Reserved for no name; the proxy is asked instead of it.
  const absl::Status status =
      Client("server.invalid:50051").CheckHealth().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the call went through the proxy of http_proxy=" +
                        proxy.address()));
  // Only this one asks for the name.
  ClientOptions none;
  none.use_proxy = false;
  const absl::Status direct =
      Client("server.invalid:50051", none).CheckHealth().status();
  EXPECT_EQ(direct.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(direct.message()), Not(HasSubstr("proxy")));
}

}  // namespace
}  // namespace attention::internal
