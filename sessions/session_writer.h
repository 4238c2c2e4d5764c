// Copies tokens from where they arrived into the pages of a session, or
// compares them with what is there.
#ifndef ATTENTION_SESSIONS_SESSION_WRITER_H_
#define ATTENTION_SESSIONS_SESSION_WRITER_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/base/casts.h"
#include "kernel/cpu/convert.h"
#include "kernel/data_type.h"
#include "kernel/scaled.h"
#include "sessions/page_writer.h"
#include "sessions/session.h"

namespace attention {

// How the tokens of an append arrive: [Hkv, n, size], or [n, Hkv, size].
struct ArrivingRows {
  KeyOrValue operand = KeyOrValue::kKey;
  DataType type = DataType::kFloat32;  // a float type
  bool heads_first = true;
};

// A part of them: of one head, so many tokens, counted through the layer.
struct RowRange {
  int64_t head = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

namespace internal {

inline int64_t RowSize(const PageFormat& format, const ArrivingRows& rows) {
  return rows.operand == KeyOrValue::kKey ? format.key_size : format.value_size;
}

// Calls visit(reader, head, token, tokens) for the rows of `range`, for as many
// at once as follow one another both where they arrive and in a page. `from` is
// at the first byte of the append, whose tokens are [begin, end).
template <ByteReader Reader, typename Visit>
void VisitRows(const PageFormat& format, const ArrivingRows& rows,
               int64_t begin, int64_t end, const RowRange& range, Reader from,
               const Visit& visit) {
  if (range.begin == range.end) return;
  const int64_t row_bytes =
      RowSize(format, rows) * static_cast<int64_t>(SizeOf(rows.type));
  const int64_t before = range.begin - begin;
  if (rows.heads_first) {
    from.Skip((range.head * (end - begin) + before) * row_bytes);
  } else {
    from.Skip((before * format.kv_heads + range.head) * row_bytes);
  }
  for (int64_t token = range.begin; token < range.end;) {
    const int64_t stop =
        rows.heads_first
            ? std::min(range.end, (token / kKeyBlock + 1) * kKeyBlock)
            : token + 1;
    visit(from, range.head, token, stop - token);
    token = stop;
    if (!rows.heads_first && token < range.end) {
      from.Skip((format.kv_heads - 1) * row_bytes);
    }
  }
}

// A row as it is stored scaled: `use(bytes, offset, count)` as below, then its
// scale is returned. Looks at the row twice.
template <ByteReader Reader, typename Use>
uint8_t ReadScaled(Reader& from, DataType arriving, DataType stored,
                   int64_t elements, const Use& use) {
  constexpr int64_t kAtOnce = 512;
  alignas(8) std::array<std::byte, kAtOnce * 8> read;
  std::array<float, kAtOnce> numbers;
  alignas(8) std::array<std::byte, kAtOnce> scaled;
  const auto each = [&](Reader& reader, const auto& visit) {
    for (int64_t i = 0; i < elements; i += kAtOnce) {
      const int64_t count = std::min(kAtOnce, elements - i);
      reader.ReadBytes(read.data(),
                       static_cast<size_t>(count) * SizeOf(arriving));
      LoadElements<float>(read.data(), arriving, count, numbers.data());
      visit(i, count);
    }
  };
  // The bits of magnitudes are ordered as they are, NaN last.
  uint32_t largest = 0;
  Reader again = from;
  each(again, [&](int64_t, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      largest = std::max(largest, absl::bit_cast<uint32_t>(numbers[i]) << 1);
    }
  });
  const uint8_t scale = ScaleOf(stored, absl::bit_cast<float>(largest >> 1));
  each(from, [&](int64_t begin, int64_t count) {
    ScaleElements(stored, scale, numbers.data(), count, scaled.data());
    use(scaled.data(), begin, count);
  });
  return scale;
}

// Elements as they are stored: `use(bytes, offset, count)` gets some at a time,
// `offset` bytes after the first.
template <ByteReader Reader, typename Use>
void ReadConverted(Reader& from, DataType arriving, DataType stored,
                   int64_t elements, const Use& use) {
  constexpr int64_t kAtOnce = 512;
  alignas(8) std::array<std::byte, kAtOnce * 8> read;
  alignas(8) std::array<std::byte, kAtOnce * 8> converted;
  std::array<double, kAtOnce> numbers;
  const auto stored_bytes = static_cast<int64_t>(SizeOf(stored));
  for (int64_t i = 0; i < elements; i += kAtOnce) {
    const int64_t count = std::min(kAtOnce, elements - i);
    from.ReadBytes(read.data(), static_cast<size_t>(count) * SizeOf(arriving));
    if (arriving == stored) {
      use(read.data(), i * stored_bytes, count * stored_bytes);
      continue;
    }
    LoadElements<double>(read.data(), arriving, count, numbers.data());
    StoreElements<double>(numbers.data(), count, stored, converted.data(), 0);
    use(converted.data(), i * stored_bytes, count * stored_bytes);
  }
}

}  // namespace internal

// Writes a range of the keys or values of an append, rounded to the stored type
// where it is another. `from` is at the first byte of all of them. Nothing
// where values are a prefix of keys. Ranges that do not overlap may be written
// at the same time.
template <ByteReader Reader>
void WriteRows(const Append& append, const ArrivingRows& rows,
               const RowRange& range, const Reader& from) {
  const PageFormat& format = append.format();
  const bool key = rows.operand == KeyOrValue::kKey;
  if (!key && format.value_is_key_prefix) return;
  const int64_t size = internal::RowSize(format, rows);
  internal::VisitRows(
      format, rows, append.begin(), append.end(), range, from,
      [&](Reader& reader, int64_t head, int64_t token, int64_t tokens) {
        const Append::Rows target = append.RowsAt(head, token);
        std::byte* const to = key ? target.key : target.value;
        if (format.scaled()) {
          uint8_t* const scales = key ? target.key_scales : target.value_scales;
          for (int64_t i = 0; i < tokens; ++i) {
            scales[i] = internal::ReadScaled(
                reader, rows.type, format.type, size,
                [&](const std::byte* bytes, int64_t offset, int64_t count) {
                  std::memcpy(to + i * size + offset, bytes,
                              static_cast<size_t>(count));
                });
          }
          return;
        }
        if (rows.type == format.type) {
          reader.ReadBytes(
              to, static_cast<size_t>(tokens * size * format.element_bytes()));
          return;
        }
        internal::ReadConverted(
            reader, rows.type, format.type, tokens * size,
            [&](const std::byte* bytes, int64_t offset, int64_t count) {
              std::memcpy(to + offset, bytes, static_cast<size_t>(count));
            });
      });
}

// Whether tokens [begin, end) of a snapshot are, in this range, what
// WriteRows() would write; but for those that are released.
template <ByteReader Reader>
bool HoldsRows(const LayerSnapshot& snapshot, int64_t begin, int64_t end,
               const ArrivingRows& rows, const RowRange& range,
               const Reader& from) {
  const PageFormat& format = snapshot.format();
  const bool key = rows.operand == KeyOrValue::kKey;
  if (!key && format.value_is_key_prefix) return true;
  const int64_t size = internal::RowSize(format, rows);
  const KeyValueView view = snapshot.view();
  bool equal = true;
  internal::VisitRows(
      format, rows, begin, end, range, from,
      [&](Reader& reader, int64_t head, int64_t token, int64_t tokens) {
        // A visit stays within one page.
        if (token < view.begin) {
          reader.Skip(static_cast<size_t>(tokens * size) * SizeOf(rows.type));
          return;
        }
        const KeyValueView::Block& block =
            view.blocks[(token - view.begin) / kKeyBlock];
        const int64_t element =
            key ? head * block.key_head_stride +
                      token % kKeyBlock * view.key_row_stride
                : head * block.value_head_stride +
                      token % kKeyBlock * view.value_row_stride;
        const std::byte* const held =
            static_cast<const std::byte*>(key ? block.key : block.value) +
            element * format.element_bytes();
        if (format.scaled()) {
          const uint8_t* const scales =
              (key ? block.key_scales : block.value_scales) +
              head * block.scale_head_stride + token % kKeyBlock;
          for (int64_t i = 0; i < tokens; ++i) {
            const uint8_t scale = internal::ReadScaled(
                reader, rows.type, format.type, size,
                [&](const std::byte* bytes, int64_t offset, int64_t count) {
                  equal &= std::memcmp(held + i * size + offset, bytes,
                                       static_cast<size_t>(count)) == 0;
                });
            equal &= scale == scales[i];
          }
          return;
        }
        // Rows of values that are a prefix of keys are never compared: those of
        // one head follow one another.
        internal::ReadConverted(
            reader, rows.type, format.type, tokens * size,
            [&](const std::byte* bytes, int64_t offset, int64_t count) {
              equal &= std::memcmp(held + offset, bytes,
                                   static_cast<size_t>(count)) == 0;
            });
      });
  return equal;
}

}  // namespace attention

#endif  // ATTENTION_SESSIONS_SESSION_WRITER_H_
