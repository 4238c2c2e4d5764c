#include "attention/internal/shared_memory.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "attention/internal/shared_queue.h"
#include "attention/internal/token_source.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {
namespace {

constexpr char kCapabilitiesMethod[] =
    "/attention.v1.AttentionService/GetCapabilities";
constexpr std::align_val_t kAlignment{64};

// How long a call waits for the server to say where it shares memory.
constexpr absl::Duration kPatience = absl::Seconds(1);
// After which it is asked again, if it shares none or cannot be reached there,
// and if it did not answer.
constexpr absl::Duration kAskAgain = absl::Minutes(1);
constexpr absl::Duration kAskSoon = absl::Seconds(1);
// Who does not know the memory so often is another server than the one that
// the path leads to.
constexpr int kMostLosses = 2;

UnaryCall CapabilitiesCall() {
  UnaryCall call;
  call.method = kCapabilitiesMethod;
  // No bytes, but a message.
  const grpc::Slice empty;
  grpc::ByteBuffer message(&empty, 1);
  call.message.Swap(&message);
  return call;
}

// The address that the server offers, empty if none.
absl::StatusOr<std::string> AddressIn(const UnaryAnswer& answer) {
  if (!answer.status.ok()) return answer.status;
  std::vector<grpc::Slice> slices;
  static_cast<void>(answer.message.Dump(&slices));
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  v1::GetCapabilitiesResponse response;
  if (!response.ParseFromString(bytes)) return std::string();
  return response.shared_memory();
}

// Steps of an eighth, so that areas fit calls of about the same size.
size_t AreaBytes(size_t bytes) {
  constexpr size_t kLeast = size_t{1} << 20;
  bytes = std::max(bytes, kLeast);
  const size_t step = std::max<size_t>(1, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

}  // namespace

SharedMemory::~SharedMemory() = default;

std::shared_ptr<std::byte> SharedMemory::Allocate(
    const std::shared_ptr<SharedMemory>& memory, size_t bytes) {
  bytes = std::max<size_t>(bytes, 1);
  std::unique_ptr<MemoryFile> file;
  if (memory != nullptr && memory->IsOwner()) file = MemoryFile::Create(bytes);
  if (file == nullptr) {
    auto* const plain =
        static_cast<std::byte*>(::operator new(bytes, kAlignment));
    std::memset(plain, 0, bytes);
    return {plain,
            [](std::byte* data) { ::operator delete(data, kAlignment); }};
  }
  std::byte* const data = file->bytes().data();
  {
    const std::lock_guard<std::mutex> lock(memory->mutex_);
    auto& allocation = memory->allocations_[data];
    allocation = std::make_shared<Allocation>();
    allocation->file = std::move(file);
  }
  return {data, [memory](std::byte* data) {
            if (memory->IsOwner()) return memory->Free(data);
            // The memory stays with this process until it ends, and so does
            // what held it: without gRPC's threads its end could wait for ever.
            new (std::nothrow) std::shared_ptr<SharedMemory>(memory);
          }};
}

void SharedMemory::Free(const std::byte* data) {
  std::shared_ptr<Allocation> freed;  // Unmapped without the lock.
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(data);
    freed = std::move(found->second);
    allocations_.erase(found);
  }
  Drop(freed->registration);
}

bool SharedMemory::Connect(const CallOptions& options) {
  if (!IsOwner()) return false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Connected()) return true;
    if (absl::Now() < ask_after_) return false;
    // Others send their bytes while this one asks.
    ask_after_ = absl::Now() + kPatience;
  }
  CallOptions ask;
  ask.timeout = std::min(options.timeout, kPatience);
  ask.stop = options.stop;
  ask.interrupted = options.interrupted;
  UnaryCall call = CapabilitiesCall();
  const absl::StatusOr<std::string> address =
      AddressIn(RunUnary(connection_, ask, call));
  const std::lock_guard<std::mutex> lock(mutex_);
  Answered(address);
  return Connected();
}

bool SharedMemory::ConnectLater() {
  if (!IsOwner()) return false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Connected()) return true;
    if (absl::Now() < ask_after_ || asking_) return false;
    asking_ = true;
  }
  StartUnary(connection_, {.timeout = kPatience}, CapabilitiesCall(),
             [self = shared_from_this()](const UnaryAnswer& answer) {
               const std::lock_guard<std::mutex> lock(self->mutex_);
               self->asking_ = false;
               self->Answered(AddressIn(answer));
             });
  return false;
}

