#include "server/shared_memory/named_regions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "tests/support/named_memory.h"

namespace attention::server {
namespace {

using ::attention::testing::NamedMemory;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kTenant = 3;

std::string FieldOf(const absl::Status& status) {
  return status.ok() ? "OK" : ErrorField(status);
}

TEST(NamedRegionsTest, ReadsAndWritesTheClientsMemory) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  ASSERT_TRUE(regions.Register(kTenant, "r", memory.key(), 10, 50).ok());
  const NamedRegionPtr region = regions.Find(kTenant, "r");
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->key(), memory.key());
  EXPECT_EQ(region->offset(), 10);
  EXPECT_EQ(region->bytes(), 50);
  memory.Set(15, "x");
  std::array<std::byte, 2> bytes;
  EXPECT_TRUE(region->Read(5, absl::MakeSpan(bytes)));
  EXPECT_EQ(bytes[0], std::byte{'x'});
  bytes = {std::byte{'y'}, std::byte{'z'}};
  EXPECT_TRUE(region->Write(48, bytes));
  EXPECT_EQ(memory.At(58), 'y');
  EXPECT_EQ(memory.At(59), 'z');
  EXPECT_EQ(memory.At(60), 0);
}

TEST(NamedRegionsTest, HoldsItsOwnBytesOnly) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  ASSERT_TRUE(regions.Register(kTenant, "r", memory.key(), 10, 50).ok());
  const NamedRegionPtr region = regions.Find(kTenant, "r");
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_TRUE(region->Holds(0, 50));
  EXPECT_TRUE(region->Holds(50, 0));
  EXPECT_FALSE(region->Holds(1, 50));
  EXPECT_FALSE(region->Holds(51, 0));
  EXPECT_FALSE(region->Holds(-1, 1));
  EXPECT_FALSE(region->Holds(0, -1));
  EXPECT_FALSE(region->Holds(kMost, kMost));
  EXPECT_FALSE(region->Holds(1, kMost));
}

// What would end a process that had mapped it is an error here.
TEST(NamedRegionsTest, MemoryMayBecomeSmaller) {
  NamedRegions regions(true);
  const NamedMemory memory(1 << 16);
  ASSERT_TRUE(regions.Register(kTenant, "r", memory.key(), 0, 1 << 16).ok());
  const NamedRegionPtr region = regions.Find(kTenant, "r");
  memory.Resize(100);
  std::array<std::byte, 200> bytes{};
  EXPECT_TRUE(region->Read(0, absl::MakeSpan(bytes).first(100)));
  EXPECT_FALSE(region->Read(0, absl::MakeSpan(bytes)));
  EXPECT_FALSE(region->Read(1000, absl::MakeSpan(bytes)));
  // And it is not made larger again.
  EXPECT_FALSE(region->Write(0, bytes));
  EXPECT_FALSE(region->Read(150, absl::MakeSpan(bytes).first(1)));
}

TEST(NamedRegionsTest, OtherTenantsDoNotFindIt) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  ASSERT_TRUE(regions.Register(kTenant, "r", memory.key(), 0, 100).ok());
  EXPECT_EQ(regions.Find(kTenant + 1, "r"), nullptr);
  EXPECT_EQ(regions.Find(kTenant, "s"), nullptr);
  regions.Unregister(kTenant + 1, "r");
  regions.Unregister(kTenant + 1, "");
  EXPECT_NE(regions.Find(kTenant, "r"), nullptr);
  // The other one may have the same name for its own.
  EXPECT_TRUE(regions.Register(kTenant + 1, "r", memory.key(), 0, 1).ok());
}

TEST(NamedRegionsTest, NamesAreTakenOnce) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  ASSERT_TRUE(regions.Register(kTenant, "b", memory.key(), 0, 100).ok());
  ASSERT_TRUE(regions.Register(kTenant, "a", memory.key(), 0, 100).ok());
  EXPECT_EQ(regions.Register(kTenant, "a", memory.key(), 0, 100).code(),
            absl::StatusCode::kAlreadyExists);
  const auto names = [&](const std::string& name) {
    std::vector<std::string> found;
    for (const auto& [its, region] : regions.List(kTenant, name)) {
      found.push_back(its);
    }
    return found;
  };
  EXPECT_THAT(names(""), ElementsAre("a", "b"));
  EXPECT_THAT(names("b"), ElementsAre("b"));
  EXPECT_THAT(names("c"), ElementsAre());
  EXPECT_TRUE(regions.HasAny(kTenant));
  regions.Unregister(kTenant, "a");
  regions.Unregister(kTenant, "a");
  EXPECT_THAT(names(""), ElementsAre("b"));
  regions.Unregister(kTenant, "");
  EXPECT_FALSE(regions.HasAny(kTenant));
}

TEST(NamedRegionsTest, ThereAreNotTooMany) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  for (size_t i = 0; i < NamedRegions::kMostRegions; ++i) {
    ASSERT_TRUE(
        regions.Register(kTenant, absl::StrCat(i), memory.key(), 0, 1).ok());
  }
  EXPECT_EQ(regions.Register(kTenant, "more", memory.key(), 0, 1).code(),
            absl::StatusCode::kResourceExhausted);
  regions.Unregister(kTenant, "0");
  EXPECT_TRUE(regions.Register(kTenant, "more", memory.key(), 0, 1).ok());
}

TEST(NamedRegionsTest, OpensNothingButSharedMemory) {
  NamedRegions regions(true);
  const NamedMemory memory(100);
  const auto field = [&](const std::string& name, const std::string& key,
                         uint64_t offset, uint64_t bytes) {
    const absl::Status status =
        regions.Register(kTenant, name, key, offset, bytes);
    // Nobody learns what is there, nor reads names of others in a log.
    if (key.size() > 1 && key != memory.key()) {
      EXPECT_THAT(std::string(status.message()), Not(HasSubstr(key)));
    }
    return FieldOf(status);
  };
  for (const std::string key :
       {"", "/", "..", "/..", "/../etc/passwd", "/etc/passwd", "a/b", "//a",
        "/.hidden", "/no-such-memory-here", "/a b", "/a\nb"}) {
    EXPECT_EQ(field("r", key, 0, 1), "key") << key;
  }
  EXPECT_EQ(field("r", std::string("/a\0b", 4), 0, 1), "key");
  EXPECT_EQ(field("r", std::string(300, 'a'), 0, 1), "key");
  EXPECT_EQ(field("", memory.key(), 0, 1), "name");
  EXPECT_EQ(field("a b", memory.key(), 0, 1), "name");
  EXPECT_EQ(field(std::string(129, 'a'), memory.key(), 0, 1), "name");
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  for (const auto& [offset, bytes] :
       std::initializer_list<std::pair<uint64_t, uint64_t>>{
           {0, 0},
           {0, 101},
           {1, 100},
           {100, 1},
           {kMost, 1},
           {1, kMost},
           {kMost / 2, kMost / 2}}) {
    EXPECT_EQ(field("r", memory.key(), offset, bytes), "byte_size")
        << offset << " " << bytes;
  }
  EXPECT_FALSE(regions.HasAny(kTenant));
}

TEST(NamedRegionsTest, NeedsToBeAllowed) {
  NamedRegions regions(false);
  const NamedMemory memory(100);
  EXPECT_EQ(regions.Register(kTenant, "r", memory.key(), 0, 100).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(regions.Find(kTenant, "r"), nullptr);
}

}  // namespace
}  // namespace attention::server
