// Sessions by owner and id: creating, finding, forking, evicting, limits.
#include "sessions/session_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/buffer_pool.h"
#include "base/field_error.h"
#include "tests/sessions/rows.h"

namespace attention {
namespace {

using testing::HasSubstr;

const LeaseTime kNow(absl::Seconds(1000));

class SessionStoreTest : public testing::Test {
 protected:
  Tokens Some(int64_t count) {
    return Tokens::Random(config_.format, count, random_);
  }
  std::vector<std::string> Ids(absl::string_view owner, absl::string_view after,
                               size_t most, LeaseTime now = kNow) {
    std::vector<std::string> ids;
    for (const auto& [id, session] : store_.List(owner, after, most, now)) {
      ids.push_back(id);
    }
    return ids;
  }

  const SessionConfig config_ = {.num_layers = 2,
                                 .format = {.key_size = 4, .value_size = 4}};
  SessionStore store_{{.bytes = int64_t{1} << 20, .sessions = 6},
                      BufferPool::Create(0)};
  std::mt19937 random_{1};
};

TEST_F(SessionStoreTest, CreatingTwiceGivesTheSameSession) {
  const auto first = store_.Create("me", "a", config_, kNow);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(AppendTokens(**first, 0, Some(5)), absl::OkStatus());
  const auto again = store_.Create("me", "a", config_, kNow);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*first, *again);
  SessionConfig other = config_;
  other.format.key_size = 5;
  EXPECT_TRUE(
      absl::IsAlreadyExists(store_.Create("me", "a", other, kNow).status()));
}

TEST_F(SessionStoreTest, AnIncarnationTellsSessionsOfOneIdApart) {
  const auto first = store_.Create("me", "a", config_, kNow);
  ASSERT_TRUE(first.ok()) << first.status();
  const uint64_t old = (*first)->incarnation();
  EXPECT_NE(old, 0);
  EXPECT_EQ((*store_.Create("me", "a", config_, kNow))->incarnation(), old);
  EXPECT_TRUE(store_.Use("me", "a", kNow, old).ok());
  // It ends, and somebody makes another.
  ASSERT_TRUE(store_.Delete("me", "a", old));
  ASSERT_TRUE(store_.Create("me", "a", config_, kNow).ok());
  const uint64_t now = (*store_.Find("me", "a", kNow))->incarnation();
  EXPECT_NE(now, old);

  const absl::Status status = store_.Use("me", "a", kNow, old).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_TRUE(SessionStore::IsOfAnother(status));
  EXPECT_EQ(MissingSession(status), "a");
  EXPECT_FALSE(
      SessionStore::IsOfAnother(store_.Use("me", "b", kNow, old).status()));
  EXPECT_TRUE(absl::IsNotFound(store_.Find("me", "a", kNow, old).status()));
  SessionStore::ForkRequest fork[] = {{"a", "b", old}};
  EXPECT_TRUE(
      SessionStore::IsOfAnother(store_.Fork("me", fork, kNow).status()));
  EXPECT_FALSE(store_.Delete("me", "a", old));
  EXPECT_TRUE(store_.Find("me", "a", kNow, now).ok());
  fork[0].source_incarnation = now;
  const auto forked = store_.Fork("me", fork, kNow);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_NE((*forked)[0]->incarnation(), now);
  EXPECT_TRUE(store_.Delete("me", "a", now));
}

TEST_F(SessionStoreTest, OwnersSeeTheirOwnOnly) {
  ASSERT_TRUE(store_.Create("me", "a", config_, kNow).ok());
  const absl::Status status = store_.Use("you", "a", kNow).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(MissingSession(status), "a");
  EXPECT_FALSE(store_.Delete("you", "a"));
  EXPECT_TRUE(Ids("you", "", 10).empty());
  const SessionStore::ForkRequest fork[] = {{"a", "b"}};
  EXPECT_TRUE(absl::IsNotFound(store_.Fork("you", fork, kNow).status()));
  const auto yours = store_.Create("you", "a", config_, kNow);
  ASSERT_TRUE(yours.ok());
  EXPECT_NE(*yours, *store_.Use("me", "a", kNow));
}

TEST_F(SessionStoreTest, ListsInPages) {
  for (const char* id : {"c", "a", "d", "b"}) {
    ASSERT_TRUE(store_.Create("me", id, config_, kNow).ok());
  }
  EXPECT_EQ(Ids("me", "", 3), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(Ids("me", "c", 3), (std::vector<std::string>{"d"}));
  EXPECT_TRUE(Ids("me", "", 3, kNow + config_.lease).empty());
}

TEST_F(SessionStoreTest, OnlyWhatHasExpiredIsEvicted) {
  ASSERT_TRUE(store_.Create("me", "a", config_, kNow).ok());
  ASSERT_TRUE(store_.Create("me", "b", config_, kNow).ok());
  const LeaseTime later = kNow + config_.lease - absl::Seconds(1);
  ASSERT_TRUE(store_.Use("me", "b", later).ok());
  EXPECT_EQ(store_.EvictExpired(kNow + config_.lease), 1);
  EXPECT_EQ(Ids("me", "", 10, later), (std::vector<std::string>{"b"}));
  EXPECT_EQ(store_.totals().sessions, 1);
  EXPECT_EQ(store_.EvictExpired(later + config_.lease), 1);
  EXPECT_EQ(store_.totals().sessions, 0);
}

TEST_F(SessionStoreTest, ALeaseThatIsOverIsNotRenewed) {
  const auto session = store_.Create("me", "a", config_, kNow);
  ASSERT_TRUE(session.ok());
  ASSERT_EQ(AppendTokens(**session, 0, Some(5)), absl::OkStatus());
  const LeaseTime later = kNow + config_.lease;
  EXPECT_TRUE(absl::IsNotFound(store_.Use("me", "a", later).status()));
  EXPECT_TRUE(absl::IsNotFound(store_.Find("me", "a", later).status()));
  const auto next = store_.Create("me", "a", config_, later);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_NE(*session, *next);
  EXPECT_EQ(*(*next)->length(0), 0);
  EXPECT_TRUE(absl::IsNotFound((*session)->Read(0).status()));
  EXPECT_EQ(store_.totals().sessions, 1);
}

TEST_F(SessionStoreTest, ForksAllOrNone) {
  const auto session = store_.Create("me", "a", config_, kNow);
  ASSERT_TRUE(session.ok());
  const Tokens tokens = Some(5);
  ASSERT_EQ(AppendTokens(**session, 1, tokens), absl::OkStatus());
  const SessionStore::ForkRequest bad[][2] = {{{"a", "b"}, {"missing", "c"}},
                                              {{"a", "b"}, {"a", "b"}},
                                              {{"a", "b"}, {"a", "a"}},
                                              {{"a", "b"}, {"a", ""}}};
  for (const auto& forks : bad) {
    EXPECT_FALSE(store_.Fork("me", forks, kNow).ok());
    EXPECT_EQ(store_.totals().sessions, 1);
    EXPECT_EQ(Ids("me", "", 10), (std::vector<std::string>{"a"}));
  }
  const SessionStore::ForkRequest good[] = {{"a", "b"}, {"a", "c"}};
  const auto forks = store_.Fork("me", good, kNow);
  ASSERT_TRUE(forks.ok()) << forks.status();
  EXPECT_EQ(*store_.Use("me", "c", kNow), (*forks)[1]);
  EXPECT_TRUE(Holds(*(*forks)[1]->Read(1), tokens));
  EXPECT_EQ(store_.totals().sessions, 3);
}

TEST_F(SessionStoreTest, ForksTakeThePlaceOfWhatHasExpired) {
  ASSERT_TRUE(store_.Create("me", "old", config_, kNow).ok());
  const LeaseTime later = kNow + config_.lease;
  ASSERT_TRUE(store_.Create("me", "a", config_, later).ok());
  const SessionStore::ForkRequest forks[] = {{"a", "old"}};
  ASSERT_TRUE(store_.Fork("me", forks, later).ok());
  EXPECT_EQ(store_.totals().sessions, 2);
}

TEST_F(SessionStoreTest, BoundsTheNumberOfSessions) {
  store_.SetLimits("me", {.bytes = 10000, .sessions = 2});
  ASSERT_TRUE(store_.Create("me", "a", config_, kNow).ok());
  const SessionStore::ForkRequest forks[] = {{"a", "b"}, {"a", "c"}};
  EXPECT_TRUE(
      absl::IsResourceExhausted(store_.Fork("me", forks, kNow).status()));
  ASSERT_TRUE(store_.Create("me", "b", config_, kNow).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(
      store_.Create("me", "c", config_, kNow).status()));
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(store_.Create("you", id, config_, kNow).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      store_.Create("you", "e", config_, kNow).status()));
  EXPECT_TRUE(store_.Delete("me", "a"));
  EXPECT_TRUE(store_.Create("you", "e", config_, kNow).ok());
}

TEST_F(SessionStoreTest, SessionsWithoutTokensTakeMemoryToo) {
  store_.SetLimits("me", {.bytes = Session::Bytes(config_) + 1, .sessions = 9});
  ASSERT_TRUE(store_.Create("me", "a", config_, kNow).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(
      store_.Create("me", "b", config_, kNow).status()));
  const SessionStore::ForkRequest forks[] = {{"a", "b"}};
  EXPECT_TRUE(
      absl::IsResourceExhausted(store_.Fork("me", forks, kNow).status()));
  EXPECT_EQ(store_.totals("me").bytes, Session::Bytes(config_));
  EXPECT_EQ(Ids("me", "", 9), (std::vector<std::string>{"a"}));
}

TEST_F(SessionStoreTest, BoundsTheBytesOfAnOwnerAndOfAll) {
  store_.SetLimits("me", {.bytes = 4000, .sessions = 2});
  const auto mine = store_.Create("me", "a", config_, kNow);
  auto yours = store_.Create("you", "a", config_, kNow);
  ASSERT_TRUE(mine.ok() && yours.ok());
  absl::Status full = AppendTokens(**mine, 0, Some(256));
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.message(), HasSubstr("the tenant's sessions hold"));
  EXPECT_THAT(full.message(), HasSubstr("of 4000 bytes"));
  EXPECT_EQ(AppendTokens(**mine, 0, Some(10)), absl::OkStatus());
  EXPECT_EQ(AppendTokens(**yours, 0, Some(31000)), absl::OkStatus());
  full = AppendTokens(**yours, 0, Some(2000));
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.message(),
              HasSubstr("all sessions of the server together hold"));
  EXPECT_EQ(store_.totals().bytes,
            store_.totals("me").bytes + store_.totals("you").bytes);
  store_.Delete("you", "a");
  yours = absl::CancelledError();  // Lets go of it.
  EXPECT_EQ(store_.totals("you").bytes, 0);
}

