// Tenants in admission: limits of their own, and turns.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/admission/work_budget.h"
#include "server/status.h"
#include "tests/support/messages.h"

namespace attention::server {
namespace {

using ::attention::testing::DetailsOf;

constexpr int64_t kMega = int64_t{1} << 20;

TenantPtr MakeTenant(int id, const TenantSettings& settings) {
  auto tenant = std::make_shared<Tenant>();
  static_cast<TenantSettings&>(*tenant) = settings;
  tenant->id = id;
  return tenant;
}

// A call that keeps what admission says of it.
class Call final : public Admission::Entrant {
 public:
  void Admitted(Admission::Ticket given) override {
    ticket = std::move(given);
    admitted = true;
  }
  void Refused(absl::Status given) override { refused = std::move(given); }
  void Expel(absl::Status) override {}
  void Hold() override {}
  void Drop() override {}

  Reason reason() const { return refused ? ReasonOf(*refused) : Reason::kNone; }

  Admission::Ticket ticket;
  bool admitted = false;
  std::optional<absl::Status> refused;
};

class TenantsTest : public ::testing::Test {
 protected:
  Admission& admission() {
    if (!admission_) admission_.emplace(settings_, costs_);
    return *admission_;
  }

  ~TenantsTest() override {
    // Nobody is let in any more, so that calls may go in any order.
    admission().Drain();
  }

  // A call that lives as long as the test.
  Call* Enter(const TenantPtr& tenant, std::optional<int64_t> bytes,
              const std::string& peer = "") {
    Call* const call = calls_.emplace_back(std::make_unique<Call>()).get();
    admission().Enter(call, {.bytes = bytes, .peer = peer, .tenant = tenant});
    return call;
  }

  Admission::Settings settings_ = [] {
    Admission::Settings settings;
    settings.max_bytes = 100 * kMega;
    settings.max_request_bytes = 20 * kMega;
    settings.threads = 2;
    return settings;
  }();
  const TenantPtr a_ = MakeTenant(1, {.name = "a"});
  const TenantPtr b_ = MakeTenant(2, {.name = "b"});
  CostModel costs_;
  std::optional<Admission> admission_;
  std::vector<std::unique_ptr<Call>> calls_;
};

TEST_F(TenantsTest, HoldNoMoreBytesThanTheyMay) {
  const TenantPtr small = MakeTenant(3, {.name = "s", .max_bytes = 10 * kMega});
  Call* const first = Enter(small, 3 * kMega);
  EXPECT_TRUE(first->admitted);
  EXPECT_EQ(admission().tenant_bytes(3), 6 * kMega);
  Call* const second = Enter(small, 3 * kMega);
  ASSERT_EQ(second->reason(), Reason::kTenantBytes);
  EXPECT_EQ(RetryDelay(*second->refused), absl::Milliseconds(100));
  EXPECT_EQ(second->refused->message(),
            "6291456 bytes more would exceed the 10485760 that the calls of "
            "the tenant \"s\" may hold at once");
  const grpc::Status status = ToGrpcStatus(*second->refused);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "TENANT_BYTES");
  EXPECT_EQ(DetailsOf(status).quota_subject, "tenant:s");
  // Others are not concerned, nor is it once it has let go.
  EXPECT_TRUE(Enter(a_, 3 * kMega)->admitted);
  first->ticket.Release();
  EXPECT_TRUE(Enter(small, 5 * kMega)->admitted);
}

TEST_F(TenantsTest, ACallThatIsTooLargeForItsTenantNeedNotComeBack) {
  const TenantPtr small = MakeTenant(3, {.name = "s", .max_bytes = 10 * kMega});
  Call* const call = Enter(small, 6 * kMega);
  ASSERT_EQ(call->reason(), Reason::kTenantTooLarge);
  EXPECT_EQ(RetryDelay(*call->refused), std::nullopt);
  EXPECT_EQ(call->refused->message(),
            "the call needs 12582912 bytes, more than the 10485760 that all "
            "calls of the tenant \"s\" may hold at once");
}

TEST_F(TenantsTest, WhatACallNeedsLaterIsLimitedToo) {
  const TenantPtr small = MakeTenant(3, {.name = "s", .max_bytes = 10 * kMega});
  Call *const first = Enter(small, kMega), *const second = Enter(small, kMega);
  ASSERT_TRUE(first->admitted && second->admitted);
  // 2 and 2 MiB are held.
  EXPECT_TRUE(first->ticket.Hold(MemoryKind::kAnswer, 6 * kMega).ok());
  EXPECT_EQ(ReasonOf(second->ticket.Hold(MemoryKind::kAnswer, kMega)),
            Reason::kTenantBytes);
  EXPECT_EQ(ReasonOf(second->ticket.Hold(MemoryKind::kAnswer, 9 * kMega)),
            Reason::kTenantTooLarge);
  first->ticket.Release();
  EXPECT_TRUE(second->ticket.Hold(MemoryKind::kAnswer, kMega).ok());
}

// What is charged for a message of unknown size is a guess.
TEST_F(TenantsTest, MessagesOfUnknownSizeCountOnceTheyAreRead) {
  const TenantPtr small = MakeTenant(3, {.name = "s", .max_bytes = 10 * kMega});
  settings_.received_bytes = [](const std::string&) { return 0; };
  Call* const first = Enter(small, std::nullopt);
  Call* const second = Enter(small, std::nullopt);
  ASSERT_TRUE(first->admitted && second->admitted);
  EXPECT_TRUE(first->ticket.ReadDone(4 * kMega).ok());
  EXPECT_EQ(ReasonOf(second->ticket.ReadDone(4 * kMega)), Reason::kTenantBytes);
}

TEST_F(TenantsTest, DoNoMoreWorkThanTheyMay) {
  const TenantPtr slow = MakeTenant(3, {.name = "s", .max_work = 100});
  Call* const first = Enter(slow, 100);
  ASSERT_TRUE(first->admitted);
  Call* const second = Enter(slow, 100);
  ASSERT_TRUE(second->admitted);
  // Nine seconds' worth more than there was.
  EXPECT_TRUE(first->ticket.Expect(0, 1000).ok());
  EXPECT_EQ(ReasonOf(second->ticket.Expect(0, 1)), Reason::kTenantWork);
  Call* const late = Enter(slow, 100);
  ASSERT_EQ(late->reason(), Reason::kTenantWork);
  EXPECT_GT(*RetryDelay(*late->refused), absl::Seconds(1));
  EXPECT_LE(*RetryDelay(*late->refused), absl::Seconds(9));
  EXPECT_EQ(DetailsOf(ToGrpcStatus(*late->refused)).quota_subject, "tenant:s");
  EXPECT_TRUE(Enter(a_, 100)->admitted);
}

TEST(WorkBudgetTest, FillsAtItsRate) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  const auto after = [&](double seconds) {
    return start + absl::Seconds(seconds);
  };
  WorkBudget budget(start);
  EXPECT_TRUE(budget.Full(start));
  budget.Take(50, 100, start);
  EXPECT_EQ(budget.Wait(start), -absl::Milliseconds(500));
  EXPECT_FALSE(budget.Full(start));
  EXPECT_TRUE(budget.Full(after(0.5)));
  // No more than a second's worth is kept.
  budget.Take(300, 100, after(100));
  EXPECT_EQ(budget.Wait(after(100)), absl::Seconds(2));
  EXPECT_EQ(budget.Wait(after(102)), absl::ZeroDuration());
  EXPECT_EQ(budget.Wait(after(103)), -absl::Seconds(1));
  // Without a limit nothing is taken.
  budget.Take(1e30, std::numeric_limits<double>::infinity(), after(103));
  EXPECT_TRUE(budget.Full(after(103)));
}

