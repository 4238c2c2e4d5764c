#include "server/auth/authenticator.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace attention::server {
namespace {

constexpr char kHeader[] = "authorization";
constexpr absl::string_view kScheme = "Bearer ";
constexpr size_t kMaxToken = 4096;

absl::Status Unauthenticated(Reason reason, absl::string_view text) {
  return WithReason(reason, absl::UnauthenticatedError(text));
}

// RFC 6750's b64token: what a token may be made of.
bool IsToken(absl::string_view text) {
  const size_t padding = text.find('=');
  const absl::string_view body = text.substr(0, padding);
  const auto allowed = [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("-._~+/", c);
  };
  return !body.empty() && text.size() <= kMaxToken &&
         std::all_of(body.begin(), body.end(), allowed) &&
         text.find_first_not_of('=', body.size()) == absl::string_view::npos;
}

absl::StatusOr<absl::string_view> TokenIn(
    const Authenticator::Metadata& metadata) {
  const auto [begin, end] = metadata.equal_range(kHeader);
  if (begin == end) {
    return Unauthenticated(
        Reason::kTokenMissing,
        "authorization: got no such header, wanted \"Bearer TOKEN\"");
  }
  if (std::next(begin) != end) {
    return Unauthenticated(
        Reason::kTokenMalformed,
        "authorization: got several such headers, wanted one");
  }
  const absl::string_view value(begin->second.data(), begin->second.size());
  if (!absl::StartsWithIgnoreCase(value, kScheme) ||
      !IsToken(value.substr(kScheme.size()))) {
    return Unauthenticated(
        Reason::kTokenMalformed,
        absl::StrCat("authorization: got something else than \"Bearer TOKEN\" "
                     "with a token of 1 to ",
                     kMaxToken,
                     " letters, digits and -._~+/, and = at its "
                     "end"));
  }
  return value.substr(kScheme.size());
}

}  // namespace

Authenticator::Authenticator(bool open_health) : open_health_(open_health) {}

void Authenticator::SetTokens(TokenFile file) {
  auto table = std::make_shared<Table>();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto before = [this](const std::string& name) -> TenantPtr {
    if (table_ == nullptr) return nullptr;
    const auto found = table_->tenants.find(name);
    return found == table_->tenants.end() ? nullptr : found->second;
  };
  std::vector<TenantPtr> tenants;
  for (TenantSettings& settings : file.tenants) {
    auto tenant = std::make_shared<Tenant>();
    static_cast<TenantSettings&>(*tenant) = std::move(settings);
    if (const TenantPtr same = before(tenant->name)) {
      tenant->id = same->id;
      tenant->use = same->use;
    } else {
      tenant->id = ++last_id_;
    }
    table->tenants.emplace(tenant->name, tenant);
    tenants.push_back(std::move(tenant));
  }
  for (const TokenFile::Token& token : file.tokens) {
    table->tokens.push_back({token.hash, tenants[token.tenant]});
  }
  table_ = std::move(table);
  version_.fetch_add(1, std::memory_order_release);
}

std::shared_ptr<const Authenticator::Table> Authenticator::table() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return table_;
}

absl::StatusOr<TenantPtr> Authenticator::Check(const Metadata& metadata) const {
  const std::shared_ptr<const Table> table = this->table();
  if (table == nullptr) return everybody_;
  const absl::StatusOr<absl::string_view> token = TokenIn(metadata);
  if (!token.ok()) return token.status();
  const TokenHash hash = HashOf(*token);
  const Token* found = nullptr;
  // All of them, whichever it is.
  for (const Token& known : table->tokens) {
    if (CRYPTO_memcmp(known.hash.data(), hash.data(), hash.size()) == 0) {
      found = &known;
    }
  }
  if (found != nullptr) return found->tenant;
  return Unauthenticated(Reason::kTokenUnknown,
                         "authorization: the token is not known here");
}

absl::Status MayCompute(const Tenant& tenant) {
  if (tenant.may_compute()) return absl::OkStatus();
  return WithReason(Reason::kTenantNotAllowed,
                    absl::PermissionDeniedError(
                        absl::StrCat("the tenant \"", tenant.name,
                                     "\" may not compute: its weight is 0")));
}

absl::Status Authenticator::CheckHealth(const Metadata& metadata) const {
  return open_health_ ? absl::OkStatus() : Check(metadata).status();
}

std::vector<TenantPtr> Authenticator::tenants() const {
  std::vector<TenantPtr> tenants;
  if (const auto table = this->table()) {
    for (const auto& [name, tenant] : table->tenants) tenants.push_back(tenant);
  }
  return tenants;
}

}  // namespace attention::server
