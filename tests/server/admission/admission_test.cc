#include "server/admission/admission.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/admission/cost_model.h"
#include "server/status.h"
#include "tests/support/messages.h"

namespace attention::server {
namespace {

using attention::testing::DetailsOf;

constexpr int64_t kMega = int64_t{1} << 20;

// A call that keeps what admission says of it.
class Call final : public Admission::Entrant {
 public:
  void Admitted(Admission::Ticket given) override {
    ticket = std::move(given);
    admitted = true;
  }
  void Refused(absl::Status given) override { refused = std::move(given); }
  void Expel(absl::Status given) override {
    if (!expelled) expelled = std::move(given);
  }
  void Hold() override { ++holds; }
  void Drop() override { --holds; }

  Admission::Ticket ticket;
  bool admitted = false;
  std::optional<absl::Status> refused, expelled;
  int holds = 0;
};

class AdmissionTest : public ::testing::Test {
 protected:
  Admission::Settings settings_ = [this] {
    Admission::Settings settings;
    settings.max_bytes = 100 * kMega;
    settings.max_request_bytes = 20 * kMega;
    settings.threads = 2;
    settings.min_upload_rate = 1000;
    settings.min_answer_rate = 1000;
    settings.received_bytes =
        [this](const std::string& peer) -> std::optional<int64_t> {
      const auto found = received_.find(peer);
      if (found == received_.end()) return std::nullopt;
      return found->second;
    };
    return settings;
  }();

  Admission& admission() {
    if (!admission_) admission_.emplace(settings_, costs_);
    return *admission_;
  }

  // Lets `call` in, or tries to.
  void Enter(Call& call, std::optional<int64_t> bytes,
             absl::Time deadline = absl::InfiniteFuture(),
             const std::string& peer = "") {
    admission().Enter(&call,
                      {.bytes = bytes, .deadline = deadline, .peer = peer});
  }

  int64_t Held() {
    int64_t all = 0;
    for (int64_t bytes : admission().snapshot().bytes) all += bytes;
    return all;
  }

  std::map<std::string, int64_t> received_;
  CostModel costs_;
  std::optional<Admission> admission_;
};

TEST_F(AdmissionTest, AnAnnouncedMessageHoldsItsBytesTwice) {
  Call call;
  Enter(call, 3 * kMega);
  ASSERT_TRUE(call.admitted);
  EXPECT_EQ(Held(), 6 * kMega);
  EXPECT_TRUE(call.ticket.ReadDone(3 * kMega).ok());
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kRequest, 0).ok());
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kAnswer, kMega).ok());
  EXPECT_EQ(Held(), 4 * kMega);
  EXPECT_EQ(admission().calls(), 1);
  call.ticket.Release();
  EXPECT_EQ(Held(), 0);
  EXPECT_EQ(admission().calls(), 0);
}

TEST_F(AdmissionTest, HeadersAreHeldUntilTheCallIsGone) {
  Call call;
  admission().Enter(&call, {.bytes = kMega, .header_bytes = 1000});
  ASSERT_TRUE(call.admitted);
  EXPECT_EQ(Held(), 2 * kMega + 1000);
  EXPECT_TRUE(call.ticket.ReadDone(10).ok());
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kTensors, 0).ok());
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kRequest, 0).ok());
  // Its answer may not be taken for long.
  call.ticket.Sending(10);
  EXPECT_EQ(Held(), 1000);
  call.ticket.Release();
  EXPECT_EQ(Held(), 0);
}

TEST_F(AdmissionTest, CallsWithoutRoomForTheirHeadersAreRefused) {
  std::vector<std::unique_ptr<Call>> calls;
  const auto enter = [&] {
    calls.push_back(std::make_unique<Call>());
    admission().Enter(calls.back().get(), {.bytes = 10, .header_bytes = kMega});
    return calls.back().get();
  };
  // Small ones, each of which is answered, and takes nothing of it.
  while (enter()->admitted) {
    ASSERT_LE(Held(), settings_.max_bytes);
    Admission::Ticket& ticket = calls.back()->ticket;
    ASSERT_TRUE(ticket.ReadDone(10).ok());
    ticket.Sending(10);
  }
  ASSERT_TRUE(calls.back()->refused);
  EXPECT_EQ(calls.back()->refused->code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_GT(calls.size(), 95);
  const int64_t before = Held();
  calls.front()->ticket.Release();
  EXPECT_EQ(Held(), before - kMega - 20);
  EXPECT_TRUE(enter()->admitted);
  // Those that are refused hold nothing.
  admission().Drain();
  calls.clear();
  EXPECT_EQ(Held(), 0);
}

TEST_F(AdmissionTest, CallsWaitForMemoryInTheOrderTheyCame) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 5; ++i) {
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back(), 20 * kMega);
  }
  // Two of them are 80 MiB.
  for (int i = 0; i < 5; ++i) EXPECT_EQ(calls[i]->admitted, i < 2) << i;
  EXPECT_LE(Held(), settings_.max_bytes);
  EXPECT_EQ(admission().snapshot().waiting_calls, 3);
  calls[1]->ticket.Release();
  EXPECT_TRUE(calls[2]->admitted);
  EXPECT_FALSE(calls[3]->admitted);
  // What is given back in part is used too.
  EXPECT_TRUE(calls[0]->ticket.ReadDone(20 * kMega).ok());
  EXPECT_TRUE(calls[0]->ticket.Hold(MemoryKind::kRequest, 0).ok());
  EXPECT_FALSE(calls[3]->admitted);
  EXPECT_TRUE(calls[0]->ticket.Hold(MemoryKind::kTensors, 0).ok());
  EXPECT_TRUE(calls[3]->admitted);
}

