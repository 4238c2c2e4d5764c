// Rows of keys and values for tests.
#ifndef ATTENTION_TESTS_SESSIONS_ROWS_H_
#define ATTENTION_TESTS_SESSIONS_ROWS_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "base/buffer_pool.h"
#include "sessions/session.h"
#include "sessions/session_writer.h"

namespace attention {

// Pages of it are NaN where nothing was written, and once they are freed.
inline std::shared_ptr<BufferPool> PoisonedPool(size_t retained_bytes) {
  return BufferPool::Create(retained_bytes, std::numeric_limits<size_t>::max(),
                            BufferPool::Poison::kNan);
}

// Bytes in one piece of memory; reading past their end fails the test.
class FloatReader {
 public:
  explicit FloatReader(const std::vector<float>& numbers)
      : numbers_(&numbers) {}
  void ReadBytes(void* target, size_t count) {
    const size_t from = position_;
    Skip(count);
    if (position_ > numbers_->size() * sizeof(float)) return;
    std::memcpy(target, reinterpret_cast<const char*>(numbers_->data()) + from,
                count);
  }
  void Skip(size_t count) {
    position_ += count;
    EXPECT_LE(position_, numbers_->size() * sizeof(float));
  }

 private:
  const std::vector<float>* numbers_;
  size_t position_ = 0;
};

// Tokens, as [tokens, Hkv, D] and [tokens, Hkv, Dv].
struct Tokens {
  int64_t count = 0;
  std::vector<float> keys;
  std::vector<float> values;

  static Tokens Random(const PageFormat& format, int64_t count,
                       std::mt19937& random) {
    std::normal_distribution<float> normal;
    Tokens tokens{count, {}, {}};
    tokens.keys.resize(count * format.kv_heads * format.key_size);
    for (float& number : tokens.keys) number = normal(random);
    tokens.values.resize(count * format.kv_heads * format.value_size);
    for (float& number : tokens.values) number = normal(random);
    if (!format.value_is_key_prefix) return tokens;
    for (int64_t row = 0; row < count * format.kv_heads; ++row) {
      for (int64_t d = 0; d < format.value_size; ++d) {
        tokens.values[row * format.value_size + d] =
            tokens.keys[row * format.key_size + d];
      }
    }
    return tokens;
  }

  void Add(const Tokens& more) {
    count += more.count;
    keys.insert(keys.end(), more.keys.begin(), more.keys.end());
    values.insert(values.end(), more.values.begin(), more.values.end());
  }
  void Truncate(const PageFormat& format, int64_t length) {
    count = length;
    keys.resize(length * format.kv_heads * format.key_size);
    values.resize(length * format.kv_heads * format.value_size);
  }
};

inline void Write(const Append& append, const Tokens& tokens) {
  for (int64_t head = 0; head < append.format().kv_heads; ++head) {
    const RowRange all = {head, append.begin(), append.end()};
    WriteRows(append, {.operand = KeyOrValue::kKey, .heads_first = false}, all,
              FloatReader(tokens.keys));
    WriteRows(append, {.operand = KeyOrValue::kValue, .heads_first = false},
              all, FloatReader(tokens.values));
  }
}

inline absl::Status AppendTokens(Session& session, int64_t layer,
                                 const Tokens& tokens,
                                 Session::AppendRequest request = {}) {
  request.tokens = tokens.count;
  absl::StatusOr<Append> append = session.BeginAppend(layer, request);
  if (!append.ok()) return append.status();
  if (!append->done()) Write(*append, tokens);
  return std::move(*append).Publish();
}

inline bool Holds(const LayerSnapshot& snapshot, const Tokens& tokens) {
  if (snapshot.length() != tokens.count) return false;
  bool holds = true;
  for (int64_t head = 0; head < snapshot.format().kv_heads; ++head) {
    const RowRange all = {head, 0, tokens.count};
    holds &= HoldsRows(snapshot, 0, tokens.count,
                       {.operand = KeyOrValue::kKey, .heads_first = false}, all,
                       FloatReader(tokens.keys)) &&
             HoldsRows(snapshot, 0, tokens.count,
                       {.operand = KeyOrValue::kValue, .heads_first = false},
                       all, FloatReader(tokens.values));
  }
  return holds;
}

}  // namespace attention

#endif  // ATTENTION_TESTS_SESSIONS_ROWS_H_
