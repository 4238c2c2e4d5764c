#include "client/cpp/cli/bench/call_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace attention::cli {
namespace {

using ::testing::HasSubstr;

TEST(ParseShape, Numbers) {
  EXPECT_EQ(*ParseShape("2,8,4,16,32,64"),
            (CallShape{2, 8, 4, 16, 32, 64, 64}));
  EXPECT_EQ(*ParseShape("2,8,4,16,32,64,80"),
            (CallShape{2, 8, 4, 16, 32, 64, 80}));
}

TEST(ParseShape, NamesAndWhatIsLeftOut) {
  EXPECT_EQ(*ParseShape("S=128"), (CallShape{1, 1, 1, 128, 128, 64, 64}));
  EXPECT_EQ(*ParseShape("S=1,T=2048,H=8,D=32"),
            (CallShape{1, 8, 8, 1, 2048, 32, 32}));
  EXPECT_EQ(*ParseShape("Dv=5,Hkv=2,Hq=6,B=3,S=7"),
            (CallShape{3, 6, 2, 7, 7, 64, 5}));
}

TEST(ParseShape, NamesWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "wanted B,Hq,Hkv,S,T,D"},
      {"1,2,3", "wanted B,Hq,Hkv,S,T,D"},
      {"1,1,1,1,1,1,1,1", "wanted B,Hq,Hkv,S,T,D"},
      {"1,1,1,1,x,1", "wanted B,Hq,Hkv,S,T,D"},
      {"S=1,X=2", "wanted B,Hq,Hkv,S,T,D"},
      {"S=1,T", "wanted B,Hq,Hkv,S,T,D"},
      {"T=5", "wanted a shape that gives S"},
      {"S=0", "wanted sizes of at least 1"},
      {"S=-3", "wanted sizes of at least 1"},
      {"S=1,Hq=3,Hkv=2", "wanted Hq a multiple of Hkv"},
      {"S=9223372036854775807,T=9223372036854775807", "at most 2^28 elements"},
      {"S=1,T=268435456,D=2", "at most 2^28 elements"},
  };
  for (const auto& [text, wanted] : cases) {
    const auto shape = ParseShape(text);
    ASSERT_FALSE(shape.ok()) << text;
    EXPECT_THAT(std::string(shape.status().message()),
                HasSubstr("got '" + text + "', wanted"));
    EXPECT_THAT(std::string(shape.status().message()), HasSubstr(wanted));
  }
}

TEST(ParseMix, SeveralShapes) {
  const auto mix = ParseMix("S=16:9,S=2048,T=2048,D=32:0.5,1,2,2,3,4,5:1");
  ASSERT_TRUE(mix.ok()) << mix.status();
  ASSERT_EQ(mix->size(), 3);
  EXPECT_EQ((*mix)[0].shape, *ParseShape("S=16"));
  EXPECT_EQ((*mix)[0].weight, 9);
  EXPECT_EQ((*mix)[1].shape, *ParseShape("S=2048,T=2048,D=32"));
  EXPECT_EQ((*mix)[1].weight, 0.5);
  EXPECT_EQ((*mix)[2].shape, *ParseShape("1,2,2,3,4,5"));
}

TEST(ParseMix, NamesWhatIsWrong) {
  for (const std::string text :
       {"", "S=16", "S=16:", "S=16:0", "S=16:-1", "S=16:nan", "S=16:1,S=4",
        "S=16:1,", "X=1:1", "S=16:1:2"}) {
    EXPECT_FALSE(ParseMix(text).ok()) << text;
  }
}

TEST(FormatShape, ReadsBack) {
  for (const std::string text :
       {"S=16,T=16,H=1,D=64", "B=2,S=1,T=9,Hq=4,Hkv=2,D=8,Dv=3"}) {
    EXPECT_EQ(FormatShape(*ParseShape(text)), text);
  }
}

}  // namespace
}  // namespace attention::cli