TEST_F(AdmissionTest, WithdrawnCallsAreNotHeardOfAgain) {
  Call first, second, third;
  Enter(first, 20 * kMega);
  Enter(second, 20 * kMega);
  Enter(third, 20 * kMega);
  EXPECT_TRUE(admission().Withdraw(&third));
  EXPECT_FALSE(admission().Withdraw(&third));
  EXPECT_FALSE(admission().Withdraw(&first));
  first.ticket.Release();
  second.ticket.Release();
  EXPECT_FALSE(third.admitted);
  EXPECT_FALSE(third.refused);
  EXPECT_EQ(admission().calls(), 0);
  EXPECT_EQ(Held(), 0);
}

TEST_F(AdmissionTest, AnnouncedMessagesAboveTheLimitAreRefused) {
  Call call;
  Enter(call, 20 * kMega + 1);
  ASSERT_TRUE(call.refused);
  EXPECT_EQ(ReasonOf(*call.refused), Reason::kRequestTooLarge);
  EXPECT_EQ(admission().calls(), 0);
}

TEST_F(AdmissionTest, GrowthIsRefusedWhereTheBudgetEnds) {
  Call call, other;
  Enter(call, kMega);
  Enter(other, kMega);
  ASSERT_TRUE(call.admitted && other.admitted);
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kScratch, 83 * kMega).ok());
  const absl::Status busy = call.ticket.Hold(MemoryKind::kAnswer, kMega);
  EXPECT_EQ(ReasonOf(busy), Reason::kMemoryBusy);
  EXPECT_TRUE(RetryDelay(busy).has_value());
  const absl::Status never = call.ticket.Hold(
      MemoryKind::kScratch, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ReasonOf(never), Reason::kMemoryTooLarge);
  EXPECT_FALSE(RetryDelay(never).has_value());
  // Nothing changed.
  EXPECT_EQ(Held(), 87 * kMega);
  other.ticket.Release();
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kAnswer, kMega).ok());
}

TEST_F(AdmissionTest, ATicketLeaksNothingWhereverItDies) {
  {
    Call call;
    Enter(call, kMega);
    Admission::Ticket moved = std::move(call.ticket);
    EXPECT_TRUE(moved.Hold(MemoryKind::kScratch, 7).ok());
    EXPECT_TRUE(moved.Expect(3, 0).ok());
    EXPECT_TRUE(call.ticket.Hold(MemoryKind::kScratch, 7).ok());  // Empty.
  }
  EXPECT_EQ(Held(), 0);
  EXPECT_EQ(admission().snapshot().queued_seconds, 0);
}

// A message of unknown size is charged for a small one at first.
TEST_F(AdmissionTest, UnknownReadsAreFewWhileTheyAreYoung) {
  settings_.max_bytes = 1000 * kMega;
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 40; ++i) {
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back(), std::nullopt);
  }
  const auto admitted = [&] {
    int count = 0;
    for (const auto& call : calls) count += call->admitted;
    return count;
  };
  EXPECT_EQ(admitted(), 16);
  EXPECT_LE(Held(), 16 * 2 * kMega + 24 * kMega / 8);
  // The next follow as messages come.
  EXPECT_TRUE(calls[0]->ticket.ReadDone(100).ok());
  EXPECT_EQ(admitted(), 17);
}

// One that takes long, while its connection goes on receiving, may be as large
// as any.
TEST_F(AdmissionTest, FastReadsAreChargedForTheLargestMessage) {
  received_["peer"] = 0;
  Call call;
  Enter(call, std::nullopt, absl::InfiniteFuture(), "peer");
  EXPECT_LT(Held(), 3 * kMega);
  received_["peer"] = 5 * kMega;
  admission().Tick(absl::Now() + absl::Milliseconds(20), 0);
  EXPECT_EQ(Held(), 40 * kMega);
  // One that stands still is charged for what has come.
  admission().Tick(absl::Now() + absl::Milliseconds(40), 0);
  EXPECT_LT(Held(), 13 * kMega);
  EXPECT_FALSE(call.expelled);
}

