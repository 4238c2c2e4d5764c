// What admission believes of a stream, whose work comes at its client's pace.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/auth/tenant.h"
#include "server/status.h"

namespace attention::server {
namespace {

constexpr int64_t kMega = int64_t{1} << 20;

class Call final : public Admission::Entrant {
 public:
  void Admitted(Admission::Ticket given) override {
    ticket = std::move(given);
    admitted = true;
  }
  void Refused(absl::Status given) override { refused = std::move(given); }
  void Expel(absl::Status given) override {
    expelled = std::move(given);
    ++expulsions;
  }
  void Hold() override {}
  void Drop() override {}

  Reason expelled_for() const {
    return expelled ? ReasonOf(*expelled) : Reason::kNone;
  }

  Admission::Ticket ticket;
  bool admitted = false;
  std::optional<absl::Status> refused, expelled;
  int expulsions = 0;
};

class StreamsTest : public ::testing::Test {
 protected:
  StreamsTest() : admission_(Settings(), costs_) {}
  ~StreamsTest() override { admission_.Drain(); }

  Admission::Settings Settings() {
    Admission::Settings settings;
    settings.max_bytes = 100 * kMega;
    settings.max_request_bytes = 20 * kMega;
    settings.max_chunk_bytes = kMega;
    settings.threads = 2;
    settings.min_upload_rate = 1000;
    settings.min_answer_rate = 1000;
    settings.max_queue = absl::Seconds(2);
    settings.received_bytes = [this](const std::string& peer) {
      const auto found = received_on_.find(peer);
      return found == received_on_.end() ? received_ : found->second;
    };
    return settings;
  }

  // A call whose header has come.
  void Enter(Call& call, absl::Time deadline = absl::InfiniteFuture(),
             TenantPtr tenant = nullptr) {
    admission_.Enter(&call,
                     {.bytes = 1000, .deadline = deadline, .tenant = tenant});
    ASSERT_TRUE(call.admitted);
    ASSERT_TRUE(call.ticket.ReadDone(1000).ok());
  }
  double Queued() const { return admission_.snapshot().queued_seconds; }
  void TickAfter(absl::Duration time) {
    admission_.Tick(absl::Now() + time, 0);
  }

