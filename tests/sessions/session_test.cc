// The invariants of pages and of one session.
#include "sessions/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/buffer_pool.h"
#include "sessions/memory_account.h"
#include "tests/sessions/rows.h"

namespace attention {
namespace {

const LeaseTime kNow(absl::Seconds(1000));
constexpr int64_t kPlenty = int64_t{1} << 30;

class SessionTest : public testing::Test {
 protected:
  std::shared_ptr<Session> Make(const SessionConfig& config) {
    return Make(config, account_);
  }
  std::shared_ptr<Session> Make(const SessionConfig& config,
                                const std::shared_ptr<MemoryAccount>& account) {
    return Session::Create(config, pool_, account, kNow).value();
  }
  // What pages take.
  int64_t UsedBy(const Session& session) const {
    return account_->used() - Session::Bytes(session.config());
  }
  // What a layer takes with pages of so many rows.
  static int64_t LayerBytes(const PageFormat& format,
                            const std::vector<int64_t>& rows) {
    int64_t bytes = PageTable::Bytes(static_cast<int64_t>(rows.size()));
    for (int64_t of_page : rows) bytes += Page::Bytes(format, of_page);
    return bytes;
  }
  int64_t LayerBytes(const std::vector<int64_t>& rows) const {
    return LayerBytes(format_, rows);
  }
  std::shared_ptr<Session> Make() { return Make({.format = format_}); }
  Tokens Some(int64_t count) { return Tokens::Random(format_, count, random_); }

