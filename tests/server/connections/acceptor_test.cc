#include "server/connections/acceptor.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/base_sink.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/connections/limits.h"
#include "tests/support/socket.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::ConnectTo;
using ::attention::testing::WaitUntil;

// In place of gRPC: keeps what it is given.
class FakeSink : public Acceptor::Sink {
 public:
  void HandleNewConnection(NewConnectionParameters* parameters) override {
    std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_GE(parameters->listener_fd, 0);
    connections_.emplace_back(parameters->fd);
  }

  int count() {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(connections_.size());
  }

  void CloseAll() {
    std::lock_guard<std::mutex> lock(mutex_);
    connections_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<Descriptor> connections_;
};

// Keeps the lines that are logged.
class LogLines : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // How many have `text`.
  int Count(const std::string& text) {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(
        std::count_if(lines_.begin(), lines_.end(), [&](const auto& line) {
          return line.find(text) != std::string::npos;
        }));
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    lines_.emplace_back(message.payload.data(), message.payload.size());
  }
  void flush_() override {}

 private:
  std::vector<std::string> lines_;
};

int LowestFreeDescriptor() { return Descriptor(dup(STDERR_FILENO)).get(); }

// Lowers the limit of descriptors while it lives.
class DescriptorLimitOf {
 public:
  explicit DescriptorLimitOf(rlim_t limit) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit lowered = {.rlim_cur = limit, .rlim_max = before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &lowered), 0);
  }
  ~DescriptorLimitOf() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_;
};

class AcceptorTest : public ::testing::Test {
 protected:
  AcceptorTest() {
    for (int i = 0; i < 2; ++i) {
      auto listener = Listener::Open("127.0.0.1:0");
      EXPECT_TRUE(listener.ok()) << listener.status();
      addresses_.push_back(listener->address());
      listeners_.push_back(*std::move(listener));
    }
  }

  void Start(int64_t max_connections) {
    acceptor_ = std::make_unique<Acceptor>(
        std::move(listeners_), max_connections,
        Acceptor::Sinks{sink_, unix_sink_}, connections_, log_);
  }

  // At the two addresses in turn.
  void Connect(int count) {
    for (int i = 0; i < count; ++i) {
      clients_.push_back(ConnectTo(addresses_[i % 2]));
    }
  }

  bool WaitForConnections(int count) {
    return WaitUntil([&] { return sink_.count() == count; });
  }

  const std::shared_ptr<LogLines> lines_ = std::make_shared<LogLines>();
  spdlog::logger log_{"test", lines_};
  FakeSink sink_, unix_sink_;
  ConnectionTable connections_;
  std::vector<Listener> listeners_;
  std::vector<std::string> addresses_;
  std::vector<Descriptor> clients_;
  std::unique_ptr<Acceptor> acceptor_;
};

TEST_F(AcceptorTest, HandsOverFromEveryListener) {
  Start(100);
  Connect(10);
  EXPECT_TRUE(WaitForConnections(10));
  EXPECT_EQ(connections_.open(), 10);
  EXPECT_EQ(lines_->Count(""), 0);
}

TEST_F(AcceptorTest, StopsAtTheLimitAndGoesOn) {
  Start(4);
  Connect(10);
  for (int expected : {4, 4, 2}) {
    EXPECT_TRUE(WaitForConnections(expected));
    EXPECT_EQ(connections_.open(), expected);
    sink_.CloseAll();
  }
  // One line, though it stopped twice.
  EXPECT_EQ(lines_->Count("event=accept_stopped reason=\"max_connections\" "
                          "open_connections=4 max_connections=4 "),
            1);
  EXPECT_TRUE(
      WaitUntil([&] { return lines_->Count("event=accept_resumed") == 1; }));
  EXPECT_EQ(lines_->Count(""), 2);
}

TEST_F(AcceptorTest, LeavesDescriptorsForOthers) {
  Connect(30);
  const DescriptorLimitOf limit(LowestFreeDescriptor() + 20);
  Start(1000);
  EXPECT_TRUE(WaitUntil(
      [&] { return lines_->Count("reason=\"few_descriptors_left\"") == 1; }));
  EXPECT_LT(sink_.count(), 20);
  EXPECT_GE(LowestFreeDescriptor(), 0);
  const int first = sink_.count();
  sink_.CloseAll();
  EXPECT_TRUE(WaitForConnections(std::min(first, 30 - first)));
}

TEST_F(AcceptorTest, SurvivesThatDescriptorsRunOut) {
  Start(1000);
  {
    const DescriptorLimitOf limit(LowestFreeDescriptor() + 1);
    Connect(1);
    EXPECT_TRUE(WaitUntil(
        [&] { return lines_->Count("reason=\"Too many open files\"") == 1; }));
    EXPECT_EQ(sink_.count(), 0);
  }
  EXPECT_TRUE(WaitForConnections(1));
}

TEST_F(AcceptorTest, ClosesItsListeners) {
  Start(1);
  acceptor_.reset();
  EXPECT_FALSE(ConnectTo(addresses_[0]).valid());
}

TEST(LimitsTest, AQuarterOfFewDescriptorsIsInReserve) {
  EXPECT_EQ(DescriptorReserve(256), 64);
  EXPECT_EQ(DescriptorReserve(512), 128);
  EXPECT_EQ(DescriptorReserve(1'000'000), 128);
  const DescriptorLimitOf limit(256);
  EXPECT_EQ(DescriptorLimit(), 256);
  EXPECT_EQ(MostConnections(), 192);
}

}  // namespace
}  // namespace attention::server
