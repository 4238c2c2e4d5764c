#include "server/http/work_lane.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

// One that nobody waits for, but that can be told gone.
class FakeExchange final : public HttpExchange {
 public:
  void Answer(HttpResponse) override {}
  void Abort() noexcept override { aborted = true; }
  bool gone() const override { return is_gone; }
  bool Hold(int64_t) override { return true; }
  void OnGone(std::function<void()>) override {}

  std::atomic<bool> is_gone{false};
  std::atomic<bool> aborted{false};
};

TenantPtr TenantOf(int id, double weight) {
  auto tenant = std::make_shared<Tenant>();
  tenant->id = id;
  tenant->weight = weight;
  return tenant;
}

class WorkLaneTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto lane = WorkLane::Create();
    ASSERT_TRUE(lane.ok()) << lane.status();
    lane_ = *std::move(lane);
  }

  // Keeps the lane busy until Open(): what is posted meanwhile waits.
  void Close() {
    lane_->Post(
        {.exchange = exchange_, .tenant = TenantOf(9, 1), .run = [this] {
           std::unique_lock<std::mutex> lock(mutex_);
           closed_ = true;
           changed_.notify_all();
           changed_.wait(lock, [this] { return !closed_; });
         }});
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_; });
  }
  void Open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = false;
    changed_.notify_all();
  }

  void Post(const std::string& name, const TenantPtr& tenant, int64_t bytes,
            absl::Time deadline = absl::InfiniteFuture()) {
    const auto note = [this](const std::string& what) {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_.push_back(what);
      changed_.notify_all();
    };
    lane_->Post({.exchange = exchange_,
                 .tenant = tenant,
                 .bytes = bytes,
                 .deadline = deadline,
                 .run = [note, name] { note(name); },
                 .expired = [note, name] { note("late " + name); }});
  }

  // What was done, in its order, once there are so many.
  std::vector<std::string> Done(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return done_.size() >= count; });
    return done_;
  }

  const std::shared_ptr<FakeExchange> exchange_ =
      std::make_shared<FakeExchange>();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  std::vector<std::string> done_;
  std::unique_ptr<WorkLane> lane_;
};

constexpr int64_t kMega = int64_t{1} << 20;

TEST_F(WorkLaneTest, ATenantsWorkIsDoneInItsOrder) {
  const TenantPtr tenant = TenantOf(1, 1);
  Close();
  Post("a", tenant, kMega);
  Post("b", tenant, 1);
  Post("c", tenant, kMega);
  Open();
  EXPECT_THAT(Done(3), ElementsAre("a", "b", "c"));
}

TEST_F(WorkLaneTest, TenantsTakeTurnsByBytes) {
  const TenantPtr greedy = TenantOf(1, 1);
  const TenantPtr modest = TenantOf(2, 1);
  Close();
  for (const char* name : {"g1", "g2", "g3", "g4"}) Post(name, greedy, kMega);
  Post("m1", modest, kMega / 2);
  Post("m2", modest, kMega / 2);
  Post("m3", modest, kMega / 2);
  Open();
  EXPECT_THAT(Done(7), ElementsAre("g1", "m1", "m2", "g2", "m3", "g3", "g4"));
}

TEST_F(WorkLaneTest, AndByWeight) {
  const TenantPtr light = TenantOf(1, 1);
  const TenantPtr heavy = TenantOf(2, 2);
  Close();
  for (const char* name : {"l1", "l2", "l3"}) Post(name, light, kMega);
  for (const char* name : {"h1", "h2", "h3", "h4"}) Post(name, heavy, kMega);
  Open();
  EXPECT_THAT(Done(7), ElementsAre("l1", "h1", "h2", "l2", "h3", "h4", "l3"));
}

// Whoever has been away has saved nothing up.
TEST_F(WorkLaneTest, WhoComesLateTakesTurnsFromThenOn) {
  const TenantPtr early = TenantOf(1, 1);
  const TenantPtr late = TenantOf(2, 1);
  Close();
  for (int i = 0; i < 4; ++i) Post("e", early, kMega);
  Open();
  Done(4);
  Close();
  Post("e", early, kMega);
  Post("l1", late, kMega);
  Post("l2", late, kMega);
  Post("l3", late, kMega);
  Open();
  const std::vector<std::string> done = Done(8);
  EXPECT_THAT(std::vector<std::string>(done.begin() + 4, done.end()),
              ElementsAre("l1", "e", "l2", "l3"));
}

TEST_F(WorkLaneTest, WhatIsLateIsToldFirst) {
  const TenantPtr tenant = TenantOf(1, 1);
  Close();
  Post("a", tenant, kMega);
  Post("b", tenant, kMega, absl::Now());
  Open();
  EXPECT_THAT(Done(2), ElementsAre("late b", "a"));
}

TEST_F(WorkLaneTest, NothingIsDoneForAClientThatHasGone) {
  const TenantPtr tenant = TenantOf(1, 1);
  Close();
  Post("a", tenant, 1);
  exchange_->is_gone = true;
  Open();
  const auto here = std::make_shared<FakeExchange>();
  std::atomic<bool> ran{false};
  lane_->Post({.exchange = here, .tenant = tenant, .run = [&] { ran = true; }});
  lane_->Post({.exchange = here, .tenant = tenant, .run = [] {
                 throw std::bad_alloc();
               }});
  while (!here->aborted) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(ran);
  EXPECT_TRUE(done_.empty());
}

TEST_F(WorkLaneTest, WhatHasNotBegunIsDroppedAtTheEnd) {
  const TenantPtr tenant = TenantOf(1, 1);
  const auto owned = std::make_shared<int>(1);
  Close();
  lane_->Post({.exchange = exchange_, .tenant = tenant, .run = [owned] {}});
  // The lane waits for what runs.
  std::thread opener([this] {
    absl::SleepFor(absl::Milliseconds(20));
    Open();
  });
  lane_.reset();
  opener.join();
  EXPECT_EQ(owned.use_count(), 1);
}

}  // namespace
}  // namespace attention::server