  const PageFormat format_ = {.kv_heads = 2, .key_size = 8, .value_size = 4};
  const std::shared_ptr<BufferPool> pool_ = PoisonedPool(int64_t{1} << 20);
  const std::shared_ptr<MemoryAccount> account_ =
      std::make_shared<MemoryAccount>(kPlenty);
  std::mt19937 random_{1};
};

TEST_F(SessionTest, HoldsWhatWasAppendedInPiecesOfAnySize) {
  const auto session = Make();
  Tokens all;
  for (int64_t count : {1, 15, 1, 0, 47, 1, 191, 1, 256, 700, 3}) {
    const Tokens more = Some(count);
    ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
    all.Add(more);
    EXPECT_TRUE(Holds(*session->Read(0), all)) << "of " << all.count;
  }
}

TEST_F(SessionTest, StoresTypesOtherThanTheOneThatCame) {
  const auto session = Make({.format = {.kv_heads = 2,
                                        .key_size = 8,
                                        .value_size = 4,
                                        .type = DataType::kBFloat16}});
  const Tokens tokens = Some(20);
  ASSERT_EQ(AppendTokens(*session, 0, tokens), absl::OkStatus());
  const LayerSnapshot read = *session->Read(0);
  EXPECT_TRUE(Holds(read, tokens));
  const auto* const keys =
      static_cast<const uint16_t*>(read.view().blocks[0].key);
  EXPECT_EQ(keys[0], FloatToBFloat(tokens.keys[0]));
}

TEST_F(SessionTest, ValuesMayBeTheFirstColumnsOfKeys) {
  const PageFormat format = {.kv_heads = 1,
                             .key_size = 8,
                             .value_size = 6,
                             .value_is_key_prefix = true};
  const auto session = Make({.format = format});
  const Tokens tokens = Tokens::Random(format, 300, random_);
  ASSERT_EQ(AppendTokens(*session, 0, tokens), absl::OkStatus());
  const LayerSnapshot read = *session->Read(0);
  EXPECT_TRUE(Holds(read, tokens));
  EXPECT_EQ(read.view().blocks[1].key, read.view().blocks[1].value);
  EXPECT_EQ(UsedBy(*session), LayerBytes(format, {256, 64}));
}

// Each row of a token and head has its own scale. Copies of pages have them
// too: the last page grows, and a fork goes on in one of its own.
TEST_F(SessionTest, RowsMayBeScaled) {
  for (DataType type : {DataType::kInt8, DataType::kFloat8E4M3}) {
    for (bool prefix : {false, true}) {
      const PageFormat format = {.kv_heads = 2,
                                 .key_size = 600,
                                 .value_size = 40,
                                 .type = type,
                                 .value_is_key_prefix = prefix};
      const auto session = Make({.format = format});
      Tokens all;
      for (int64_t count : {3, 20, 300}) {
        const Tokens more = Tokens::Random(format, count, random_);
        ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
        all.Add(more);
      }
      const auto fork = session->Fork(kNow);
      ASSERT_TRUE(fork.ok());
      for (Session* each : {session.get(), fork->get()}) {
        Tokens longer = all;
        const Tokens more = Tokens::Random(format, 2, random_);
        ASSERT_EQ(AppendTokens(*each, 0, more), absl::OkStatus());
        longer.Add(more);
        const LayerSnapshot read = *each->Read(0);
        EXPECT_TRUE(Holds(read, longer));
        const KeyValueView view = read.view();
        for (int64_t token : {0, 2, 22, 23, 255, 256, 322, 324}) {
          const auto& block = view.blocks[token / kKeyBlock];
          const int64_t row = token % kKeyBlock;
          const float* const numbers =
              &longer.keys[(token * 2 + 1) * format.key_size];
          float largest = 0;
          for (int64_t i = 0; i < format.key_size; ++i) {
            largest = std::max(largest, std::fabs(numbers[i]));
          }
          const uint8_t scale = ScaleOf(type, largest);
          EXPECT_EQ(block.key_scales[block.scale_head_stride + row], scale);
          std::vector<uint8_t> wanted(format.key_size);
          ScaleElements(type, scale, numbers, format.key_size, wanted.data());
          EXPECT_EQ(
              std::memcmp(static_cast<const char*>(block.key) +
                              block.key_head_stride + row * format.key_size,
                          wanted.data(), wanted.size()),
              0);
          EXPECT_EQ(block.key == block.value, prefix);
          EXPECT_EQ(block.key_scales == block.value_scales, prefix);
        }
        Tokens other = longer;
        // Another power of two for a row.
        for (int64_t i = 0; i < format.key_size; ++i) other.keys[i] *= 2;
        EXPECT_FALSE(Holds(read, other));
      }
      // A payload byte an element, and a byte a row for its scale.
      EXPECT_LE(static_cast<double>(Page::Bytes(format, kKeyBlock)),
                1.02 * 2 * 256 * (prefix ? 600 : 640));
    }
  }
}

TEST_F(SessionTest, LayersHaveLengthsOfTheirOwn) {
  const auto session = Make({.num_layers = 3, .format = format_});
  ASSERT_EQ(AppendTokens(*session, 1, Some(5)), absl::OkStatus());
  EXPECT_EQ(*session->length(0), 0);
  EXPECT_EQ(*session->length(1), 5);
  EXPECT_TRUE(absl::IsOutOfRange(session->length(3).status()));
  EXPECT_TRUE(absl::IsOutOfRange(session->length(-1).status()));
}

// Invariant 1: a snapshot stays as it is.
TEST_F(SessionTest, NothingChangesWhatAReaderHolds) {
  const auto session = Make();
  const Tokens first = Some(300);
  ASSERT_EQ(AppendTokens(*session, 0, first), absl::OkStatus());
  const LayerSnapshot held = *session->Read(0);
  ASSERT_EQ(AppendTokens(*session, 0, Some(10)), absl::OkStatus());
  EXPECT_TRUE(Holds(held, first));
  ASSERT_EQ(session->Truncate(100), absl::OkStatus());
  ASSERT_EQ(AppendTokens(*session, 0, Some(300)), absl::OkStatus());
  EXPECT_TRUE(Holds(held, first));
  EXPECT_TRUE(session->Delete());
  EXPECT_TRUE(Holds(held, first));
  EXPECT_GT(account_->used(), 0);
}

TEST_F(SessionTest, AllMemoryIsGivenBackWithTheLastReader) {
  auto session = Make();
  ASSERT_EQ(AppendTokens(*session, 0, Some(300)), absl::OkStatus());
  std::optional<LayerSnapshot> held = *session->Read(0);
  session->Delete();
  session.reset();
  EXPECT_EQ(account_->used(), LayerBytes({256, 64}));
  held.reset();
  EXPECT_EQ(account_->used(), 0);
}

// Invariant 2.
TEST_F(SessionTest, AnAppendIsSeenOnlyOnceItIsPublished) {
  const auto session = Make();
  const Tokens first = Some(10);
  ASSERT_EQ(AppendTokens(*session, 0, first), absl::OkStatus());
  auto append = session->BeginAppend(0, {.tokens = 5});
  ASSERT_TRUE(append.ok());
  Write(*append, Some(5));
  EXPECT_TRUE(Holds(*session->Read(0), first));
  ASSERT_EQ(std::move(*append).Publish(), absl::OkStatus());
  EXPECT_EQ(*session->length(0), 15);
}

TEST_F(SessionTest, AnAppendWhoseLayerWasTruncatedIsAborted) {
  const auto session = Make();
  const Tokens first = Some(20);
  ASSERT_EQ(AppendTokens(*session, 0, first), absl::OkStatus());
  auto append = session->BeginAppend(0, {.tokens = 5});
  ASSERT_TRUE(append.ok());
  Write(*append, Some(5));
  ASSERT_EQ(session->Truncate(7), absl::OkStatus());
  const absl::Status status = std::move(*append).Publish();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(TrueLength(status), 7);
  EXPECT_EQ(*session->length(0), 7);
}

TEST_F(SessionTest, AnAppendToASessionThatIsGoneIsNotFound) {
  const auto session = Make();
  auto append = session->BeginAppend(0, {.tokens = 5});
  ASSERT_TRUE(append.ok());
  session->Delete();
  EXPECT_TRUE(absl::IsNotFound(std::move(*append).Publish()));
}

// Invariant 3.
TEST_F(SessionTest, AnAppendThatIsGivenUpLeavesNothing) {
  const auto session = Make();
  Tokens all = Some(20);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  const int64_t used = account_->used();
  const void* const page = session->Read(0)->view().blocks[0].key;
  for (int64_t count : {5, 500}) {
    auto append = session->BeginAppend(0, {.tokens = count});
    ASSERT_TRUE(append.ok());
    Write(*append, Some(count));
  }
  EXPECT_EQ(account_->used(), used);
  EXPECT_TRUE(Holds(*session->Read(0), all));
  const Tokens more = Some(5);
  ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
  EXPECT_EQ(session->Read(0)->view().blocks[0].key, page)
      << "in place, since the rows had been given back";
  all.Add(more);
  EXPECT_TRUE(Holds(*session->Read(0), all));
}

TEST_F(SessionTest, OneAppendOfALayerAtATime) {
  const auto session = Make({.num_layers = 2, .format = format_});
  auto first = session->BeginAppend(0, {.tokens = 5});
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(absl::IsAborted(session->BeginAppend(0, {.tokens = 1}).status()));
  EXPECT_TRUE(session->BeginAppend(1, {.tokens = 1}).ok());
  first = absl::CancelledError();
  EXPECT_TRUE(session->BeginAppend(0, {.tokens = 1}).ok());
}

TEST_F(SessionTest, TheSameAppendWaitsForItsFirstTry) {
  const auto session = Make();
  const Tokens tokens = Some(5);
  const Session::AppendRequest request = {
      .tokens = 5, .expected_length = 0, .request_id = "a"};
  auto first = session->BeginAppend(0, request);
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(absl::IsUnavailable(session->BeginAppend(0, request).status()));
  // What is another append is in its way.
  for (const auto& [count, length, id] :
       {std::tuple(5, 0, "b"), std::tuple(5, 0, ""), std::tuple(4, 0, "a"),
        std::tuple(5, 1, "a")}) {
    EXPECT_TRUE(absl::IsAborted(session
                                    ->BeginAppend(0, {.tokens = count,
                                                      .expected_length = length,
                                                      .request_id = id})
                                    .status()))
        << count << " " << length << " " << id;
  }
  // Given up, it is the retry's to do; and once it is done, it is done.
  first = absl::CancelledError();
  auto retry = session->BeginAppend(0, request);
  ASSERT_TRUE(retry.ok());
  EXPECT_FALSE(retry->done());
  EXPECT_TRUE(absl::IsUnavailable(session->BeginAppend(0, request).status()));
  Write(*retry, tokens);
  ASSERT_EQ((*std::move(retry)).Publish(), absl::OkStatus());
  const auto again = session->BeginAppend(0, request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->done());
  EXPECT_TRUE(Holds(*session->Read(0), tokens));
}

// Invariant 1. The pages that a reader holds are neither freed nor reused;
// those of sessions that nobody reads are, and are poisoned until then.
TEST_F(SessionTest, AReaderSeesNothingOfPagesThatAreFreedAndReused) {
  // A page of 256 tokens is large enough for the pool to keep it.
  const SessionConfig config = {
      .format = {.kv_heads = 2, .key_size = 64, .value_size = 64}};
  const auto some = [&](int64_t count) {
    return Tokens::Random(config.format, count, random_);
  };
  const Tokens old = some(700), more = some(600);
  auto session = Make(config);
  ASSERT_EQ(AppendTokens(*session, 0, old), absl::OkStatus());
  const LayerSnapshot held = *session->Read(0);
  const void* freed = nullptr;
  {
    const auto unread = Make(config);
    ASSERT_EQ(AppendTokens(*unread, 0, more), absl::OkStatus());
    freed = unread->Read(0)->view().blocks[0].key;
    // One ends, the other one is emptied, and goes on elsewhere.
    EXPECT_TRUE(unread->Delete());
  }
  float first;
  std::memcpy(&first, freed, sizeof(first));
  EXPECT_TRUE(std::isnan(first));
  ASSERT_EQ(session->Truncate(0), absl::OkStatus());
  ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
  EXPECT_TRUE(Holds(held, old));
  EXPECT_TRUE(Holds(*session->Read(0), more));
  EXPECT_TRUE(session->Delete());
  session = nullptr;
  EXPECT_TRUE(Holds(held, old));
}

// Invariant 4, and 5: forks share pages, and each goes its own way.
TEST_F(SessionTest, ForksShareRowsAndThenPart) {
  const auto session = Make();
  Tokens all = Some(300);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  const auto fork = *session->Fork(kNow);
  const int64_t used = account_->used();
  EXPECT_EQ(used,
            LayerBytes({256, 64}) + 2 * Session::Bytes(session->config()));
  EXPECT_EQ(fork->Read(0)->view().blocks[0].key,
            session->Read(0)->view().blocks[0].key);
  Tokens of_fork = all;
  const Tokens left = Some(3), right = Some(4);
  ASSERT_EQ(AppendTokens(*session, 0, left), absl::OkStatus());
  EXPECT_EQ(account_->used(), used) << "the first to append does so in place";
  ASSERT_EQ(AppendTokens(*fork, 0, right), absl::OkStatus());
  EXPECT_EQ(account_->used(),
            used + Page::Bytes(format_, 64) + PageTable::Bytes(2));
  all.Add(left);
  of_fork.Add(right);
  EXPECT_TRUE(Holds(*session->Read(0), all));
  EXPECT_TRUE(Holds(*fork->Read(0), of_fork));
}

TEST_F(SessionTest, AForkDoesNotHaveWhatIsBeingAppended) {
  const auto session = Make();
  const Tokens all = Some(20);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  auto append = session->BeginAppend(0, {.tokens = 5});
  ASSERT_TRUE(append.ok());
  const auto fork = *session->Fork(kNow);
  Write(*append, Some(5));
  const Tokens more = Some(2);
  ASSERT_EQ(AppendTokens(*fork, 0, more), absl::OkStatus());
  ASSERT_EQ(std::move(*append).Publish(), absl::OkStatus());
  Tokens of_fork = all;
  of_fork.Add(more);
  EXPECT_TRUE(Holds(*fork->Read(0), of_fork));
}

TEST_F(SessionTest, RowsThatWereTruncatedAreNotWrittenAgain) {
  const auto session = Make();
  Tokens all = Some(30);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  const LayerSnapshot held = *session->Read(0);
  ASSERT_EQ(session->Truncate(25), absl::OkStatus());
  const Tokens more = Some(5);
  ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
  EXPECT_TRUE(Holds(held, all));
  all.Truncate(format_, 25);
  all.Add(more);
  EXPECT_TRUE(Holds(*session->Read(0), all));
}

TEST_F(SessionTest, TruncateFreesPages) {
  const auto session = Make();
  ASSERT_EQ(AppendTokens(*session, 0, Some(600)), absl::OkStatus());
  ASSERT_EQ(session->Truncate(256), absl::OkStatus());
  EXPECT_EQ(UsedBy(*session), LayerBytes({256}));
  ASSERT_EQ(session->Truncate(0), absl::OkStatus());
  EXPECT_EQ(UsedBy(*session), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(session->Truncate(1)));
  EXPECT_TRUE(absl::IsInvalidArgument(session->Truncate(-1)));
}

TEST_F(SessionTest, AWrongLengthIsAbortedWithTheTrueOne) {
  const auto session = Make();
  ASSERT_EQ(AppendTokens(*session, 0, Some(10)), absl::OkStatus());
  const absl::Status status =
      session->BeginAppend(0, {.tokens = 1, .expected_length = 9}).status();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(TrueLength(status), 10);
}

TEST_F(SessionTest, TheSameAppendIsDoneOnce) {
  const auto session = Make();
  Tokens all = Some(10);
  const Session::AppendRequest request = {.expected_length = 0,
                                          .request_id = "a"};
  ASSERT_EQ(AppendTokens(*session, 0, all, request), absl::OkStatus());
  const Tokens more = Some(3);
  ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
  // Also after others.
  auto again = session->BeginAppend(
      0, {.tokens = 10, .expected_length = 0, .request_id = "a"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->done());
  EXPECT_EQ(again->begin(), 0);
  EXPECT_EQ(again->end(), 10);
  ASSERT_EQ(std::move(*again).Publish(), absl::OkStatus());
  EXPECT_EQ(*session->length(0), 13);
  // The same id for something else.
  for (const Session::AppendRequest& other :
       {Session::AppendRequest{
            .tokens = 9, .expected_length = 0, .request_id = "a"},
        Session::AppendRequest{
            .tokens = 10, .expected_length = 13, .request_id = "a"}}) {
    const absl::Status status = session->BeginAppend(0, other).status();
    EXPECT_TRUE(absl::IsAborted(status)) << status;
    EXPECT_EQ(TrueLength(status), 13);
  }
}

TEST_F(SessionTest, AnAppendThatWasTruncatedIsNotDoneAgain) {
  const auto session = Make();
  ASSERT_EQ(AppendTokens(*session, 0, Some(4)), absl::OkStatus());
  const Session::AppendRequest request = {
      .tokens = 1, .expected_length = 4, .request_id = "late"};
  ASSERT_EQ(AppendTokens(*session, 0, Some(1), request), absl::OkStatus());
  ASSERT_EQ(session->Truncate(4), absl::OkStatus());
  EXPECT_TRUE(absl::IsAborted(session->BeginAppend(0, request).status()));
}

TEST_F(SessionTest, AFullAccountRefusesAndChangesNothing) {
  const auto account = std::make_shared<MemoryAccount>(
      Session::Bytes({.format = format_}) + LayerBytes({256, 16}), account_);
  const auto session = Make({.format = format_}, account);
  const Tokens all = Some(10);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  const absl::Status status = AppendTokens(*session, 0, Some(300));
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(Holds(*session->Read(0), all));
  EXPECT_EQ(UsedBy(*session), LayerBytes({16}));
  EXPECT_EQ(account_->used(), account->used());
  EXPECT_EQ(AppendTokens(*session, 0, Some(6)), absl::OkStatus());
}

// A fork that parts has a table of its own: rows are not all that it takes.
TEST_F(SessionTest, TablesAreCounted) {
  const PageFormat tiny = {.type = DataType::kInt8,
                           .value_is_key_prefix = true};
  const auto account = std::make_shared<MemoryAccount>(1 << 20, account_);
  const auto session = Make({.format = tiny}, account);
  const Tokens many = Tokens::Random(tiny, 256 * 500 + 1, random_);
  ASSERT_EQ(AppendTokens(*session, 0, many), absl::OkStatus());
  const int64_t table = PageTable::Bytes(501);
  std::vector<std::shared_ptr<Session>> forks;
  absl::Status status;
  while (status.ok()) {
    auto fork = session->Fork(kNow);
    status = fork.status();
    if (!status.ok()) break;
    forks.push_back(*std::move(fork));
    status = AppendTokens(*forks.back(), 0, Tokens::Random(tiny, 1, random_));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // The first goes on in the table of all, where the page has room.
  EXPECT_GE(account->used(), static_cast<int64_t>(forks.size() - 2) * table);
  EXPECT_LE(static_cast<int64_t>(forks.size() - 2) * table, 1 << 20);
  // A layer can be truncated even where there is no room for another table.
  for (const auto& fork : forks) {
    ASSERT_EQ(fork->Truncate(256 * 400 + 7), absl::OkStatus());
    EXPECT_LE(account->used(), account->limit());
  }
  Tokens left = many;
  left.Truncate(tiny, 256 * 400 + 7);
  EXPECT_TRUE(Holds(*forks[0]->Read(0), left));
  ASSERT_EQ(forks[0]->Truncate(0), absl::OkStatus());
  forks.resize(1);
  const Tokens more = Tokens::Random(tiny, 3, random_);
  ASSERT_EQ(AppendTokens(*forks[0], 0, more), absl::OkStatus());
  EXPECT_TRUE(Holds(*forks[0]->Read(0), more));
}

TEST_F(SessionTest, ALeaseDoesNotEndUnderACall) {
  const absl::Duration lease = absl::Milliseconds(100);
  const auto session = Make({.format = format_, .lease = lease});
  std::shared_ptr<Session> use = session->Use(kNow);
  ASSERT_EQ(use, session);
  EXPECT_FALSE(session->DeleteIfExpired(kNow + 5 * lease));
  // It begins anew after it.
  absl::SleepFor(lease / 2);
  use = nullptr;
  EXPECT_FALSE(session->Expired(kNow + 1.5 * lease));
  EXPECT_TRUE(session->Expired(kNow + absl::Hours(1)));
  EXPECT_EQ(session->Use(kNow + absl::Hours(1)), nullptr);
  // Deleted it is gone, whoever uses it.
  use = session->Use(kNow);
  EXPECT_TRUE(session->Delete());
  EXPECT_TRUE(absl::IsNotFound(use->Read(0).status()));
  EXPECT_EQ(session->Use(kNow), nullptr);
}

// Invariant 6.
TEST_F(SessionTest, WhatIsGoneStaysGone) {
  const auto session = Make();
  const absl::Duration lease = session->config().lease;
  EXPECT_TRUE(session->Renew(kNow + lease - absl::Seconds(1)));
  EXPECT_FALSE(session->DeleteIfExpired(kNow + lease));
  EXPECT_FALSE(session->Renew(kNow + 3 * lease)) << "its lease was over";
  EXPECT_TRUE(session->DeleteIfExpired(kNow + 3 * lease));
  EXPECT_FALSE(session->Renew(kNow));
  EXPECT_FALSE(session->Delete());
  EXPECT_TRUE(absl::IsNotFound(session->Read(0).status()));
  EXPECT_TRUE(absl::IsNotFound(session->length(0).status()));
  EXPECT_TRUE(absl::IsNotFound(session->Truncate(0)));
  EXPECT_TRUE(absl::IsNotFound(session->BeginAppend(0, {}).status()));
  EXPECT_TRUE(absl::IsNotFound(session->Fork(kNow).status()));
}

TEST_F(SessionTest, LongSequencesTakeNoMoreThanTheirRows) {
  const auto session = Make();
  ASSERT_EQ(AppendTokens(*session, 0, Some(8000)), absl::OkStatus());
  const int64_t payload = 8000 * format_.kv_heads *
                          (format_.key_row_bytes() + format_.value_row_bytes());
  EXPECT_LE(static_cast<double>(UsedBy(*session)),
            1.02 * static_cast<double>(payload));
}

// Invariant 7, and what of it a snapshot, a reader and a fork have.
TEST_F(SessionTest, AWindowReleasesWhatNoQuerySees) {
  const auto session =
      Make({.format = format_, .retain_window = {300}, .rollback_tokens = 20});
  Tokens all = Some(575);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  EXPECT_EQ(session->Read(0)->first_token(), 0);
  const LayerSnapshot held = *session->Read(0);
  const Tokens tokens_held = all;
  const int64_t used = UsedBy(*session);
  for (int i = 0; i < 3; ++i) {
    const Tokens more = Some(1);
    ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
    all.Add(more);
    const LayerSnapshot read = *session->Read(0);
    EXPECT_EQ(read.length(), 576 + i);
    EXPECT_EQ(read.first_token(), 256);
    EXPECT_EQ(read.view().begin, 256);
    EXPECT_EQ(read.view().length, 320 + i);
    EXPECT_TRUE(Holds(read, all));
  }
  EXPECT_EQ(UsedBy(*session),
            used + LayerBytes({256, 256}) - Page::Bytes(format_, 256))
      << "a larger last page; a reader holds the smaller and the first one";
  EXPECT_EQ(held.first_token(), 0);
  EXPECT_TRUE(Holds(held, tokens_held));
  const auto fork = session->Fork(kNow);
  ASSERT_TRUE(fork.ok());
  EXPECT_EQ((*fork)->Read(0)->first_token(), 256);
  for (int i = 0; i < 300; ++i) {
    const Tokens more = Some(1);
    ASSERT_EQ(AppendTokens(**fork, 0, more), absl::OkStatus());
  }
  EXPECT_EQ((*fork)->Read(0)->first_token(), 512);
  EXPECT_EQ(session->Read(0)->first_token(), 256);
  EXPECT_TRUE(Holds(*session->Read(0), all));
}

TEST_F(SessionTest, ReleasedPagesAreGivenBack) {
  const auto session =
      Make({.format = format_, .retain_window = {300}, .rollback_tokens = 0});
  ASSERT_EQ(AppendTokens(*session, 0, Some(2000)), absl::OkStatus());
  // Tokens from 1700 on, of pages that begin at 1536.
  EXPECT_EQ(session->Read(0)->first_token(), 1536);
  EXPECT_EQ(UsedBy(*session), LayerBytes({256, 256}));
}

// Whatever an append has, its queries see all that the window covers.
TEST_F(SessionTest, AnAppendHasWhatItReleases) {
  const auto session =
      Make({.format = format_, .retain_window = {10}, .rollback_tokens = 0});
  Tokens all = Some(900);
  ASSERT_EQ(AppendTokens(*session, 0, all), absl::OkStatus());
  const Tokens more = Some(1000);
  all.Add(more);
  auto append = session->BeginAppend(0, {.tokens = 1000});
  ASSERT_TRUE(append.ok());
  Write(*append, more);
  const LayerSnapshot written = append->Written();
  EXPECT_EQ(written.first_token(), 768);
  EXPECT_EQ(written.window(), 10);
  ASSERT_EQ(std::move(*append).Publish(), absl::OkStatus());
  EXPECT_EQ(session->Read(0)->first_token(), 1792);
  EXPECT_EQ(written.first_token(), 768);
  EXPECT_TRUE(Holds(written, all));
}

TEST_F(SessionTest, AWindowSaysHowFarItCanBeTruncated) {
  const auto session = Make({.num_layers = 2,
                             .format = format_,
                             .retain_window = {300, 0},
                             .rollback_tokens = 5});
  Tokens all = Some(1000);
  for (int64_t layer : {0, 1}) {
    ASSERT_EQ(AppendTokens(*session, layer, all), absl::OkStatus());
  }
  auto layers = *session->layers();
  EXPECT_EQ(layers[0].first_token, 512);
  EXPECT_EQ(layers[0].least_length, 812);
  EXPECT_EQ(layers[1].first_token, 0);
  EXPECT_EQ(layers[1].least_length, 0);
  const absl::Status status = session->Truncate(811);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(LeastLength(status), 812);
  EXPECT_EQ(*session->length(1), 1000);
  ASSERT_EQ(session->Truncate(812), absl::OkStatus());
  all.Truncate(format_, 812);
  EXPECT_TRUE(Holds(*session->Read(0), all));
  EXPECT_TRUE(Holds(*session->Read(1), all));
  EXPECT_EQ(session->Read(0)->first_token(), 512) << "nothing comes back";
  // As if it were new.
  ASSERT_EQ(session->Truncate(0), absl::OkStatus());
  EXPECT_EQ(UsedBy(*session), 0);
  layers = *session->layers();
  EXPECT_EQ(layers[0].first_token, 0);
  EXPECT_EQ(layers[0].least_length, 0);
  const Tokens more = Some(3);
  ASSERT_EQ(AppendTokens(*session, 0, more), absl::OkStatus());
  EXPECT_TRUE(Holds(*session->Read(0), more));
}

// The same append is known again; of its tokens those that are kept are
// compared.
TEST_F(SessionTest, AnAppendIsDoneOnceAlsoIfItsTokensAreReleased) {
  const auto session =
      Make({.format = format_, .retain_window = {10}, .rollback_tokens = 0});
  Tokens tokens = Some(600);
  ASSERT_EQ(AppendTokens(*session, 0, tokens, {.request_id = "a"}),
            absl::OkStatus());
  const auto again =
      session->BeginAppend(0, {.tokens = 600, .request_id = "a"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->done());
  EXPECT_TRUE(Holds(*session->Read(0), tokens));
  tokens.keys.front() += 1;
  EXPECT_TRUE(Holds(*session->Read(0), tokens));
  tokens.keys.back() += 1;
  EXPECT_FALSE(Holds(*session->Read(0), tokens));
}

TEST_F(SessionTest, ALongDecodeWithAWindowTakesNoMoreMemory) {
  constexpr int64_t kWindow = 1024;
  const auto session = Make(
      {.format = format_, .retain_window = {kWindow}, .rollback_tokens = 0});
  const Tokens token = Some(1);
  int64_t most = 0, when_first_full = 0;
  for (int64_t i = 1; i <= 100'000; ++i) {
    ASSERT_EQ(AppendTokens(*session, 0, token), absl::OkStatus());
    most = std::max(most, UsedBy(*session));
    if (i == 3 * kWindow) when_first_full = most;
  }
  EXPECT_EQ(most, when_first_full);
  EXPECT_EQ(session->Read(0)->length(), 100'000);
  // Of what is kept: the window, and less than a page before it.
  const int64_t kept = 100'000 - session->Read(0)->first_token();
  EXPECT_LT(kept, kWindow + kKeyBlock);
  const int64_t payload = (kept + kKeyBlock - 1) / kKeyBlock * kKeyBlock *
                          format_.kv_heads *
                          (format_.key_row_bytes() + format_.value_row_bytes());
  EXPECT_LE(static_cast<double>(UsedBy(*session)),
            1.02 * static_cast<double>(payload));
}

}  // namespace
}  // namespace attention