TEST_F(AdmissionTest, TheYoungestOfTooManyFastReadsHasToGo) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 4; ++i) {
    received_[std::to_string(i)] = 0;
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back(), std::nullopt, absl::InfiniteFuture(),
          std::to_string(i));
  }
  for (auto& [peer, bytes] : received_) bytes = 5 * kMega;
  admission().Tick(absl::Now() + absl::Milliseconds(20), 20 * kMega);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(calls[i]->expelled.has_value(), i >= 2) << i;
    EXPECT_EQ(calls[i]->holds, 0);
  }
  EXPECT_EQ(ReasonOf(*calls[3]->expelled), Reason::kMemoryBusy);
  EXPECT_LE(Held(), settings_.max_bytes);
}

// Slow ones may be many, until others need what they hold.
TEST_F(AdmissionTest, StalledReadsMakeRoomForThoseWhoWait) {
  std::vector<std::unique_ptr<Call>> stalled;
  absl::Time now = absl::Now();
  for (int i = 0; i < 16; ++i) {
    received_[std::to_string(i)] = 0;
    stalled.push_back(std::make_unique<Call>());
    Enter(*stalled.back(), std::nullopt, absl::InfiniteFuture(),
          std::to_string(i));
  }
  for (int step = 0; step < 10; ++step) {
    now += absl::Milliseconds(101);
    admission().Tick(now, 0);
    for (auto& [peer, bytes] : received_) bytes += 200 << 10;
  }
  for (const auto& call : stalled) EXPECT_FALSE(call->expelled);
  Call large;
  Enter(large, 20 * kMega);
  EXPECT_FALSE(large.admitted || large.refused);
  admission().Tick(now + absl::Seconds(1), 0);
  admission().Tick(now + absl::Seconds(3), 0);
  int gone = 0;
  for (const auto& call : stalled) gone += call->expelled.has_value();
  EXPECT_GT(gone, 0);
  EXPECT_LT(gone, 16);
  EXPECT_TRUE(large.admitted);
}

// What is charged stays within the budget.
TEST_F(AdmissionTest, TheYoungestOfTooManySlowReadsHasToGo) {
  std::vector<std::unique_ptr<Call>> slow;
  absl::Time now = absl::Now();
  for (int i = 0; i < 16; ++i) {
    received_[std::to_string(i)] = 0;
    slow.push_back(std::make_unique<Call>());
    Enter(*slow.back(), std::nullopt, absl::InfiniteFuture(),
          std::to_string(i));
  }
  for (int step = 0; step < 30; ++step) {
    now += absl::Milliseconds(101);
    admission().Tick(now, 0);
    EXPECT_LE(Held(), settings_.max_bytes);
    for (auto& [peer, bytes] : received_) bytes += 200 << 10;
  }
  EXPECT_FALSE(slow[0]->expelled);
  EXPECT_TRUE(slow[15]->expelled);
}

// Who says that a message is small and sends a large one is found out.
TEST_F(AdmissionTest, MoreThanWasAnnouncedIsChargedForTheLargestMessage) {
  received_["liar"] = received_["honest"] = 0;
  Call liar, honest;
  Enter(liar, 100, absl::InfiniteFuture(), "liar");
  Enter(honest, 5 * kMega, absl::InfiniteFuture(), "honest");
  received_["liar"] = received_["honest"] = 5 * kMega;
  admission().Tick(absl::Now() + absl::Milliseconds(20), 0);
  EXPECT_EQ(Held(), 2 * (20 + 5) * kMega);
}

TEST_F(AdmissionTest, CallsThatSayTheyAreSmallFindRoomAmongLargeOnes) {
  // All that large ones may have, and all who may wait for it.
  std::vector<std::unique_ptr<Call>> large;
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    large.push_back(std::make_unique<Call>());
    Enter(*large.back(), 20 * kMega, absl::InfiniteFuture(), std::to_string(i));
    refused += large.back()->refused.has_value();
  }
  EXPECT_GT(refused, 0);
  Call other;
  Enter(other, std::nullopt);
  ASSERT_TRUE(other.refused);
  EXPECT_EQ(ReasonOf(*other.refused), Reason::kMemoryBusy);
  std::vector<std::unique_ptr<Call>> small;
  for (int i = 0; i < 10; ++i) {
    small.push_back(std::make_unique<Call>());
    Enter(*small.back(), 1000);
    ASSERT_TRUE(small.back()->admitted);
    ASSERT_TRUE(small.back()->ticket.ReadDone(1000).ok());
    EXPECT_TRUE(small.back()->ticket.Hold(MemoryKind::kScratch, 50000).ok());
  }
  EXPECT_LE(Held(), settings_.max_bytes);
}

