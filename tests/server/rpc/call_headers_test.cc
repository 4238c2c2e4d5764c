#include "server/rpc/call_headers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/status.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr char kTraceparent[] =
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

CallerIds IdsOf(const std::vector<std::pair<std::string, std::string>>& list) {
  CallHeaders headers;
  for (const auto& [name, value] : list) headers.emplace(name, value);
  return CallerIds(headers);
}

TEST(CallerIdsTest, AreLoggedAndSentBack) {
  const CallerIds ids =
      IdsOf({{"traceparent", kTraceparent}, {"x-request-id", "order \"17\""}});
  EXPECT_EQ(ids.LogText(),
            " trace_id=0af7651916cd43dd8448eb211c80319c "
            "parent_id=b7ad6b7169203331 request_id=\"order \\\"17\\\"\"");
  EXPECT_THAT(ids.Trailers(),
              ElementsAre(Pair("traceparent", kTraceparent),
                          Pair("x-request-id", "order \"17\"")));
}

TEST(CallerIdsTest, NeitherNeedBeThere) {
  EXPECT_EQ(CallerIds().LogText(), "");
  EXPECT_EQ(IdsOf({{"x-other", "1"}}).LogText(), "");
  EXPECT_THAT(IdsOf({{"x-request-id", ""}}).Trailers(), IsEmpty());
}

TEST(CallerIdsTest, LaterVersionsMaySayMore) {
  for (const std::string text :
       {"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"}) {
    EXPECT_EQ(IdsOf({{"traceparent", text}}).LogText(),
              " trace_id=0af7651916cd43dd8448eb211c80319c "
              "parent_id=b7ad6b7169203331");
    EXPECT_THAT(IdsOf({{"traceparent", text}}).Trailers(),
                ElementsAre(Pair("traceparent", text)));
  }
}

TEST(CallerIdsTest, WhatIsNoTraceparentIsIgnored) {
  const std::string good = kTraceparent;
  std::vector<std::string> bad = {
      "",
      good.substr(1),
      good + "0",
      good + "-more",  // version 00 has no more
      "ff" + good.substr(2),
      "0x" + good.substr(2),
      "00-00000000000000000000000000000000-b7ad6b7169203331-01",
      "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
      "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
      good.substr(0, 53) + "\n1",
      "01" + good.substr(2) + "more",
      "01" + good.substr(2) + "-" + std::string(100, 'x'),
      std::string(100000, '0')};
  for (size_t dash : {2, 35, 52}) {
    bad.push_back(good);
    bad.back()[dash] = '_';
  }
  for (const std::string& text : bad) {
    EXPECT_EQ(IdsOf({{"traceparent", text}}).LogText(), "") << text;
    EXPECT_THAT(IdsOf({{"traceparent", text}}).Trailers(), IsEmpty()) << text;
  }
}

TEST(CallerIdsTest, RequestIdsAreShortAndPrintable) {
  const std::string longest(CallerIds::kMaxRequestIdBytes, 'x');
  EXPECT_THAT(IdsOf({{"x-request-id", longest}}).Trailers(),
              ElementsAre(Pair("x-request-id", longest)));
  for (const std::string& text :
       {longest + "x", std::string("a\nlevel=error"), std::string("\x1b[31m"),
        std::string("a\0b", 3), std::string("\xc3\xa9"), std::string("\x7f")}) {
    EXPECT_EQ(IdsOf({{"x-request-id", text}}).LogText(), "") << text;
    EXPECT_THAT(IdsOf({{"x-request-id", text}}).Trailers(), IsEmpty()) << text;
  }
}

TEST(CallerIdsTest, AHeaderThatComesTwiceIsIgnored) {
  EXPECT_EQ(IdsOf({{"x-request-id", "a"}, {"x-request-id", "b"}}).LogText(),
            "");
  EXPECT_EQ(IdsOf({{"traceparent", kTraceparent},
                   {"traceparent", kTraceparent},
                   {"x-request-id", "a"}})
                .LogText(),
            " request_id=\"a\"");
}

TEST(CheckHeadersTest, CountsAsHttp2Does) {
  const std::string value(100, 'v');
  const CallHeaders headers = {{"a", value}, {"b", value}};
  const int64_t bytes = 2 * (1 + 100 + 32);
  EXPECT_TRUE(CheckHeaders(headers, bytes).ok());
  const absl::Status status = CheckHeaders(headers, bytes - 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "the call's headers: got 2 of 266 bytes in all, wanted at most 256 "
            "of 265 bytes (max_header_bytes)");
  EXPECT_EQ(ReasonOf(status), Reason::kHeadersTooLarge);
}

TEST(CheckHeadersTest, ManySmallOnesAreTooMany) {
  CallHeaders headers;
  for (int64_t i = 0; i < kMaxHeaders; ++i) headers.emplace("a", "");
  EXPECT_TRUE(CheckHeaders(headers, 1 << 20).ok());
  headers.emplace("a", "");
  EXPECT_EQ(ReasonOf(CheckHeaders(headers, 1 << 20)), Reason::kHeadersTooLarge);
}

}  // namespace
}  // namespace attention::server
