// Who may call.
#ifndef ATTENTION_SERVER_AUTH_AUTHENTICATOR_H_
#define ATTENTION_SERVER_AUTH_AUTHENTICATOR_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/string_ref.h"
#include "server/auth/tenant.h"
#include "server/auth/token_file.h"

namespace attention::server {

// Every handler asks it first. Thread-safe.
class Authenticator {
 public:
  // A call's headers, as gRPC has them.
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;

  // Until SetTokens() everybody may call and is the same tenant, without a
  // name. `open_health`: whether health may always be asked for.
  explicit Authenticator(bool open_health);
  Authenticator(const Authenticator&) = delete;
  Authenticator& operator=(const Authenticator&) = delete;

  // From here on these are good, and no others. A tenant whose name was there
  // before stays the same; calls that run keep the settings they came with, and
  // streams look at their token again with each message.
  void SetTokens(TokenFile file);

  // Whose call it is, by its header "authorization: Bearer TOKEN"; no other
  // header counts. Takes the same time for every token.
  //
  // Errors: Unauthenticated, with a reason: there is no token, it is malformed
  // or there are several, or nobody knows it. Never with the token.
  absl::StatusOr<TenantPtr> Check(const Metadata& metadata) const;
  // The same for health: also OK without a token if that is open.
  absl::Status CheckHealth(const Metadata& metadata) const;

  // Grows with each SetTokens(): as long as it is the same, so is what Check()
  // says. To be asked for before Check().
  int64_t version() const { return version_.load(std::memory_order_acquire); }

  // Those with tokens now, by name; none if everybody may call.
  std::vector<TenantPtr> tenants() const;

 private:
  struct Token {
    TokenHash hash;
    TenantPtr tenant;
  };
  struct Table {
    std::vector<Token> tokens;
    std::map<std::string, TenantPtr> tenants;  // by name
  };

  std::shared_ptr<const Table> table() const;

  const bool open_health_;
  const TenantPtr everybody_ = std::make_shared<const Tenant>();
  mutable std::mutex mutex_;
  std::shared_ptr<const Table> table_;  // guarded by mutex_; null: no tokens
  int last_id_ = 0;                     // guarded by mutex_
  std::atomic<int64_t> version_{0};     // of table_: grows after it
};

// PermissionDenied, with a reason, if the tenant may not.
absl::Status MayCompute(const Tenant& tenant);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_AUTHENTICATOR_H_