// Where one connection's calls fill the waiting room, another's first call is
// let in instead of the last of those, and is read before the others.
TEST_F(AdmissionTest, AConnectionWithManyCallsMakesWayForOneWithFew) {
  std::vector<std::unique_ptr<Call>> many;
  for (int i = 0; i < 300; ++i) {
    many.push_back(std::make_unique<Call>());
    Enter(*many.back(), 10 * kMega, absl::InfiniteFuture(), "many");
  }
  const auto refused = [&] {
    int count = 0;
    for (const auto& call : many) count += call->refused.has_value();
    return count;
  };
  const int before = refused();
  EXPECT_GT(before, 0);
  Call one;
  Enter(one, 10 * kMega, absl::InfiniteFuture(), "one");
  EXPECT_FALSE(one.refused);
  EXPECT_EQ(refused(), before + 1);
  ASSERT_TRUE(many[0]->admitted);
  many[0]->ticket.Release();
  EXPECT_TRUE(one.admitted);
}

TEST_F(AdmissionTest, ASmallCallPassesALargeOneThatWaitsForMemory) {
  std::vector<std::unique_ptr<Call>> large;
  for (int i = 0; i < 3; ++i) {
    large.push_back(std::make_unique<Call>());
    Enter(*large.back(), 20 * kMega);
  }
  EXPECT_FALSE(large[2]->admitted);
  Call small, unknown;
  Enter(small, kMega / 4);
  Enter(unknown, std::nullopt);
  EXPECT_TRUE(small.admitted);
  EXPECT_TRUE(unknown.admitted);
  EXPECT_FALSE(large[2]->admitted);
}

TEST_F(AdmissionTest, SlowReadsHaveToGoWhenTheyHoldTooMuch) {
  received_["a"] = received_["b"] = 0;
  Call first, second;
  Enter(first, std::nullopt, absl::InfiniteFuture(), "a");
  Enter(second, std::nullopt, absl::InfiniteFuture(), "b");
  const absl::Time now = absl::Now();
  // An eighth of the budget is for small reads alone.
  admission().Tick(now + absl::Milliseconds(20), 50 * kMega);
  EXPECT_FALSE(first.expelled || second.expelled);
  admission().Tick(now + absl::Milliseconds(140), 88 * kMega);
  EXPECT_TRUE(second.expelled);
}

TEST_F(AdmissionTest, SlowUploadsAndSlowReadersHaveToGo) {
  received_["slow"] = received_["steady"] = 0;
  const absl::Time now = absl::Now();
  Call slow, steady, unread;
  Enter(slow, kMega, absl::InfiniteFuture(), "slow");
  Enter(steady, kMega, absl::InfiniteFuture(), "steady");
  Enter(unread, kMega);
  ASSERT_TRUE(unread.ticket.ReadDone(kMega).ok());
  unread.ticket.Sending(1000);
  for (int second = 1; second <= 30; ++second) {
    received_["slow"] += 900;
    received_["steady"] += 1100;
    admission().Tick(now + absl::Seconds(second), 0);
  }
  ASSERT_TRUE(slow.expelled);
  EXPECT_EQ(ReasonOf(*slow.expelled), Reason::kSlowUpload);
  EXPECT_FALSE(steady.expelled);
  ASSERT_TRUE(unread.expelled);
  EXPECT_EQ(ReasonOf(*unread.expelled), Reason::kSlowReader);
}

TEST_F(AdmissionTest, WhatComesOnTheSameConnectionIsNotProgress) {
  received_["shared"] = 0;
  const absl::Time now = absl::Now();
  Call stalled;
  Enter(stalled, std::nullopt, absl::InfiniteFuture(), "shared");
  for (int i = 1; i < 5; ++i) {
    Call other;
    Enter(other, kMega, absl::InfiniteFuture(), "shared");
    ASSERT_TRUE(other.admitted);
    received_["shared"] += kMega;
    ASSERT_TRUE(other.ticket.ReadDone(kMega).ok());
  }
  admission().Tick(now + absl::Milliseconds(20), 0);
  admission().Tick(now + absl::Milliseconds(140), 0);
  EXPECT_LT(Held(), 3 * kMega);
}