  CostModel costs_;
  // By connection, and of all others.
  std::map<std::string, int64_t> received_on_;
  std::optional<int64_t> received_ = 0;
  Admission admission_;
};

TEST_F(StreamsTest, OnlyWhatHasComeStandsBeforeOthers) {
  Call stream, other;
  Enter(stream);
  EXPECT_TRUE(stream.ticket.ExpectStream(1000, 1, 0).ok());
  EXPECT_NEAR(Queued(), 0, 1e-9);
  stream.ticket.Arrived(3);
  stream.ticket.Arrived(3);
  EXPECT_NEAR(Queued(), 6, 1e-9);
  // As much as the stream has there.
  Enter(other);
  EXPECT_EQ(ReasonOf(other.ticket.Expect(6, 0)), Reason::kQueueFull);
  other.ticket.Release();
  stream.ticket.WorkedOff(3);
  EXPECT_NEAR(Queued(), 3, 1e-9);
  Call next;
  Enter(next);
  EXPECT_TRUE(next.ticket.Expect(3, 0).ok());
  stream.ticket.WorkedOff(3);
  EXPECT_NEAR(Queued(), 3, 1e-9);
  stream.ticket.Release();
  next.ticket.Release();
  EXPECT_NEAR(Queued(), 0, 1e-9);
}

TEST_F(StreamsTest, WhatCannotEndBeforeItsDeadlineIsRefused) {
  Call stream;
  Enter(stream, absl::Now() + absl::Seconds(10));
  EXPECT_EQ(ReasonOf(stream.ticket.ExpectStream(100, 1, 0)),
            Reason::kDeadlineTooClose);
}

// With its header: how fast it comes is not the tenant's limit.
TEST_F(StreamsTest, ItsTenantPaysForAllOfItsWork) {
  auto tenant = std::make_shared<Tenant>();
  tenant->id = 1;
  tenant->max_work = 100;
  Call stream, next;
  Enter(stream, absl::InfiniteFuture(), tenant);
  EXPECT_TRUE(stream.ticket.ExpectStream(1, 1, 1000).ok());
  admission_.Enter(&next, {.bytes = 1000, .tenant = tenant});
  ASSERT_TRUE(next.refused);
  EXPECT_EQ(ReasonOf(*next.refused), Reason::kTenantWork);
}

TEST_F(StreamsTest, ASilentClientLosesIt) {
  Call stream;
  Enter(stream);
  ASSERT_TRUE(stream.ticket.ExpectStream(1, 1, 0).ok());
  // Nothing is awaited of it.
  TickAfter(absl::Hours(1));
  EXPECT_FALSE(stream.expelled);
  stream.ticket.AwaitMessage();
  TickAfter(absl::Seconds(9));
  EXPECT_FALSE(stream.expelled);
  TickAfter(absl::Seconds(11));
  EXPECT_EQ(stream.expelled_for(), Reason::kSlowUpload);
}

TEST_F(StreamsTest, AClientThatTakesNothingLosesIt) {
  Call stream;
  Enter(stream);
  ASSERT_TRUE(stream.ticket.ExpectStream(1, 1, 0).ok());
  stream.ticket.Answering(5000);
  TickAfter(absl::Seconds(14));
  EXPECT_FALSE(stream.expelled);
  stream.ticket.Answering(0);
  TickAfter(absl::Seconds(16));
  EXPECT_FALSE(stream.expelled);
  stream.ticket.Answering(5000);
  TickAfter(absl::Seconds(16));
  EXPECT_EQ(stream.expelled_for(), Reason::kSlowReader);
}

TEST_F(StreamsTest, TheDeadlineEndsItWhateverItWaitsFor) {
  Call stream;
  Enter(stream, absl::Now() + absl::Seconds(100));
  ASSERT_TRUE(stream.ticket.ExpectStream(1, 1, 0).ok());
  TickAfter(absl::Seconds(101));
  ASSERT_TRUE(stream.expelled);
  EXPECT_EQ(stream.expelled->code(), absl::StatusCode::kDeadlineExceeded);
}

// What it holds is freed before anybody else gets it.
TEST_F(StreamsTest, WhoLeavesIsLeftAloneAndStaysCharged) {
  Call leaving, waiting;
  Enter(leaving);
  ASSERT_TRUE(leaving.ticket.ExpectStream(1, 1, 0).ok());
  ASSERT_TRUE(leaving.ticket.Hold(MemoryKind::kTensors, 80 * kMega).ok());
  leaving.ticket.AwaitMessage();
  leaving.ticket.Answering(5000);
  leaving.ticket.Leave();
  admission_.Enter(&waiting, {.bytes = 20 * kMega});
  TickAfter(absl::Seconds(1));
  EXPECT_FALSE(leaving.expelled);
  EXPECT_FALSE(waiting.admitted);
  leaving.ticket.Release();
  EXPECT_TRUE(waiting.admitted);
}

// Who takes no status either.
TEST_F(StreamsTest, WhatDoesNotGoIsExpelledOnceMore) {
  Call stream;
  Enter(stream);
  ASSERT_TRUE(stream.ticket.ExpectStream(1, 1, 0).ok());
  stream.ticket.AwaitMessage();
  TickAfter(absl::Seconds(11));
  EXPECT_EQ(stream.expulsions, 1);
  TickAfter(absl::Seconds(20));
  EXPECT_EQ(stream.expulsions, 1);
  TickAfter(absl::Seconds(22));
  EXPECT_EQ(stream.expulsions, 2);
  TickAfter(absl::Hours(1));
  EXPECT_EQ(stream.expulsions, 2);
}

// It keeps its memory until somebody waits for it.
TEST_F(StreamsTest, AStalledOneMakesWay) {
  Call stalled, busy, waiting;
  for (Call* call : {&stalled, &busy}) {
    Enter(*call);
    ASSERT_TRUE(call->ticket.ExpectStream(1, 1, 0).ok());
    ASSERT_TRUE(call->ticket.Hold(MemoryKind::kTensors, 40 * kMega).ok());
  }
  stalled.ticket.AwaitMessage();
  TickAfter(absl::Seconds(2));
  EXPECT_FALSE(stalled.expelled);
  admission_.Enter(&waiting, {.bytes = 20 * kMega});
  EXPECT_FALSE(waiting.admitted);
  TickAfter(absl::Seconds(2));
  EXPECT_EQ(stalled.expelled_for(), Reason::kMemoryBusy);
  EXPECT_FALSE(busy.expelled);
  stalled.ticket.Release();
  EXPECT_TRUE(waiting.admitted);
}

// Who brings more than they are charged for lose their streams, not the others.
TEST_F(StreamsTest, WhoSendsMoreThanIsChargedGoesFirst) {
  received_on_ = {{"flood", 0}, {"good", 0}, {"upload", 0}};
  std::vector<Call> floods(5), good(5);
  Call upload;
  const auto enter = [&](Call& call, const std::string& peer) {
    admission_.Enter(&call, {.bytes = 1000, .peer = peer});
    ASSERT_TRUE(call.admitted);
    ASSERT_TRUE(call.ticket.ReadDone(1000).ok());
    ASSERT_TRUE(call.ticket.Hold(MemoryKind::kRequest, kMega).ok());
    ASSERT_TRUE(call.ticket.ExpectStream(1, 1, 0).ok());
    call.ticket.AwaitMessage();
  };
  for (Call& call : floods) enter(call, "flood");
  for (Call& call : good) enter(call, "good");
  admission_.Enter(&upload, {.bytes = std::nullopt, .peer = "upload"});
  ASSERT_TRUE(upload.admitted);
  // As much as is charged for, of the good ones, and of the others 23 MiB each:
  // 33 MiB more than the budget less the reserve, an eighth.
  received_on_ = {{"flood", 115 * kMega}, {"good", 5 * kMega}};
  admission_.Tick(absl::Now() + absl::Milliseconds(200), 120 * kMega);
  int expelled = 0;
  for (const Call& call : floods) {
    expelled += call.expelled_for() == Reason::kMemoryBusy;
  }
  // Two of them are enough, by what they are taken to hold.
  EXPECT_EQ(expelled, 2);
  for (const Call& call : good) EXPECT_FALSE(call.expelled);
  EXPECT_FALSE(upload.expelled);
}

TEST_F(StreamsTest, ItsMessagesAreNoProgressOfOthersOnTheConnection) {
  Call stream, upload;
  Enter(stream);
  ASSERT_TRUE(stream.ticket.ExpectStream(1, 1, 0).ok());
  admission_.Enter(&upload, {.bytes = 10 * kMega});
  ASSERT_TRUE(upload.admitted);
  for (int second = 1; second <= 11; ++second) {
    stream.ticket.AwaitMessage();
    *received_ += 10000;
    stream.ticket.MessageCame(10000);
    TickAfter(absl::Seconds(second));
  }
  EXPECT_EQ(upload.expelled_for(), Reason::kSlowUpload);
  EXPECT_FALSE(stream.expelled);
}

// A call that takes one message after another, between two of them.
class AwaitingTest : public StreamsTest {
 protected:
  void Await(Call& call, absl::Time deadline = absl::InfiniteFuture()) {
    ASSERT_TRUE(call.ticket.AwaitNext(deadline).ok());
  }
  // Some looks, far enough from one another.
  void Look(absl::Duration begin = absl::ZeroDuration()) {
    for (int i = 1; i <= 4; ++i) TickAfter(begin + i * absl::Seconds(1));
  }
  int64_t Held() const {
    const Admission::Snapshot snapshot = admission_.snapshot();
    int64_t bytes = 0;
    for (int64_t kind : snapshot.bytes) bytes += kind;
    return bytes;
  }
};

TEST_F(AwaitingTest, HoldsNothingAndMayTakeItsTime) {
  Call call;
  Enter(call);
  EXPECT_TRUE(call.ticket.Hold(MemoryKind::kAnswer, kMega).ok());
  EXPECT_TRUE(call.ticket.Expect(1, 0).ok());
  call.ticket.Sending(1000);
  Await(call);
  EXPECT_EQ(Held(), 0);
  EXPECT_NEAR(Queued(), 0, 1e-9);
  Look();
  TickAfter(absl::Hours(10));
  EXPECT_FALSE(call.expelled);
  EXPECT_EQ(Held(), 0);
  EXPECT_TRUE(call.ticket.ReadDone(kMega).ok());
  EXPECT_EQ(Held(), 2 * kMega);
}

TEST_F(AwaitingTest, WhatComesIsCharged) {
  Call call;
  Enter(call);
  Await(call);
  received_ = 5 * kMega;
  TickAfter(absl::Seconds(1));
  EXPECT_GE(Held(), 2 * 5 * kMega);
  // A client that stops half way keeps the charge, and its call.
  Look(absl::Seconds(2));
  EXPECT_GE(Held(), 2 * 5 * kMega);
  TickAfter(absl::Hours(1));
  EXPECT_FALSE(call.expelled);
  EXPECT_TRUE(call.ticket.ReadDone(6 * kMega).ok());
  EXPECT_EQ(Held(), 2 * 6 * kMega);
}

// Other calls of its connection are not its message, however many.
TEST_F(AwaitingTest, OthersOnItsConnectionAreNotItsMessage) {
  Call call;
  Enter(call);
  Await(call);
  for (int i = 0; i < 100; ++i) {
    Call other;
    Enter(other);
    // Headers and frames are more than the message.
    *received_ += 2000;
    other.ticket.Release();
    TickAfter(absl::Seconds(1 + i));
    EXPECT_EQ(Held(), 0) << i;
  }
}

TEST_F(AwaitingTest, TheDeadlineEndsIt) {
  Call call;
  Enter(call);
  Await(call, absl::Now() + absl::Seconds(5));
  TickAfter(absl::Seconds(4));
  EXPECT_FALSE(call.expelled);
  TickAfter(absl::Seconds(6));
  EXPECT_EQ(call.expelled_for(), Reason::kIdleTooLong);
}

TEST_F(AwaitingTest, DrainingEndsIt) {
  Call waits, works, comes;
  Enter(waits);
  Await(waits);
  Enter(works);
  Enter(comes);
  admission_.Drain();
  EXPECT_EQ(waits.expelled_for(), Reason::kDraining);
  EXPECT_FALSE(works.expelled);
  works.ticket.Sending(10);
  EXPECT_EQ(ReasonOf(works.ticket.AwaitNext(absl::InfiniteFuture())),
            Reason::kDraining);
}

// A call of the largest message comes in beside any number of them.
TEST_F(AwaitingTest, LeavesTheWholeBudgetToOthers) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 100; ++i) {
    calls.push_back(std::make_unique<Call>());
    Enter(*calls.back());
    Await(*calls.back());
  }
  Call large;
  admission_.Enter(&large, {.bytes = 20 * kMega});
  ASSERT_TRUE(large.admitted);
  ASSERT_TRUE(large.ticket.ReadDone(20 * kMega).ok());
  EXPECT_TRUE(large.ticket.Hold(MemoryKind::kAnswer, 60 * kMega).ok());
}

// Their headers are memory too.
TEST_F(AwaitingTest, TheLongestWaitingGoesWhereMemoryIsShort) {
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 60; ++i) {
    calls.push_back(std::make_unique<Call>());
    Call& call = *calls.back();
    admission_.Enter(&call, {.bytes = 1000, .header_bytes = kMega});
    ASSERT_TRUE(call.ticket.ReadDone(1000).ok());
    Await(call);
  }
  Look();
  EXPECT_FALSE(calls.front()->expelled);
  Call large;
  Enter(large);
  EXPECT_EQ(ReasonOf(large.ticket.Hold(MemoryKind::kAnswer, 60 * kMega)),
            Reason::kMemoryBusy);
  TickAfter(absl::Seconds(10));
  EXPECT_EQ(calls.front()->expelled_for(), Reason::kMemoryBusy);
  EXPECT_FALSE(calls.back()->expelled);
  for (auto& call : calls) {
    if (call->expelled) call->ticket.Release();
  }
  EXPECT_TRUE(large.ticket.Hold(MemoryKind::kAnswer, 60 * kMega).ok());
}

}  // namespace
}  // namespace attention::server
