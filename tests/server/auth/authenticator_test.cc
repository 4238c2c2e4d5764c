#include "server/auth/authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/status.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Pairs of a tenant and its token; weight 0 for the tenant "probes".
TokenFile FileOf(
    const std::vector<std::pair<std::string, std::string>>& tokens) {
  TokenFile file;
  for (const auto& [tenant, token] : tokens) {
    file.tokens.push_back({HashOf(token), file.tenants.size()});
    file.tenants.push_back(
        {.name = tenant, .weight = tenant == "probes" ? 0.0 : 1.0});
  }
  return file;
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() {
    authenticator_.SetTokens(
        FileOf({{"a", "token-a"}, {"b", "token-b"}, {"probes", "token-p"}}));
  }

  // The tenant's name, or the reason why there is none.
  std::string WhoIs(const std::vector<std::string>& headers) {
    Authenticator::Metadata metadata;
    for (const std::string& header : headers) {
      metadata.emplace("authorization", header);
    }
    metadata.emplace("x-authorization", "Bearer token-a");
    const auto tenant = authenticator_.Check(metadata);
    if (tenant.ok()) return (*tenant)->name;
    EXPECT_EQ(tenant.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(tenant.status().message(), Not(HasSubstr("token-")));
    return std::string(ReasonName(ReasonOf(tenant.status())));
  }

  Authenticator authenticator_{/*open_health=*/false};
};

TEST_F(AuthenticatorTest, KnowsTenantsByTheirTokens) {
  EXPECT_EQ(WhoIs({"Bearer token-a"}), "a");
  EXPECT_EQ(WhoIs({"Bearer token-b"}), "b");
  EXPECT_EQ(WhoIs({"bearer token-p"}), "probes");
}

TEST_F(AuthenticatorTest, RefusesAllElse) {
  EXPECT_EQ(WhoIs({}), "TOKEN_MISSING");
  EXPECT_EQ(WhoIs({"Bearer token-a", "Bearer token-a"}), "TOKEN_MALFORMED");
  for (const std::string header :
       {"", "Bearer", "Bearer ", "Bearertoken-a", "token-a", "Basic token-a",
        "Bearer  token-a", "Bearer token-a ", "Bearer token-a,token-b",
        "Bearer token-\"", "Bearer =", "Bearer token-=a"}) {
    EXPECT_EQ(WhoIs({header}), "TOKEN_MALFORMED") << header;
  }
  EXPECT_EQ(WhoIs({"Bearer token-" + std::string(5000, 'a')}),
            "TOKEN_MALFORMED");
  for (const std::string header :
       {"Bearer token-c", "Bearer token-", "Bearer token-aa", "Bearer Token-a",
        "Bearer token-a=="}) {
    EXPECT_EQ(WhoIs({header}), "TOKEN_UNKNOWN") << header;
  }
}

TEST_F(AuthenticatorTest, SomeTenantsMayOnlyAsk) {
  const auto check = [&](const std::string& header) {
    const auto tenant = authenticator_.Check({{"authorization", header}});
    return tenant.ok() ? MayCompute(**tenant) : tenant.status();
  };
  EXPECT_TRUE(check("Bearer token-a").ok());
  const absl::Status denied = check("Bearer token-p");
  EXPECT_EQ(denied.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(denied), Reason::kTenantNotAllowed);
  EXPECT_EQ(denied.message(),
            "the tenant \"probes\" may not compute: its weight is 0");
  EXPECT_EQ(check("Bearer token-x").code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(AuthenticatorTest, NewTokensReplaceAllOfTheOldOnes) {
  const TenantPtr a =
      *authenticator_.Check({{"authorization", "Bearer token-a"}});
  ++a->use->calls[0];
  authenticator_.SetTokens(FileOf({{"c", "token-c"}, {"a", "token-new"}}));
  EXPECT_EQ(WhoIs({"Bearer token-a"}), "TOKEN_UNKNOWN");
  EXPECT_EQ(WhoIs({"Bearer token-b"}), "TOKEN_UNKNOWN");
  const TenantPtr same =
      *authenticator_.Check({{"authorization", "Bearer token-new"}});
  const TenantPtr other =
      *authenticator_.Check({{"authorization", "Bearer token-c"}});
  EXPECT_EQ(same->id, a->id);
  EXPECT_EQ(same->use->calls[0], 1);
  // Not that of any tenant before.
  EXPECT_EQ(other->id, 4);
  ASSERT_EQ(authenticator_.tenants().size(), 2u);
  EXPECT_EQ(authenticator_.tenants()[0], same);
  EXPECT_EQ(authenticator_.tenants()[1], other);
}

TEST(AuthenticatorWithoutTokensTest, EverybodyIsTheSame) {
  const Authenticator authenticator(/*open_health=*/false);
  const auto nobody = authenticator.Check({});
  ASSERT_TRUE(nobody.ok());
  EXPECT_EQ((*nobody)->name, "");
  EXPECT_EQ((*nobody)->weight, 1);
  EXPECT_TRUE(MayCompute(**nobody).ok());
  EXPECT_TRUE(authenticator.CheckHealth({}).ok());
  EXPECT_TRUE(authenticator.tenants().empty());
}

TEST(AuthenticatorHealthTest, IsOpenIfToldSo) {
  for (const bool open : {false, true}) {
    Authenticator authenticator(open);
    authenticator.SetTokens(FileOf({{"probes", "p"}}));
    EXPECT_EQ(authenticator.CheckHealth({}).ok(), open);
    EXPECT_TRUE(
        authenticator.CheckHealth({{"authorization", "Bearer p"}}).ok());
  }
}

}  // namespace
}  // namespace attention::server