// A message that was nearly there when another began is not counted against the
// bytes of the other.
TEST_F(AdmissionTest, MessagesThatBeganEarlierTakeNothingOffLaterOnes) {
  received_["shared"] = 0;
  const absl::Time now = absl::Now();
  Call early, late;
  Enter(early, 20 * kMega, absl::InfiniteFuture(), "shared");
  received_["shared"] = 19 * kMega;
  Enter(late, std::nullopt, absl::InfiniteFuture(), "shared");
  received_["shared"] = 20 * kMega;
  ASSERT_TRUE(early.ticket.ReadDone(20 * kMega).ok());
  early.ticket.Release();
  admission().Tick(now + absl::Milliseconds(20), 0);
  admission().Tick(now + absl::Milliseconds(140), 0);
  EXPECT_GT(Held(), 0);
  EXPECT_LT(Held(), 3 * kMega);
}

// Saying that a message has no bytes does not let in more calls than memory.
TEST_F(AdmissionTest, EveryCallHoldsSomething) {
  std::vector<std::unique_ptr<Call>> calls;
  const absl::Time now = absl::Now();
  received_["peer"] = 0;
  for (int i = 0; i < 2000; ++i) {
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back(), 0, absl::InfiniteFuture(), "peer");
    admission().Tick(now + i * absl::Milliseconds(20), 0);
  }
  int64_t inside = 0;
  for (const auto& call : calls) inside += call->admitted && !call->expelled;
  EXPECT_LE(inside, settings_.max_bytes / (100 << 10));
  EXPECT_LE(Held(), settings_.max_bytes);
}

TEST_F(AdmissionTest, AMessageThatCameTooLateIsNotWorkedOn) {
  received_["peer"] = 0;
  const absl::Time now = absl::Now();
  Call call;
  Enter(call, kMega, now + absl::Seconds(1), "peer");
  admission().Tick(now + absl::Seconds(2), 0);
  ASSERT_TRUE(call.expelled);
  EXPECT_EQ(call.ticket.ReadDone(kMega), *call.expelled);
  EXPECT_EQ(Held(), 0);
}

// One connection's trickle is no progress of each of many uploads.
TEST_F(AdmissionTest, AConnectionThatTricklesIsStalledForAllItsUploads) {
  received_["many"] = 0;
  absl::Time now = absl::Now();
  std::vector<std::unique_ptr<Call>> many;
  for (int i = 0; i < 8; ++i) {
    many.push_back(std::make_unique<Call>());
    Enter(*many.back(), 5 * kMega, absl::InfiniteFuture(), "many");
  }
  for (int i = 0; i < 10; ++i) {
    now += absl::Milliseconds(101);
    received_["many"] += 20 << 10;
    admission().Tick(now, 0);
  }
  EXPECT_NEAR(admission().snapshot().queued_seconds, 0, 1e-9);
  Call waits;
  Enter(waits, 20 * kMega, absl::InfiniteFuture(), "one");
  admission().Tick(absl::Now() + absl::Seconds(3), 0);
  EXPECT_TRUE(waits.admitted);
}

// Who is held back, because much work of its size is inside, holds back nobody
// with less to do.
TEST_F(AdmissionTest, AHeldBackCallLetsLighterOnesPass) {
  costs_.RecordCall(300 << 10, 1);
  std::vector<std::unique_ptr<Call>> heavy;
  for (int i = 0; i < 5; ++i) {
    heavy.push_back(std::make_unique<Call>());
    Enter(*heavy.back(), 300 << 10);
  }
  EXPECT_FALSE(heavy[4]->admitted);
  Call light;
  costs_.RecordCall(200 << 10, 0.001);
  Enter(light, 200 << 10);
  EXPECT_TRUE(light.admitted);
}

TEST_F(AdmissionTest, WhoWaitedForLongerThanTheQueueLimitIsRefused) {
  settings_.max_queue = absl::Seconds(2);
  Call inside, other, waiting;
  Enter(inside, 20 * kMega);
  Enter(other, 20 * kMega);
  Enter(waiting, 20 * kMega);
  ASSERT_FALSE(waiting.admitted || waiting.refused);
  admission().Tick(absl::Now() + absl::Seconds(3), 0);
  ASSERT_TRUE(waiting.refused);
  EXPECT_EQ(ReasonOf(*waiting.refused), Reason::kQueueFull);
}

