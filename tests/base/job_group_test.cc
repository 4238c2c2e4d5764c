#include "base/job_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/executor.h"

namespace attention {
namespace {

// Writes what it does into a record that its siblings share.
class Member final : public Executor::Job {
 public:
  struct Record {
    std::mutex mutex;
    std::multiset<std::string> tasks;  // "name.stage.task"
    std::vector<std::string> ends;     // "name end"
    std::vector<std::string> deaths;
  };

  // Stages of so many tasks, each of which has to be called `calls` times.
  Member(std::string name, std::vector<int64_t> stages, Record& record,
         int calls = 1)
      : name_(std::move(name)),
        stages_(std::move(stages)),
        calls_(calls),
        record_(record) {}
  ~Member() override { record_.deaths.push_back(name_); }

  int64_t NextStage() override {
    EXPECT_EQ(running_, 0);
    if (stage_ == stages_.size()) {
      EXPECT_FALSE(std::exchange(told_, true)) << "asked again after the last";
      return 0;
    }
    const int64_t tasks = stages_[stage_++];
    left_ = std::vector<std::atomic<int>>(static_cast<size_t>(tasks));
    for (std::atomic<int>& left : left_) left = calls_;
    return tasks;
  }
  bool RunTask(int64_t task, const Turn& /*turn*/) override {
    ++running_;
    const bool done = --left_.at(static_cast<size_t>(task)) == 0;
    if (done) {
      const std::lock_guard<std::mutex> lock(record_.mutex);
      record_.tasks.insert(name_ + "." + std::to_string(stage_) + "." +
                           std::to_string(task));
    }
    --running_;
    return done;
  }
  void Done(JobEnd end) override {
    record_.ends.push_back(name_ + (end == JobEnd::kDone ? " done" : " not"));
  }

 private:
  const std::string name_;
  const std::vector<int64_t> stages_;
  const int calls_;
  Record& record_;
  size_t stage_ = 0;
  bool told_ = false;
  std::vector<std::atomic<int>> left_;
  std::atomic<int> running_{0};
};

void AddMembers(JobGroup& group, Member::Record& record, int calls) {
  group.Add(
      std::make_unique<Member>("a", std::vector<int64_t>{2, 1}, record, calls));
  group.Add(std::make_unique<Member>("b", std::vector<int64_t>{}, record));
  group.Add(std::make_unique<Member>("c", std::vector<int64_t>{1, 3, 2}, record,
                                     calls));
}

TEST(JobGroupTest, RunsEveryTaskOfEveryMember) {
  Executor executor(2);
  for (int calls : {1, 3}) {
    Member::Record record;
    JobGroup group;
    AddMembers(group, record, calls);
    executor.Run(&group, {});
    EXPECT_EQ(record.tasks, (std::multiset<std::string>{
                                "a.1.0", "a.1.1", "a.2.0", "c.1.0", "c.2.0",
                                "c.2.1", "c.2.2", "c.3.0", "c.3.1"}));
    EXPECT_EQ(record.ends,
              (std::vector<std::string>{"a done", "b done", "c done"}));
    EXPECT_EQ(record.deaths, (std::vector<std::string>{"a", "b", "c"}));
  }
}

TEST(JobGroupTest, StagesGoSideBySide) {
  Member::Record record;
  JobGroup group;
  AddMembers(group, record, 1);
  EXPECT_EQ(group.NextStage(), 3);
  const Turn turn(nullptr);
  for (int64_t task : {0, 1, 2}) EXPECT_TRUE(group.RunTask(task, turn));
  EXPECT_EQ(group.NextStage(), 4);
  EXPECT_TRUE(group.RunTask(3, turn));
  EXPECT_EQ(record.tasks.count("c.2.2"), 1);
  for (int64_t task : {0, 1, 2}) EXPECT_TRUE(group.RunTask(task, turn));
  EXPECT_EQ(group.NextStage(), 2);
  for (int64_t task : {0, 1}) EXPECT_TRUE(group.RunTask(task, turn));
  EXPECT_EQ(group.NextStage(), 0);
  EXPECT_EQ(group.NextStage(), 0);
  group.Done(JobEnd::kDone);
}

TEST(JobGroupTest, EveryMemberHearsHowItEnded) {
  Member::Record record;
  JobGroup group;
  AddMembers(group, record, 1);
  group.NextStage();
  group.Done(JobEnd::kCancelled);
  EXPECT_EQ(record.ends, (std::vector<std::string>{"a not", "b not", "c not"}));
  EXPECT_EQ(record.deaths.size(), 3);
}

TEST(JobGroupTest, NoMembersIsNoWork) {
  JobGroup group;
  EXPECT_EQ(group.NextStage(), 0);
  group.Done(JobEnd::kDone);
}

}  // namespace
}  // namespace attention
