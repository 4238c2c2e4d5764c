// Bytes that are held, counted against a limit.
#ifndef ATTENTION_SESSIONS_MEMORY_ACCOUNT_H_
#define ATTENTION_SESSIONS_MEMORY_ACCOUNT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention {

// The account of one owner, or of all of them. What an owner takes is taken
// from the account of all too, or not at all. Thread-safe.
class MemoryAccount {
 public:
  // `limit` in bytes. `all`: null in the account of all.
  explicit MemoryAccount(int64_t limit,
                         std::shared_ptr<MemoryAccount> all = nullptr)
      : limit_(limit), all_(std::move(all)) {}

  // False, and nothing is taken, if there is no room for them.
  bool Take(int64_t bytes) {
    if (!TakeHere(bytes)) return false;
    if (all_ == nullptr || all_->Take(bytes)) return true;
    used_.fetch_sub(bytes, std::memory_order_relaxed);
    return false;
  }

  void Give(int64_t bytes) {
    used_.fetch_sub(bytes, std::memory_order_relaxed);
    if (all_ != nullptr) all_->Give(bytes);
  }

  // For a message: who holds how much of which limit. That of all owners if it
  // leaves no more room than this owner's.
  std::string Holdings() const {
    const int64_t used = this->used(), limit = this->limit();
    if (all_ != nullptr && all_->limit() - all_->used() <= limit - used) {
      return absl::StrCat("all sessions of the server together hold ",
                          all_->used(), " of ", all_->limit(), " bytes");
    }
    return absl::StrCat("the tenant's sessions hold ", used, " of ", limit,
                        " bytes");
  }

  int64_t used() const { return used_.load(std::memory_order_relaxed); }
  int64_t limit() const { return limit_.load(std::memory_order_relaxed); }
  // What is held stays, also where it is more.
  void SetLimit(int64_t limit) {
    limit_.store(limit, std::memory_order_relaxed);
  }

 private:
  bool TakeHere(int64_t bytes) {
    int64_t used = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit() - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes,
                                          std::memory_order_relaxed));
    return true;
  }

  std::atomic<int64_t> limit_;
  const std::shared_ptr<MemoryAccount> all_;
  std::atomic<int64_t> used_{0};
};

// Bytes taken from an account, given back at the end. Movable.
class MemoryCharge {
 public:
  // Takes nothing, and is false, if there is no room.
  MemoryCharge(std::shared_ptr<MemoryAccount> account, int64_t bytes)
      : account_(account->Take(bytes) ? std::move(account) : nullptr),
        bytes_(bytes) {}
  MemoryCharge(MemoryCharge&&) = default;
  MemoryCharge& operator=(MemoryCharge&&) = delete;
  ~MemoryCharge() {
    if (account_ != nullptr) account_->Give(bytes_);
  }

  explicit operator bool() const { return account_ != nullptr; }

 private:
  std::shared_ptr<MemoryAccount> account_;
  const int64_t bytes_;
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_MEMORY_ACCOUNT_H_
