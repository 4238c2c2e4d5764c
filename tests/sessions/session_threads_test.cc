// Many threads at once on the same sessions: what a reader holds never changes,
// and every row it sees was written whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "sessions/session_store.h"
#include "tests/sessions/rows.h"

namespace attention {
namespace {

constexpr char kOwner[] = "me";
constexpr int kThreads = 4;
constexpr int kSteps = 2000;
const LeaseTime kNow(absl::Seconds(1000));

class Threads {
 public:
  // `window` as in SessionConfig::retain_window; 0: none.
  explicit Threads(int64_t window) : window_(window) {
    if (window > 0) {
      config_.retain_window = {window};
      config_.rollback_tokens = 30;
    }
  }

  void Run() {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([this, i] { Worker(i); });
    }
    for (std::thread& thread : threads) thread.join();
    for (int i = 0; i < kIds; ++i) store_.Delete(kOwner, Id(i));
    EXPECT_EQ(store_.totals().bytes, 0);
    EXPECT_EQ(store_.totals().sessions, 0);
    EXPECT_GT(appended_, 0);
    EXPECT_EQ(read_after_release_ > 0, window_ > 0);
  }

 private:
  static constexpr int kIds = 3;

  static std::string Id(int64_t number) { return absl::StrCat("s", number); }

  void Worker(uint32_t seed) {
    std::mt19937 random(seed);
    const auto number = [&](int64_t most) {
      return std::uniform_int_distribution<int64_t>(0, most)(random);
    };
    for (int i = 0; i < kSteps; ++i) {
      const std::string id = Id(number(kIds - 1));
      const int64_t choice = number(39);
      if (choice == 0) {
        store_.Delete(kOwner, id);
        continue;
      }
      if (choice == 1) {
        const SessionStore::ForkRequest fork[] = {{id, Id(number(kIds - 1))}};
        static_cast<void>(store_.Fork(kOwner, fork, kNow));
        continue;
      }
      const auto session = store_.Create(kOwner, id, config_, kNow);
      ASSERT_TRUE(session.ok()) << session.status();
      if (choice < 20) {
        Append(**session, number(window_ > 0 ? 400 : 40));
      } else if (choice < 22) {
        const auto length = (*session)->length(0);
        if (length.ok()) {
          static_cast<void>((*session)->Truncate(number(*length)));
        }
      } else {
        Read(**session);
      }
    }
  }

  // Every element of a row is the number of its append.
  void Append(Session& session, int64_t tokens) {
    auto append = session.BeginAppend(0, {.tokens = tokens});
    if (!append.ok()) return;
    const auto tag = static_cast<float>(++tags_ % (1 << 20));
    for (int64_t head = 0; head < config_.format.kv_heads; ++head) {
      for (int64_t token = append->begin(); token < append->end(); ++token) {
        const Append::Rows rows = append->RowsAt(head, token);
        std::fill_n(reinterpret_cast<float*>(rows.key), config_.format.key_size,
                    tag);
        std::fill_n(reinterpret_cast<float*>(rows.value),
                    config_.format.value_size, tag);
      }
    }
    if (std::move(*append).Publish().ok()) appended_ += tokens;
  }

  void Read(const Session& session) {
    const auto snapshot = session.Read(0);
    if (!snapshot.ok()) return;
    if (snapshot->first_token() > 0) ++read_after_release_;
    EXPECT_EQ(snapshot->first_token() % kKeyBlock, 0);
    EXPECT_GE(snapshot->length() - snapshot->first_token(),
              std::min(window_, snapshot->length()));
    const std::vector<float> first = Tags(*snapshot);
    std::this_thread::yield();
    EXPECT_EQ(Tags(*snapshot), first);
  }

  std::vector<float> Tags(const LayerSnapshot& snapshot) const {
    const KeyValueView view = snapshot.view();
    std::vector<float> tags;
    for (int64_t token = 0; token < view.length; ++token) {
      const KeyValueView::Block& block = view.blocks[token / kKeyBlock];
      const int64_t row = token % kKeyBlock;
      const float tag =
          static_cast<const float*>(block.key)[row * view.key_row_stride];
      for (int64_t head = 0; head < config_.format.kv_heads; ++head) {
        const float* const key = static_cast<const float*>(block.key) +
                                 head * block.key_head_stride +
                                 row * view.key_row_stride;
        const float* const value = static_cast<const float*>(block.value) +
                                   head * block.value_head_stride +
                                   row * view.value_row_stride;
        for (int64_t d = 0; d < config_.format.key_size; ++d) {
          EXPECT_EQ(key[d], tag);
        }
        for (int64_t d = 0; d < config_.format.value_size; ++d) {
          EXPECT_EQ(value[d], tag);
        }
      }
      tags.push_back(tag);
    }
    return tags;
  }

  const int64_t window_;
  SessionConfig config_ = {
      .format = {.kv_heads = 2, .key_size = 3, .value_size = 2}};
  SessionStore store_{{.bytes = int64_t{8} << 20, .sessions = 16},
                      PoisonedPool(1 << 20)};
  std::atomic<int64_t> tags_{0};
  std::atomic<int64_t> appended_{0};
  std::atomic<int64_t> read_after_release_{0};
};

TEST(SessionThreadsTest, ReadersSeeWholeRowsThatStay) { Threads(0).Run(); }

TEST(SessionThreadsTest, SoDoThoseOfLayersWithAWindow) { Threads(100).Run(); }

}  // namespace
}  // namespace attention