TEST_F(AdmissionTest, DeadlinesEndWaitingAndReading) {
  const absl::Time now = absl::Now();
  Call reading, other, waiting;
  Enter(reading, 20 * kMega, now + absl::Seconds(20));
  Enter(other, 20 * kMega);
  Enter(waiting, 20 * kMega, now + absl::Seconds(20));
  EXPECT_FALSE(waiting.admitted);
  admission().Tick(now + absl::Seconds(21), 0);
  ASSERT_TRUE(reading.expelled);
  EXPECT_EQ(reading.expelled->code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(waiting.refused);
  EXPECT_EQ(waiting.refused->code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(AdmissionTest, AFullQueueRefusesUnread) {
  settings_.max_queue = absl::Seconds(2);
  std::vector<std::unique_ptr<Call>> calls;
  // Calls of 1.25 seconds each, on two threads.
  for (int i = 0; i < 4; ++i) {
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back(), 100);
    ASSERT_TRUE(calls.back()->admitted) << i;
    ASSERT_TRUE(calls.back()->ticket.Expect(1.25, 0).ok());
    costs_.RecordCall(100, 1);
  }
  for (int i = 0; i < 200; ++i) costs_.RecordCall(100, 1);
  Call late;
  Enter(late, std::nullopt);
  ASSERT_TRUE(late.refused);
  EXPECT_EQ(ReasonOf(*late.refused), Reason::kQueueFull);
  EXPECT_GE(*RetryDelay(*late.refused), absl::Seconds(1));
  // When they are done there is room.
  calls.clear();
  Call next;
  Enter(next, std::nullopt);
  EXPECT_TRUE(next.admitted);
}

// A small call passes large ones, so that they do not count as its queue.
TEST_F(AdmissionTest, LargeCallsAreNoQueueForSmallOnes) {
  settings_.max_queue = absl::Seconds(2);
  Call large, small;
  Enter(large, 100);
  ASSERT_TRUE(large.ticket.Expect(1000, 0).ok());
  Enter(small, std::nullopt);
  EXPECT_TRUE(small.admitted);
}

TEST_F(AdmissionTest, WhatCannotMeetItsDeadlineIsRefused) {
  Call call;
  Enter(call, 100, absl::Now() + absl::Seconds(10));
  EXPECT_TRUE(call.ticket.Expect(10, 0).ok());
  const absl::Status refused = call.ticket.Expect(1000, 0);
  EXPECT_EQ(ReasonOf(refused), Reason::kDeadlineTooClose);
}

TEST_F(AdmissionTest, DrainingRefusesWhatIsNotIn) {
  Call inside, other, waiting, late;
  Enter(inside, 20 * kMega);
  Enter(other, 20 * kMega);
  Enter(waiting, 20 * kMega);
  admission().Drain();
  ASSERT_TRUE(waiting.refused);
  EXPECT_EQ(waiting.refused->code(), absl::StatusCode::kUnavailable);
  Enter(late, 1);
  ASSERT_TRUE(late.refused);
  EXPECT_EQ(ReasonOf(*late.refused), Reason::kDraining);
  EXPECT_TRUE(inside.ticket.Hold(MemoryKind::kScratch, 10).ok());
}

TEST_F(AdmissionTest, WaitsUntilTheLastCallHasLeft) {
  auto call = std::make_unique<Call>();
  Enter(*call, 1);
  admission().Drain();
  std::thread waiter([&] { EXPECT_TRUE(admission().WaitUntilIdle()); });
  call.reset();
  waiter.join();
}

TEST_F(AdmissionTest, ADeadlineEndsTheWait) {
  Call call;
  Enter(call, 1);
  admission().Drain();
  std::thread waiter([&] { EXPECT_FALSE(admission().WaitUntilIdle()); });
  admission().SetDeadline(absl::InfinitePast());
  waiter.join();
}

// Lets `count` calls of 100 bytes in, or tries to.
std::vector<std::unique_ptr<Call>> EnterMany(Admission& admission, int count) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < count; ++i) {
    calls.push_back(std::make_unique<Call>());
    admission.Enter(
        calls.back().get(),
        {.bytes = 100, .deadline = absl::InfiniteFuture(), .peer = ""});
  }
  return calls;
}

int CountAdmitted(const std::vector<std::unique_ptr<Call>>& calls) {
  int count = 0;
  for (const auto& call : calls) count += call->admitted;
  return count;
}

// Until there are two per thread and at least four, calls are read however long
// they take; what is more waits.
TEST_F(AdmissionTest, LongCallsBeyondAFewWaitUnread) {
  costs_.RecordCall(100, 1);  // second
  const auto calls = EnterMany(admission(), 10);
  EXPECT_EQ(CountAdmitted(calls), 4);
  EXPECT_EQ(admission().snapshot().waiting_calls, 6);
  // A short one passes them.
  costs_.RecordCall(1000, 0.001);
  Call shorter;
  Enter(shorter, 1000);
  EXPECT_TRUE(shorter.admitted);
  shorter.ticket.Release();
  // Whose answer is being sent does not count any more.
  ASSERT_TRUE(calls[0]->ticket.ReadDone(100).ok());
  EXPECT_EQ(CountAdmitted(calls), 4);
  calls[0]->ticket.Sending(100);
  EXPECT_EQ(CountAdmitted(calls), 5);
  calls[1]->ticket.Release();
  EXPECT_EQ(CountAdmitted(calls), 6);
}