TEST_F(SessionStoreTest, NamesWhatIsWrong) {
  const auto field = [&](absl::string_view id, const SessionConfig& config) {
    const absl::Status status = store_.Create("me", id, config, kNow).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return ErrorField(status);
  };
  EXPECT_EQ(field("", config_), "id");
  EXPECT_EQ(field("a b", config_), "id");
  EXPECT_EQ(field(std::string(129, 'a'), config_), "id");
  SessionConfig config = config_;
  config.num_layers = 0;
  EXPECT_EQ(field("a", config), "num_layers");
  config = config_;
  config.format.kv_heads = -1;
  EXPECT_EQ(field("a", config), "kv_heads");
  config = config_;
  config.format.key_size = int64_t{1} << 40;
  EXPECT_EQ(field("a", config), "head_size");
  config = config_;
  config.format.value_size = 5;
  config.format.value_is_key_prefix = true;
  EXPECT_EQ(field("a", config), "value_head_size");
  config = config_;
  config.format.type = DataType::kInt32;
  EXPECT_EQ(field("a", config), "data_type");
  config = config_;
  config.retain_window = {1, 2, 3, 4, 5};
  EXPECT_EQ(field("a", config), "retain_window");
  config.retain_window.assign(config.num_layers, 5);
  config.retain_window.back() = -1;
  EXPECT_EQ(field("a", config),
            absl::StrCat("retain_window[", config.num_layers - 1, "]"));
  config.retain_window = {};
  config.rollback_tokens = -1;
  EXPECT_EQ(field("a", config), "rollback_tokens");
  config.rollback_tokens = 0;
  config.lease = absl::ZeroDuration();
  EXPECT_EQ(field("a", config), "lease");
  EXPECT_EQ(store_.totals().sessions, 0);
}

}  // namespace
}  // namespace attention
