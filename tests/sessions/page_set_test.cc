// What comes in chunks of any sizes stands in the blocks as if each element had
// been put there by itself.
#include "sessions/page_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/buffer_pool.h"
#include "sessions/page_writer.h"

namespace attention {
namespace {

// Bytes in one piece of memory; reading past their end fails the test.
class MemoryReader {
 public:
  explicit MemoryReader(const std::string& bytes) : bytes_(&bytes) {}
  void ReadBytes(void* target, size_t count) {
    const size_t from = position_;
    Skip(count);
    if (position_ <= bytes_->size()) {
      std::memcpy(target, bytes_->data() + from, count);
    }
  }
  void Skip(size_t count) {
    position_ += count;
    EXPECT_LE(position_, bytes_->size());
  }

 private:
  const std::string* bytes_;
  size_t position_ = 0;
};

// The element at a place, different for every place nearby.
uint32_t Element(KeyOrValue operand, int64_t sequence, int64_t head,
                 int64_t token, int64_t d) {
  uint64_t hash = operand == KeyOrValue::kKey ? 1 : 2;
  for (int64_t number : {sequence, head, token, d}) {
    hash = (hash + static_cast<uint64_t>(number)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return static_cast<uint32_t>(hash);
}

uint8_t MaskElement(int64_t row, int64_t column) {
  return (row * 31 + column * 17) % 251;
}

struct Case {
  std::string name;
  KeyValueGeometry geometry;
  std::vector<int64_t> key_starts = {};
};

// Plays a client: chunks of the tokens as they arrive, and what must then stand
// in each page set.
class Play {
 public:
  explicit Play(const Case& c) : g_(c.geometry) {
    g_.key_starts = c.key_starts;
  }

  // The elements' bytes of one operand of a chunk.
  std::string Chunk(KeyOrValue operand, TokenRange chunk) const {
    std::string bytes;
    const auto add = [&](int64_t sequence, int64_t head, int64_t token) {
      const bool key = operand == KeyOrValue::kKey;
      for (int64_t d = 0; d < (key ? g_.key_size : g_.value_size); ++d) {
        const uint32_t element = Element(operand, sequence, head, token, d);
        bytes.append(reinterpret_cast<const char*>(&element),
                     key ? g_.key_element_bytes : g_.value_element_bytes);
      }
    };
    if (g_.ragged()) {
      int64_t sequence = 0;
      for (int64_t t = chunk.begin; t < chunk.end; ++t) {
        while (t >= g_.key_starts[sequence + 1]) ++sequence;
        for (int64_t h = 0; h < g_.kv_heads; ++h) {
          add(sequence, h, t - g_.key_starts[sequence]);
        }
      }
      return bytes;
    }
    for (int64_t b = 0; b < g_.sequences; ++b) {
      const int64_t outer = g_.heads_first ? g_.kv_heads : 1;
      const int64_t inner = g_.heads_first ? 1 : g_.kv_heads;
      for (int64_t i = 0; i < outer; ++i) {
        for (int64_t t = chunk.begin; t < chunk.end; ++t) {
          for (int64_t j = 0; j < inner; ++j) add(b, i + j, t);
        }
      }
    }
    return bytes;
  }

  std::string MaskChunk(TokenRange chunk, int64_t columns) const {
    std::string bytes;
    for (int64_t row = 0; row < g_.mask_rows; ++row) {
      for (int64_t j = 0; j < columns; ++j) {
        bytes += static_cast<char>(MaskElement(row, chunk.begin + j));
      }
    }
    return bytes;
  }

  void Expect(const PageSet& pages) const {
    int64_t tokens = 0;
    for (size_t i = 0; i < pages.views().size(); ++i) {
      ExpectView(pages, pages.first_sequence() + static_cast<int64_t>(i),
                 pages.views()[i]);
      tokens += pages.views()[i].length;
    }
    EXPECT_EQ(tokens, (pages.end() - pages.begin()) * g_.sequences /
                          (g_.ragged() ? g_.sequences : 1));
    for (int64_t row = 0; row < g_.mask_rows; ++row) {
      for (int64_t j = 0; j < pages.mask_columns(); ++j) {
        ASSERT_EQ(
            static_cast<uint8_t>(pages.mask()[row * pages.mask_stride() + j]),
            MaskElement(row, pages.begin() + j));
      }
    }
  }

  const KeyValueGeometry& geometry() const { return g_; }

 private:
  void ExpectView(const PageSet& pages, int64_t sequence,
                  const KeyValueView& view) const {
    const int64_t length =
        g_.ragged() ? g_.key_starts[sequence + 1] - g_.key_starts[sequence]
                    : g_.length;
    const int64_t end = view.begin + view.length;
    ASSERT_EQ(view.begin % kKeyBlock, 0);
    ASSERT_TRUE(end % kKeyBlock == 0 || end == length) << end;
    ASSERT_EQ(static_cast<int64_t>(view.blocks.size()),
              (view.length + kKeyBlock - 1) / kKeyBlock);
    if (!g_.ragged()) {
      ASSERT_EQ(view.begin, pages.begin());
      ASSERT_EQ(end, pages.end());
    }
    for (int64_t i = 0; i < view.length; ++i) {
      const KeyValueView::Block& block = view.blocks[i / kKeyBlock];
      for (int64_t h = 0; h < g_.kv_heads; ++h) {
        ExpectRow(
            KeyOrValue::kKey, sequence, h, view.begin + i, block.key,
            h * block.key_head_stride + i % kKeyBlock * view.key_row_stride,
            g_.key_size, g_.key_element_bytes);
        ExpectRow(
            KeyOrValue::kValue, sequence, h, view.begin + i, block.value,
            h * block.value_head_stride + i % kKeyBlock * view.value_row_stride,
            g_.value_size, g_.value_element_bytes);
      }
    }
  }

  static void ExpectRow(KeyOrValue operand, int64_t sequence, int64_t head,
                        int64_t token, const void* block, int64_t offset,
                        int64_t size, int64_t element_bytes) {
    for (int64_t d = 0; d < size; ++d) {
      const uint32_t wanted = Element(operand, sequence, head, token, d);
      const auto* const got =
          static_cast<const char*>(block) + (offset + d) * element_bytes;
      ASSERT_EQ(std::memcmp(got, &wanted, element_bytes), 0)
          << "sequence " << sequence << " head " << head << " token " << token
          << " element " << d;
    }
  }

  KeyValueGeometry g_;
};

class PageSetTest : public ::testing::TestWithParam<Case> {};

// Each chunk is copied in two steps of any sizes, where it spans page sets in
// one for each.
TEST_P(PageSetTest, AnyChunksFillTheBlocks) {
  const Play play(GetParam());
  const KeyValueGeometry& g = play.geometry();
  const auto pool = BufferPool::Create(0);
  for (uint32_t seed = 0; seed < 4; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t end) {
      return static_cast<int64_t>(random() % static_cast<uint64_t>(end));
    };
    PageSet pages(g, pool->Allocate(PageSet::Bytes(g)));
    pages.Begin(0);
    int64_t sets = 1;
    const int64_t most = int64_t{1} << below(12);
    for (TokenRange chunk; chunk.begin < g.tokens(); chunk.begin = chunk.end) {
      chunk.end = std::min(g.tokens(), chunk.begin + 1 + below(most));
      const std::string key = play.Chunk(KeyOrValue::kKey, chunk),
                        value = play.Chunk(KeyOrValue::kValue, chunk);
      const int64_t columns = std::clamp<int64_t>(g.mask_length - chunk.begin,
                                                  0, chunk.end - chunk.begin);
      const std::string mask = play.MaskChunk(chunk, columns);
      for (int64_t begin = chunk.begin; begin < chunk.end;) {
        if (begin == pages.end()) {
          play.Expect(pages);
          pages.Begin(begin);
          ++sets;
        }
        const int64_t left = std::min(chunk.end, pages.end()) - begin;
        const TokenRange range = {begin, begin + 1 + below(left)};
        WriteTokens(pages, KeyOrValue::kKey, chunk, range, MemoryReader(key));
        WriteTokens(pages, KeyOrValue::kValue, chunk, range,
                    MemoryReader(value));
        const int64_t mask_end = std::min(range.end, chunk.begin + columns);
        if (range.begin < mask_end) {
          EXPECT_EQ(WriteMask(pages, chunk, columns, {range.begin, mask_end},
                              /*bools=*/false, MemoryReader(mask)),
                    std::nullopt);
        }
        begin = range.end;
      }
    }
    EXPECT_EQ(pages.end(), g.tokens());
    play.Expect(pages);
    EXPECT_EQ(PageSet::HoldsAll(g), sets == 1);
  }
}

const Case kCases[] = {
    {"Matrix", {.key_size = 3, .value_size = 5, .length = 1000}},
    {"OneToken", {.sequences = 2, .kv_heads = 2, .length = 1}},
    {"HeadsFirst",
     {.sequences = 2,
      .kv_heads = 3,
      .key_size = 4,
      .value_size = 2,
      .value_element_bytes = 2,
      .heads_first = true,
      .length = 700}},
    {"TokensFirst",
     {.sequences = 2,
      .kv_heads = 3,
      .key_size = 4,
      .value_size = 2,
      .key_element_bytes = 2,
      .length = 700}},
    // 1 MiB is a block and a half.
    {"ManySets",
     {.kv_heads = 8, .key_size = 85, .value_size = 85, .length = 1300}},
    {"ManySetsHeadsFirst",
     {.kv_heads = 8,
      .key_size = 85,
      .value_size = 85,
      .heads_first = true,
      .length = 1300}},
    // A block of all sequences is more.
    {"LargeBlocks",
     {.sequences = 5, .kv_heads = 4, .key_size = 64, .length = 600}},
    {"Mask",
     {.sequences = 2, .length = 700, .mask_rows = 3, .mask_length = 700}},
    {"LargeShortMask", {.length = 900, .mask_rows = 3000, .mask_length = 600}},
    {"Ragged",
     {.sequences = 6, .kv_heads = 2, .key_size = 3, .value_size = 2},
     {0, 0, 300, 556, 556, 557, 900}},
    {"RaggedManySets",
     {.sequences = 5, .kv_heads = 8, .key_size = 85, .value_size = 85},
     {0, 10, 700, 956, 956, 2000}},
    {"RaggedOfNothingAtTheEnd", {.sequences = 3, .kv_heads = 1}, {0, 5, 5, 5}},
};

INSTANTIATE_TEST_SUITE_P(All, PageSetTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(PageSetTest, ShortSequencesTakeNoWholeBlocks) {
  std::vector<int64_t> starts = {0};
  while (starts.size() < 10001) starts.push_back(starts.back() + 1);
  KeyValueGeometry g{.sequences = 10000, .key_size = 16, .value_size = 16};
  g.key_starts = starts;
  EXPECT_LE(PageSet::Bytes(g), 10000 * (2 * 64 + g.TokenBytes()));
  EXPECT_LE(PageSet::TableBytes(g), 1 << 20);
  const auto pool = BufferPool::Create(0);
  PageSet pages(g, pool->Allocate(PageSet::Bytes(g)));
  int64_t sets = 0;
  for (int64_t begin = 0; begin < g.tokens(); begin = pages.end()) {
    pages.Begin(begin);
    EXPECT_EQ(pages.first_sequence(), begin);
    ++sets;
  }
  EXPECT_EQ(sets, 3);  // Of 4096 blocks at the most.
}

TEST(PageSetTest, SetsAreLargeEnoughForTheKernelAndSmallForTheBudget) {
  // 64 MiB of keys and values.
  KeyValueGeometry g{
      .kv_heads = 8, .key_size = 128, .value_size = 128, .length = 8192};
  EXPECT_EQ(PageSet::Bytes(g), 8 << 20);
  g.length = int64_t{1} << 40;
  EXPECT_EQ(PageSet::Bytes(g), 8 << 20);
  g.length = 1024;
  EXPECT_EQ(PageSet::Bytes(g), 2 << 20);  // A block.
}

// What shapes ask for is refused by its number, so that must not wrap around.
// They cost nothing to send, and must cost nothing to compute.
TEST(PageSetTest, TokensWithoutBytesAreOneSet) {
  const KeyValueGeometry g{.sequences = 0, .length = int64_t{1} << 59};
  EXPECT_TRUE(PageSet::HoldsAll(g));
  EXPECT_EQ(PageSet::Bytes(g), 0);
}

TEST(PageSetTest, SizesSaturate) {
  constexpr int64_t kHuge = int64_t{1} << 59;
  KeyValueGeometry g{.sequences = kHuge, .kv_heads = 1 << 10, .length = kHuge};
  EXPECT_EQ(PageSet::Bytes(g), INT64_MAX);
  g = {.length = kHuge, .mask_rows = kHuge, .mask_element_bytes = 8};
  EXPECT_EQ(PageSet::Bytes(g), INT64_MAX);
}

TEST(PageWriterTest, FindsTheFirstWrongBool) {
  KeyValueGeometry g{.length = 10, .mask_rows = 3, .mask_length = 10};
  const auto pool = BufferPool::Create(0);
  PageSet pages(g, pool->Allocate(PageSet::Bytes(g)));
  pages.Begin(0);
  std::string mask(3 * 6, '\0');
  mask[9] = '\2';
  mask[10] = '\2';
  const auto wrong = [&](TokenRange range) {
    return WriteMask(pages, {4, 10}, 6, range, /*bools=*/true,
                     MemoryReader(mask));
  };
  EXPECT_EQ(wrong({4, 10}), 9);
  EXPECT_EQ(wrong({8, 10}), 10);
  EXPECT_EQ(wrong({4, 7}), std::nullopt);
}

}  // namespace
}  // namespace attention