TEST_F(AdmissionTest, ManyThreadsHaveTwoLongCallsEach) {
  settings_.threads = 8;
  costs_.RecordCall(100, 1);
  const auto calls = EnterMany(admission(), 20);
  EXPECT_EQ(CountAdmitted(calls), 16);
}

TEST_F(AdmissionTest, ShortCallsAreReadUntilTheyAre100MillisecondsOfWork) {
  costs_.RecordCall(100, 0.03);
  const auto calls = EnterMany(admission(), 20);
  // Six take 90 ms on two threads, so that one more is read.
  EXPECT_EQ(CountAdmitted(calls), 7);
  // One turns out to be short.
  ASSERT_TRUE(calls[0]->ticket.ReadDone(100).ok());
  ASSERT_TRUE(calls[0]->ticket.Expect(0.001, 0).ok());
  admission().Tick(absl::Now(), 0);
  EXPECT_EQ(CountAdmitted(calls), 8);
}

TEST_F(AdmissionTest, StalledUploadsAreNoWork) {
  const absl::Time now = absl::Now();
  costs_.RecordCall(100, 1);
  received_["stalled"] = 0;
  std::vector<std::unique_ptr<Call>> stalled;
  for (int i = 0; i < 4; ++i) {
    stalled.push_back(std::make_unique<Call>());
    Enter(*stalled.back(), 100, absl::InfiniteFuture(), "stalled");
    ASSERT_TRUE(stalled.back()->admitted);
  }
  Call other;
  Enter(other, 100);
  admission().Tick(now + absl::Milliseconds(100), 0);
  EXPECT_FALSE(other.admitted);
  admission().Tick(now + absl::Seconds(1), 0);
  EXPECT_TRUE(other.admitted);
  // They go on, and count again.
  received_["stalled"] += 100000;
  admission().Tick(now + absl::Seconds(2), 0);
  Call late;
  Enter(late, 100);
  EXPECT_TRUE(admission().Withdraw(&late));
  for (const auto& call : stalled) EXPECT_FALSE(call->expelled);
}

// The calls before it turned out to take longer than was foretold.
TEST_F(AdmissionTest, WhoseTurnComesTooLateIsRefusedUnread) {
  costs_.RecordCall(100, 9);
  const auto first = EnterMany(admission(), 4);
  Call hasty, patient;
  Enter(hasty, 100, absl::Now() + absl::Seconds(45));
  Enter(patient, 100);
  for (const auto& call : first) {
    ASSERT_TRUE(call->admitted);
    ASSERT_TRUE(call->ticket.Expect(32, 0).ok());
  }
  EXPECT_FALSE(hasty.admitted || hasty.refused);
  EXPECT_FALSE(patient.admitted);
  // Three of 32 s and its own 9 s take two threads 52.5 s.
  first[0]->ticket.Release();
  EXPECT_FALSE(hasty.admitted);
  ASSERT_TRUE(hasty.refused);
  EXPECT_EQ(ReasonOf(*hasty.refused), Reason::kDeadlineTooClose);
  EXPECT_TRUE(patient.admitted);
}

// Calls of 100 thread-milliseconds each, 20 of them in at any time.
class SpeedTest : public AdmissionTest {
 protected:
  SpeedTest() { costs_.RecordCall(100, 0.1); }

  void Fill() {
    while (calls_.size() < 20) {
      calls_.push_back(std::make_unique<Call>());
      Enter(*calls_.back(), 100);
    }
  }

  // Answers `count` calls, each as another comes, and lets `time` pass.
  void Answer(int count, absl::Duration time) {
    for (int i = 0; i < count; ++i) {
      const auto first =
          std::find_if(calls_.begin(), calls_.end(),
                       [](const auto& call) { return call->admitted; });
      ASSERT_NE(first, calls_.end());
      ASSERT_TRUE((*first)->ticket.ReadDone(100).ok());
      (*first)->ticket.Sending(100);
      calls_.erase(first);
      Fill();
    }
    now_ += time;
    admission().Tick(now_, 0);
  }

  // What a newcomer is told that has 4 s: nothing if it may wait.
  std::optional<absl::Status> RefusalOfOneMore() {
    Call call;
    Enter(call, 100, absl::Now() + absl::Seconds(4));
    EXPECT_FALSE(call.admitted);
    EXPECT_EQ(admission().Withdraw(&call), !call.refused);
    return call.refused;
  }

  absl::Time now_ = absl::Now();
  std::vector<std::unique_ptr<Call>> calls_;
};