// Whose calls were let in, in that order, of those that wait for memory: one at
// a time, as another one ends.
std::vector<std::string> Order(
    std::vector<std::pair<std::string, Call*>>& calls,
    std::vector<Call*>& inside, int count) {
  std::vector<std::string> order;
  for (int i = 0; i < count; ++i) {
    inside.front()->ticket.Release();
    inside.erase(inside.begin());
    const auto in =
        std::find_if(calls.begin(), calls.end(),
                     [](const auto& call) { return call.second->admitted; });
    if (in == calls.end()) break;
    order.push_back(in->first);
    inside.push_back(in->second);
    calls.erase(in);
  }
  return order;
}

TEST_F(TenantsTest, TakeTurnsByWeight) {
  const TenantPtr heavy = MakeTenant(3, {.name = "h", .weight = 3});
  std::vector<Call*> inside;
  for (int i = 0; i < 2; ++i) inside.push_back(Enter(a_, 20 * kMega));
  std::vector<std::pair<std::string, Call*>> waiting;
  for (int i = 0; i < 10; ++i) waiting.emplace_back("a", Enter(a_, 20 * kMega));
  for (int i = 0; i < 10; ++i) {
    waiting.emplace_back("h", Enter(heavy, 20 * kMega));
  }
  // Those of "a" came first, and have had two already.
  const auto order = Order(waiting, inside, 12);
  ASSERT_EQ(order.size(), 12u);
  EXPECT_NEAR(std::count(order.begin(), order.end(), "h"), 9, 1);
}

