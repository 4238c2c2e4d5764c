#include "server/shared_memory/region_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/shared_memory.h"

namespace attention::server {
namespace {

using attention::testing::MappedMemory;
using attention::testing::NewMemory;

constexpr int64_t kMost = int64_t{1} << 30;
constexpr int kTenant = 7;

absl::Status Refused(absl::string_view got, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("descriptor: got ", got, ", wanted ", wanted));
}

TEST(RegionTableTest, MapsTheClientsMemory) {
  RegionTable table(kMost);
  const MappedMemory memory(5000);
  const auto added = table.Add(Descriptor(dup(memory.fd())), kTenant, kMost);
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_EQ(added->bytes, 5000);
  EXPECT_EQ(added->id.size(), kRegionIdBytes);
  const RegionPtr region = table.Find(added->id, kTenant);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->bytes(), 5000);
  memory.bytes()[4999] = std::byte{3};
  EXPECT_EQ(region->data()[4999], std::byte{3});
  region->data()[0] = std::byte{4};
  EXPECT_EQ(memory.bytes()[0], std::byte{4});
}

TEST(RegionTableTest, IdsDiffer) {
  RegionTable table(kMost);
  const MappedMemory memory(1);
  const Descriptor fd(dup(memory.fd()));
  EXPECT_NE(table.Add(fd, kTenant, kMost)->id,
            table.Add(fd, kTenant, kMost)->id);
}

TEST(RegionTableTest, OthersDoNotFindIt) {
  RegionTable table(kMost);
  const auto added = table.Add(NewMemory(1), kTenant, kMost);
  ASSERT_TRUE(added.ok());
  EXPECT_EQ(table.Find(added->id, kTenant + 1), nullptr);
  EXPECT_EQ(table.Find(std::string(kRegionIdBytes, '\0'), kTenant), nullptr);
  EXPECT_EQ(table.Find("", kTenant), nullptr);
}

TEST(RegionTableTest, IsKeptByWhoUsesIt) {
  RegionTable table(kMost);
  const auto added = table.Add(NewMemory(5000), kTenant, kMost);
  ASSERT_TRUE(added.ok());
  RegionPtr region = table.Find(added->id, kTenant);
  table.Remove(added->id);
  table.Remove(added->id);
  EXPECT_EQ(table.Find(added->id, kTenant), nullptr);
  EXPECT_EQ(table.bytes(), 5000);
  region->data()[4999] = std::byte{1};
  region.reset();
  EXPECT_EQ(table.bytes(), 0);
}

TEST(RegionTableTest, MayOutliveTheTable) {
  RegionPtr region;
  {
    RegionTable table(kMost);
    const auto added = table.Add(NewMemory(1), kTenant, kMost);
    ASSERT_TRUE(added.ok());
    region = table.Find(added->id, kTenant);
  }
  EXPECT_EQ(region->data()[0], std::byte{0});
}

TEST(RegionTableTest, TakesOnlyWhatCannotBecomeSmaller) {
  RegionTable table(kMost);
  const auto add = [&](const Descriptor& memory) {
    return table.Add(memory, kTenant, kMost).status();
  };
  EXPECT_EQ(add(NewMemory(10, /*seals=*/0)),
            Refused("memory without F_SEAL_SHRINK",
                    "a memfd that can not become smaller"));
  EXPECT_EQ(add(NewMemory(10, F_SEAL_GROW)),
            Refused("memory without F_SEAL_SHRINK",
                    "a memfd that can not become smaller"));
  EXPECT_EQ(add(NewMemory(10, 0, /*flags=*/0)),
            Refused("memory without F_SEAL_SHRINK",
                    "a memfd that can not become smaller"));
  EXPECT_EQ(add(NewMemory(0)), Refused("no bytes", "at least one"));
  const absl::Status other =
      Refused("something else", "a memfd that can be sealed");
  std::FILE* const file = std::tmpfile();
  ASSERT_EQ(ftruncate(fileno(file), 10), 0);
  EXPECT_THAT(add(Descriptor(dup(fileno(file)))),
              ::testing::AnyOf(other, Refused("memory without F_SEAL_SHRINK",
                                              "a memfd that can not become "
                                              "smaller")));
  std::fclose(file);
  EXPECT_EQ(add(Descriptor(open("/dev/zero", O_RDWR | O_CLOEXEC))), other);
  EXPECT_EQ(add(Descriptor()), other);
  EXPECT_EQ(table.bytes(), 0);
  EXPECT_TRUE(add(NewMemory(10, F_SEAL_SHRINK | F_SEAL_GROW)).ok());
}

TEST(RegionTableTest, TakesOnlyWhatCanBeWrittenTo) {
  RegionTable table(kMost);
  const absl::Status refused =
      Refused("memory that cannot be written to", "one that can be");
  EXPECT_EQ(
      table.Add(NewMemory(10, F_SEAL_SHRINK | F_SEAL_WRITE), kTenant, kMost)
          .status(),
      refused);
  const Descriptor memory = NewMemory(10);
  const Descriptor read_only(
      open(absl::StrCat("/proc/self/fd/", memory.get()).c_str(),
           O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(read_only.valid());
  EXPECT_EQ(table.Add(read_only, kTenant, kMost).status(), refused);
  EXPECT_EQ(table.bytes(), 0);
}

TEST(RegionTableTest, RefusesHugePages) {
  // Without huge pages there is no such memfd, or none with a size.
  const Descriptor memory = NewMemory(size_t{2} << 20, F_SEAL_SHRINK,
                                      MFD_ALLOW_SEALING | MFD_HUGETLB);
  if (!memory.valid()) GTEST_SKIP() << "no memfd of huge pages here";
  RegionTable table(kMost);
  EXPECT_EQ(table.Add(memory, kTenant, kMost).status(),
            Refused("memory of huge pages", "a memfd without MFD_HUGETLB"));
}

TEST(RegionTableTest, BoundsTheBytes) {
  RegionTable table(100);
  EXPECT_EQ(table.Add(NewMemory(61), kTenant, 60).status(),
            absl::ResourceExhaustedError("got 61 bytes, wanted at most 60 more "
                                         "bytes of one connection"));
  const auto added = table.Add(NewMemory(60), kTenant, 60);
  ASSERT_TRUE(added.ok());
  EXPECT_EQ(table.Add(NewMemory(41), kTenant, 60).status(),
            absl::ResourceExhaustedError("got 41 bytes, wanted at most 40 more "
                                         "bytes of all connections"));
  EXPECT_TRUE(table.Add(NewMemory(40), kTenant, 60).ok());
  table.Remove(added->id);
  EXPECT_TRUE(table.Add(NewMemory(60), kTenant, 60).ok());
  EXPECT_EQ(table.bytes(), 100);
}

TEST(RegionTableTest, TheMemoryCannotBeCutOff) {
  RegionTable table(kMost);
  const MappedMemory memory(8192);
  const auto added = table.Add(Descriptor(dup(memory.fd())), kTenant, kMost);
  ASSERT_TRUE(added.ok());
  EXPECT_NE(ftruncate(memory.fd(), 4096), 0);
  // What is punched out of it reads as zeros.
  memory.bytes()[5000] = std::byte{1};
  EXPECT_EQ(fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      0, 8192),
            0);
  EXPECT_EQ(table.Find(added->id, kTenant)->data()[5000], std::byte{0});
}

}  // namespace
}  // namespace attention::server