TEST_F(SpeedTest, ANewcomerWaitsLongerWhereWorkIsDoneSlowly) {
  Fill();
  // One second's work for two threads.
  EXPECT_EQ(RefusalOfOneMore(), std::nullopt);
  // Eight calls every 1.6 seconds: half a thread's work.
  for (int i = 0; i < 10; ++i) Answer(8, absl::Milliseconds(1600));
  const auto refused = RefusalOfOneMore();
  ASSERT_TRUE(refused);
  EXPECT_EQ(ReasonOf(*refused), Reason::kDeadlineTooClose);
  // It would wait for about 3.7 s, and is to try again after half of that.
  EXPECT_GT(*RetryDelay(*refused), absl::Milliseconds(1700));
  EXPECT_LT(*RetryDelay(*refused), absl::Milliseconds(2000));
  // As fast as was foretold again.
  for (int i = 0; i < 10; ++i) Answer(8, absl::Milliseconds(400));
  EXPECT_EQ(RefusalOfOneMore(), std::nullopt);
}

TEST_F(SpeedTest, FewSlowCallsSayNothing) {
  Fill();
  for (int i = 0; i < 7; ++i) Answer(1, absl::Milliseconds(150));
  EXPECT_EQ(RefusalOfOneMore(), std::nullopt);
}

TEST_F(SpeedTest, AServerThatHoldsNobodyBackIsAsFastAsItsThreads) {
  Fill();
  for (int i = 0; i < 10; ++i) Answer(8, absl::Milliseconds(1600));
  ASSERT_TRUE(RefusalOfOneMore());
  calls_.clear();
  for (int i = 0; i < 10; ++i) admission().Tick(now_ += absl::Seconds(1), 0);
  Fill();
  EXPECT_EQ(RefusalOfOneMore(), std::nullopt);
}

TEST(CostModelTest, LearnsFromWhatWasMeasured) {
  CostModel costs;
  for (int i = 0; i < 100; ++i) {
    costs.RecordCompute(WorkClass::kFloat, 1e9, 0.5);
    costs.RecordCall(100, 0.5);
  }
  EXPECT_NEAR(costs.ComputeSeconds(WorkClass::kFloat, 2e9), 1, 0.05);
  EXPECT_NEAR(costs.CallSeconds({}), 0.5, 0.05);
  // Other classes keep theirs.
  EXPECT_LT(costs.ComputeSeconds(WorkClass::kDouble, 2e9), 0.2);
  double cpu = 0;
  int64_t bytes = 0;
  for (int i = 0; i < 100; ++i) {
    cpu += 0.1;
    bytes += 100 * kMega;
    costs.RecordTotals(cpu, 0, bytes);
  }
  EXPECT_NEAR(costs.TransferSeconds(1000 * kMega), 1, 0.1);
}

TEST(CostModelTest, AHugeCallDoesNotMakeTheOthersHuge) {
  CostModel costs;
  for (int i = 0; i < 200; ++i) costs.RecordCall(100, 0.001);
  costs.RecordCall(100, 1000);
  EXPECT_LT(costs.CallSeconds({}), 0.002);
}

// What is held for bodies over HTTP.
TEST_F(AdmissionTest, WhatIsHeldOutsideCallsComesOutOfTheBudget) {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  Admission& held = admission();
  EXPECT_TRUE(held.HoldOutside(0, kAll, 0, 40 * kMega));
  EXPECT_EQ(held.snapshot().outside_bytes, 40 * kMega);
  // Never more than half.
  EXPECT_FALSE(held.HoldOutside(0, kAll, 0, 11 * kMega));
  EXPECT_EQ(held.snapshot().outside_bytes, 40 * kMega);
  // Calls have what is left, and wait for the rest.
  Call first, second;
  Enter(first, 20 * kMega);
  EXPECT_TRUE(first.admitted);
  Enter(second, 20 * kMega);
  EXPECT_FALSE(second.admitted);
  EXPECT_FALSE(held.HoldOutside(0, kAll, 0, 10 * kMega));
  EXPECT_TRUE(held.HoldOutside(0, kAll, 40 * kMega, 0));
  EXPECT_TRUE(second.admitted);
  EXPECT_EQ(held.snapshot().outside_bytes, 0);
}

TEST_F(AdmissionTest, ATenantLeavesHalfOfThatToOthers) {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  Admission& held = admission();
  EXPECT_TRUE(held.HoldOutside(1, kAll, 0, 25 * kMega));
  EXPECT_FALSE(held.HoldOutside(1, kAll, 0, 1));
  EXPECT_FALSE(held.HoldOutside(1, kAll, 1 * kMega, 2 * kMega));
  EXPECT_TRUE(held.HoldOutside(2, kAll, 0, 20 * kMega));
  // Its own limit is lower.
  EXPECT_FALSE(held.HoldOutside(3, 1 * kMega, 0, 2 * kMega));
  EXPECT_TRUE(held.HoldOutside(1, kAll, 25 * kMega, 0));
  EXPECT_TRUE(held.HoldOutside(1, kAll, 0, 25 * kMega));
}

}  // namespace
}  // namespace attention::server
