#include "sessions/page_set.h"

#include <algorithm>
#include <utility>

#include "base/saturating.h"

namespace attention {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kLeastSetBytes = kMiB;
constexpr int64_t kMostSetBytes = 8 * kMiB;
// A set has at most such a part of the tokens, but for the bounds above.
constexpr int64_t kSets = 8;
// Blocks and empty sequences of a ragged set at the most: bounds its tables.
constexpr int64_t kMostRaggedPieces = 4096;
constexpr int64_t kAlignment = Buffer::kAlignment;

int64_t Aligned(int64_t bytes) {
  return SaturatingAdd(bytes, kAlignment - 1) / kAlignment * kAlignment;
}

// What `rows` tokens of one sequence take as a block.
int64_t BlockBytes(const KeyValueGeometry& g, int64_t rows) {
  const int64_t heads_rows = SaturatingMultiply(g.kv_heads, rows);
  return SaturatingAdd(
      Aligned(SaturatingMultiply(heads_rows, g.key_row_bytes())),
      Aligned(SaturatingMultiply(heads_rows, g.value_row_bytes())));
}

int64_t TargetBytes(const KeyValueGeometry& g) {
  return std::clamp(SaturatingMultiply(g.tokens(), g.TokenBytes()) / kSets,
                    kLeastSetBytes, kMostSetBytes);
}

// Tokens of a set that is not ragged: whole blocks, or all.
int64_t DenseTokens(const KeyValueGeometry& g) {
  // Tokens without bytes cost nothing to send: any number is one set.
  if (g.TokenBytes() == 0) return g.length;
  const int64_t blocks = std::max<int64_t>(
      1, TargetBytes(g) / std::max<int64_t>(1, SaturatingMultiply(
                                                   kKeyBlock, g.TokenBytes())));
  return std::min(blocks * kKeyBlock, g.length);
}

int64_t DenseBytes(const KeyValueGeometry& g, int64_t tokens) {
  const int64_t whole = tokens / kKeyBlock;
  const int64_t of_sequence =
      SaturatingAdd(SaturatingMultiply(whole, BlockBytes(g, kKeyBlock)),
                    BlockBytes(g, tokens % kKeyBlock));
  return SaturatingAdd(
      SaturatingMultiply(g.sequences, of_sequence),
      SaturatingMultiply(SaturatingMultiply(g.mask_rows, g.mask_element_bytes),
                         tokens));
}

int64_t BlocksOf(int64_t tokens) {
  return (tokens + kKeyBlock - 1) / kKeyBlock;
}

// The most blocks and empty sequences of a whole ragged batch, and what these
// blocks take.
int64_t AllRaggedPieces(const KeyValueGeometry& g) {
  return g.sequences + g.tokens() / kKeyBlock;
}
int64_t AllRaggedBytes(const KeyValueGeometry& g) {
  return SaturatingAdd(SaturatingMultiply(g.tokens(), g.TokenBytes()),
                       SaturatingMultiply(2 * kAlignment, AllRaggedPieces(g)));
}

// The sequence that a token belongs to.
int64_t SequenceOf(const KeyValueGeometry& g, int64_t token) {
  return std::upper_bound(g.key_starts.begin(), g.key_starts.end(), token) -
         g.key_starts.begin() - 1;
}

}  // namespace

int64_t KeyValueGeometry::TokenBytes() const {
  const int64_t heads = SaturatingMultiply(sequences_per_token(), kv_heads);
  return SaturatingAdd(
      SaturatingMultiply(heads,
                         SaturatingAdd(key_row_bytes(), value_row_bytes())),
      SaturatingMultiply(mask_rows, mask_element_bytes));
}

int64_t PageSet::Bytes(const KeyValueGeometry& g) {
  if (g.tokens() == 0) return 0;
  if (!g.ragged()) return DenseBytes(g, DenseTokens(g));
  const int64_t longest = std::min(kKeyBlock, g.tokens());
  return std::min(AllRaggedBytes(g),
                  std::max(BlockBytes(g, longest), TargetBytes(g)));
}