TEST_F(TenantsTest, EqualOnesTakeTurnsHoweverManyCallsTheyHave) {
  std::vector<Call*> inside;
  for (int i = 0; i < 2; ++i) inside.push_back(Enter(b_, 20 * kMega));
  std::vector<std::pair<std::string, Call*>> waiting;
  for (int i = 0; i < 100; ++i) {
    waiting.emplace_back("a", Enter(a_, 20 * kMega));
  }
  for (int i = 0; i < 3; ++i) waiting.emplace_back("b", Enter(b_, 20 * kMega));
  const auto order = Order(waiting, inside, 8);
  ASSERT_EQ(order.size(), 8u);
  // Both of those inside were of "b".
  EXPECT_EQ(std::count(order.begin(), order.begin() + 4, "a"), 3);
  EXPECT_EQ(std::count(order.begin(), order.end(), "b"), 3);
}

// A tenant's queue is bounded by its own part of the server.
TEST_F(TenantsTest, AFullQueueIsThatOfItsTenantAlone) {
  settings_.max_queue = absl::Seconds(2);
  for (int i = 0; i < 200; ++i) costs_.RecordCall(100, 1);
  std::vector<Call*> calls;
  do {
    ASSERT_LT(calls.size(), 100u);
    calls.push_back(Enter(a_, 100));
  } while (!calls.back()->refused);
  EXPECT_EQ(calls.back()->reason(), Reason::kQueueFull);
  // It need not even wait.
  Call* const other = Enter(b_, 100);
  EXPECT_TRUE(other->admitted);
  // Its second one would wait for the first, and for what "a" has meanwhile.
  EXPECT_FALSE(Enter(b_, 100)->refused);
}

TEST_F(TenantsTest, AFullWaitingRoomMakesRoomForOthers) {
  std::vector<Call*> inside, waiting;
  for (int i = 0; i < 2; ++i) inside.push_back(Enter(a_, 20 * kMega));
  // Each on a connection of its own.
  do {
    ASSERT_LT(waiting.size(), 1000u);
    waiting.push_back(Enter(a_, 20 * kMega, std::to_string(waiting.size())));
  } while (!waiting.back()->refused);
  waiting.pop_back();
  Call* const other = Enter(b_, 20 * kMega);
  EXPECT_FALSE(other->refused);
  EXPECT_EQ(waiting.back()->reason(), Reason::kMemoryBusy);
  EXPECT_FALSE(waiting.front()->refused);
  EXPECT_EQ(admission().snapshot().waiting_calls, waiting.size());
}

// Who waits for much memory is not passed for ever by others who want less.
TEST_F(TenantsTest, MemoryIsSavedUpForWhoseTurnItIs) {
  std::vector<Call*> inside, waiting;
  for (int i = 0; i < 4; ++i) inside.push_back(Enter(a_, 10 * kMega));
  for (const Call* call : inside) ASSERT_TRUE(call->admitted);
  for (int i = 0; i < 4; ++i) waiting.push_back(Enter(a_, 10 * kMega));
  Call* const large = Enter(b_, 20 * kMega);
  inside[0]->ticket.Release();
  EXPECT_FALSE(large->admitted);
  for (const Call* call : waiting) EXPECT_FALSE(call->admitted);
  // What is soon gone may pass.
  EXPECT_TRUE(Enter(a_, 300 << 10)->admitted);
  inside[1]->ticket.Release();
  EXPECT_TRUE(large->admitted);
}

// A tenant at its own limit does not hold up others.
TEST_F(TenantsTest, ATenantThatWaitsForItsOwnMemoryHoldsUpNobody) {
  const TenantPtr small = MakeTenant(3, {.name = "s", .max_bytes = 45 * kMega});
  const TenantPtr next = MakeTenant(4, {.name = "n"});
  Call* const first = Enter(small, 10 * kMega);
  Enter(a_, 20 * kMega);
  Call* const second = Enter(a_, 10 * kMega);
  // It waits for memory that "a" has, until its own tenant has too much.
  Call* const waiting = Enter(small, 10 * kMega);
  ASSERT_TRUE(first->ticket.Hold(MemoryKind::kAnswer, 6 * kMega).ok());
  Call* const other = Enter(next, 10 * kMega);
  ASSERT_FALSE(waiting->admitted || waiting->refused);
  ASSERT_FALSE(other->admitted || other->refused);
  second->ticket.Release();
  EXPECT_FALSE(waiting->admitted);
  EXPECT_TRUE(other->admitted);
  first->ticket.Release();
  EXPECT_TRUE(waiting->admitted);
}

TEST_F(TenantsTest, DrainingRefusesTheCallsOfAll) {
  std::vector<Call*> calls;
  for (const TenantPtr& tenant : {a_, a_, a_, b_, b_}) {
    calls.push_back(Enter(tenant, 20 * kMega));
  }
  EXPECT_EQ(admission().snapshot().waiting_calls, 3);
  admission().Drain();
  EXPECT_EQ(admission().snapshot().waiting_calls, 0);
  for (int i = 2; i < 5; ++i) EXPECT_EQ(calls[i]->reason(), Reason::kDraining);
}

}  // namespace
}  // namespace attention::server