void SharedMemory::Answered(const absl::StatusOr<std::string>& address) {
  if (Connected()) return;
  const absl::Time now = absl::Now();
  if (!address.ok()) {
    ask_after_ =
        now + (absl::IsUnimplemented(address.status()) ? kAskAgain : kAskSoon);
    return;
  }
  if (!address->empty()) socket_ = std::make_shared<RegionSocket>(*address);
  ++connection_number_;
  // It may be another container's.
  ask_after_ = now + (Connected() ? absl::ZeroDuration() : kAskAgain);
}

bool SharedMemory::Connected() {
  if (socket_ != nullptr && socket_->connected()) return true;
  if (socket_ != nullptr) Disconnect();
  return false;
}

void SharedMemory::Disconnect() {
  socket_ = nullptr;
  ++connection_number_;
}

// It would be refused again: nothing has been given back since, and what others
// give back is not asked after with every call.
bool SharedMemory::Refused(const Registration& registration) const {
  return registration.id.empty() &&
         registration.connection == connection_number_ &&
         registration.drops == drops_ &&
         absl::Now() - registration.at < kAskSoon;
}

bool SharedMemory::Register(const MemoryFile& file, Registration& registration,
                            const Patience& patience) {
  std::shared_ptr<RegionSocket> socket;
  int64_t connection;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    socket = socket_;
    connection = connection_number_;
    if (Refused(registration)) return false;
  }
  if (socket == nullptr) return false;
  if (registration.connection == connection && !registration.id.empty()) {
    return true;
  }
  registration = {};
  TokenSource* const token = connection_.token_source_.get();
  while (true) {
    absl::StatusOr<std::string> id = socket->Register(
        file.fd(), token == nullptr ? "" : token->Get(), patience);
    if (id.ok()) {
      registration.id = *std::move(id);
      registration.connection = connection;
      return true;
    }
    Areas gone;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (absl::IsResourceExhausted(id.status()) && !unused_.empty()) {
        TakeOldest(gone);
      } else {
        // Cut off: nor would it be taken at once on another one.
        if (absl::IsUnavailable(id.status())) {
          ask_after_ = absl::Now() + kAskSoon;
        } else if (!absl::IsDeadlineExceeded(id.status())) {
          registration = {.id = "",
                          .connection = connection,
                          .at = absl::Now(),
                          .drops = drops_};
        }
        return false;
      }
    }
    Drop(gone.front()->registration_);
  }
}

void SharedMemory::Drop(const Registration& registration) {
  std::shared_ptr<RegionSocket> socket;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (registration.connection != connection_number_ ||
        registration.id.empty()) {
      return;
    }
    ++drops_;
    socket = socket_;
  }
  if (socket != nullptr) socket->Drop(registration.id);
}

std::shared_ptr<SharedMemory::Allocation> SharedMemory::AllocationOf(
    std::span<const std::byte> bytes) {
  auto after = allocations_.upper_bound(bytes.data());
  if (after == allocations_.begin()) return nullptr;
  const std::shared_ptr<Allocation>& allocation = std::prev(after)->second;
  const std::span<std::byte> memory = allocation->file->bytes();
  return bytes.data() + bytes.size() <= memory.data() + memory.size()
             ? allocation
             : nullptr;
}

bool SharedMemory::Allocated(std::span<const std::byte> bytes) {
  if (!IsOwner()) return false;
  const std::lock_guard<std::mutex> lock(mutex_);
  return AllocationOf(bytes) != nullptr;
}

std::optional<SharedMemory::Place> SharedMemory::Find(
    std::span<const std::byte> bytes, const Patience& patience) {
  std::shared_ptr<Allocation> allocation;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    allocation = AllocationOf(bytes);
  }
  if (allocation == nullptr) return std::nullopt;
  const Turns::Turn turn = allocation->turns.Take(patience);
  if (!turn ||
      !Register(*allocation->file, allocation->registration, patience)) {
    return std::nullopt;
  }
  return Place{allocation->registration.id,
               bytes.data() - allocation->file->bytes().data()};
}