int64_t PageSet::TableBytes(const KeyValueGeometry& g) {
  constexpr int64_t kView = sizeof(KeyValueView);
  constexpr int64_t kBlock = sizeof(KeyValueView::Block);
  if (g.tokens() == 0) return 0;
  if (g.ragged()) {
    return std::min(kMostRaggedPieces, AllRaggedPieces(g)) * (kView + kBlock);
  }
  return SaturatingMultiply(g.sequences,
                            kView + kBlock * BlocksOf(DenseTokens(g)));
}

bool PageSet::HoldsAll(const KeyValueGeometry& g) {
  if (g.tokens() == 0) return true;
  if (!g.ragged()) return DenseTokens(g) == g.length;
  return AllRaggedPieces(g) <= kMostRaggedPieces &&
         AllRaggedBytes(g) <= Bytes(g);
}

PageSet::PageSet(const KeyValueGeometry& geometry, Buffer memory)
    : geometry_(geometry), memory_(std::move(memory)) {
  if (geometry_.tokens() == 0) return;
  if (geometry_.ragged()) {
    const int64_t pieces =
        std::min(kMostRaggedPieces, AllRaggedPieces(geometry_));
    views_.reserve(pieces + 1);
    blocks_.reserve(pieces);
  } else {
    views_.reserve(geometry_.sequences);
    blocks_.reserve(geometry_.sequences * BlocksOf(DenseTokens(geometry_)));
  }
}

void PageSet::Begin(int64_t begin) {
  begin_ = begin;
  used_ = 0;
  views_.clear();
  blocks_.clear();
  geometry_.ragged() ? BeginRagged() : BeginDense();
}

void PageSet::BeginDense() {
  end_ = begin_ + std::min(DenseTokens(geometry_), geometry_.length - begin_);
  first_sequence_ = 0;
  for (int64_t b = 0; b < geometry_.sequences; ++b) {
    AddView(begin_, end_ - begin_);
  }
  mask_ = memory_.data() + used_;
}

// Whole blocks, or the ends of sequences, while there is room.
void PageSet::BeginRagged() {
  const KeyValueGeometry& g = geometry_;
  first_sequence_ = SequenceOf(g, begin_);
  end_ = begin_;
  int64_t bytes = 0, pieces = 0;
  bool full = false;
  for (int64_t s = first_sequence_; s < g.sequences && !full; ++s) {
    const int64_t first = end_;
    const int64_t last = g.key_starts[s + 1];
    while (end_ < last) {
      const int64_t rows = std::min(kKeyBlock, last - end_);
      bytes += BlockBytes(g, rows);
      full = bytes > Bytes(g) || ++pieces > kMostRaggedPieces;
      if (full) break;
      end_ += rows;
    }
    full |= first == last && ++pieces > kMostRaggedPieces;
    AddView(first - g.key_starts[s], end_ - first);
  }
  while (views_.back().length == 0) views_.pop_back();
}

void PageSet::AddView(int64_t begin, int64_t length) {
  const KeyValueGeometry& g = geometry_;
  const size_t first_block = blocks_.size();
  for (int64_t done = 0; done < length; done += kKeyBlock) {
    const int64_t rows = std::min(kKeyBlock, length - done);
    KeyValueView::Block& block = blocks_.emplace_back();
    block.key = memory_.data() + used_;
    block.key_head_stride = rows * g.key_size;
    used_ += Aligned(g.kv_heads * rows * g.key_row_bytes());
    block.value = memory_.data() + used_;
    block.value_head_stride = rows * g.value_size;
    used_ += Aligned(g.kv_heads * rows * g.value_row_bytes());
  }
  views_.push_back(
      {.begin = begin,
       .length = length,
       .key_row_stride = g.key_size,
       .value_row_stride = g.value_size,
       .blocks = absl::MakeConstSpan(blocks_).subspan(first_block)});
}

int64_t PageSet::mask_columns() const {
  return std::clamp<int64_t>(geometry_.mask_length - begin_, 0, end_ - begin_);
}

}  // namespace attention