std::unique_ptr<SharedMemory::Area> SharedMemory::TakeArea(
    size_t bytes, const Patience& patience) {
  if (bytes > kLargestArea) return nullptr;
  const size_t wanted = AreaBytes(bytes);
  Areas gone;
  std::unique_ptr<Area> area;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The newest that fits, whose pages are most likely in a cache.
    for (auto it = unused_.rbegin(); it != unused_.rend(); ++it) {
      const size_t size = (*it)->bytes().size();
      if (size < bytes || size > 2 * wanted) continue;
      area = std::move(*it);
      unused_.erase(std::next(it).base());
      unused_bytes_ -= size;
      break;
    }
    if (area == nullptr) {
      const size_t used = area_bytes_ - unused_bytes_;
      if ((wanted > kLargestAtOnce && !KnowsSize(wanted)) ||
          used + wanted > kMostAreaBytes ||
          (wanted >= refused_bytes_ && Refused(refused_area_))) {
        return nullptr;
      }
      Shrink(kMostAreaBytes - used - wanted, gone);
      area_bytes_ += wanted;
    }
  }
  for (const auto& dropped : gone) Drop(dropped->registration_);
  bool made = true;
  if (area == nullptr) {
    area = std::make_unique<Area>();
    area->file_ = MemoryFile::Create(wanted);
    made = area->file_ != nullptr;
  }
  if (made && Register(*area->file_, area->registration_, patience)) {
    return area;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  area_bytes_ -= made ? area->bytes().size() : wanted;
  if (Refused(area->registration_)) {
    refused_area_ = area->registration_;
    refused_bytes_ = wanted;
  }
  return nullptr;
}

void SharedMemory::ReturnArea(std::unique_ptr<Area> area, bool idle) {
  Areas gone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t size = area->bytes().size();
    if (idle) {
      unused_bytes_ += size;
      area->unused_since_ = absl::Now();
      unused_.push_back(std::move(area));
      Shrink(kMostUnusedBytes, gone);
    } else {
      area_bytes_ -= size;
      gone.push_back(std::move(area));
    }
  }
  for (const auto& dropped : gone) Drop(dropped->registration_);
  if (idle) ExpireLater();
}

bool SharedMemory::KnowsSize(size_t bytes) {
  constexpr size_t kMostSizes = 64;
  if (std::find(sizes_.begin(), sizes_.end(), bytes) != sizes_.end()) {
    return true;
  }
  if (sizes_.size() == kMostSizes) sizes_.pop_front();
  sizes_.push_back(bytes);
  return false;
}

void SharedMemory::TakeOldest(Areas& gone) {
  gone.push_back(std::move(unused_.front()));
  unused_.erase(unused_.begin());
  const size_t size = gone.back()->bytes().size();
  unused_bytes_ -= size;
  area_bytes_ -= size;
}

// Gives unused areas back until they have no more bytes than that.
void SharedMemory::Shrink(size_t unused_bytes, Areas& gone) {
  while (unused_bytes_ > unused_bytes) TakeOldest(gone);
}

void SharedMemory::Expire() {
  Areas gone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    expiring_ = false;
    const absl::Time now = absl::Now();
    while (!unused_.empty() &&
           now - unused_.front()->unused_since_ >= kIdleTime) {
      TakeOldest(gone);
    }
  }
  for (const auto& dropped : gone) Drop(dropped->registration_);
  ExpireLater();
}

void SharedMemory::ExpireLater() {
  absl::Time when;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (expiring_ || unused_.empty()) return;
    expiring_ = true;
    when = std::max(unused_.front()->unused_since_ + kIdleTime,
                    absl::Now() + absl::Seconds(1));
  }
  class Expiry final : public QueueEvent {
   public:
    explicit Expiry(std::weak_ptr<SharedMemory> memory)
        : memory_(std::move(memory)) {}
    void Start(absl::Time when) {
      begun_.store(true, std::memory_order_release);
      // From here on it belongs to the queue's thread.
      alarm_.Set(&SharedQueue(), absl::ToChronoTime(when),
                 static_cast<QueueEvent*>(this));
    }
    void Run(bool /*ok*/) override {
      static_cast<void>(begun_.load(std::memory_order_acquire));
      if (const auto memory = memory_.lock()) memory->Expire();
      delete this;
    }

   private:
    const std::weak_ptr<SharedMemory> memory_;
    // For ThreadSanitizer, which does not see that gRPC orders the two.
    std::atomic<bool> begun_{false};
    grpc::Alarm alarm_;
  };
  (new Expiry(weak_from_this()))->Start(when);
}

int64_t SharedMemory::connection() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return connection_number_;
}

void SharedMemory::Lost(int64_t connection) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (connection != connection_number_) return;
  Disconnect();
  ask_after_ = absl::InfinitePast();
  if (++losses_ < kMostLosses) return;
  losses_ = 0;
  ask_after_ = absl::Now() + kAskAgain;
}

void SharedMemory::Worked() {
  const std::lock_guard<std::mutex> lock(mutex_);
  losses_ = 0;
}

}  // namespace attention::internal
