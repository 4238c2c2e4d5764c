#include "attention/internal/shared_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
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
  if (!answer.status.ok()) {
    return absl::Status(
        static_cast<absl::StatusCode>(answer.status.error_code()),
        answer.status.error_message());
  }
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
    memory->allocations_[data].file = std::move(file);
  }
  return {data, [memory](std::byte* data) {
            if (memory->IsOwner()) return memory->Free(data);
            // The memory stays with this process until it ends, and so does
            // what held it: without gRPC's threads its end could wait for ever.
            new (std::nothrow) std::shared_ptr<SharedMemory>(memory);
          }};
}

void SharedMemory::Free(const std::byte* data) {
  std::unique_ptr<MemoryFile> file;  // Unmapped without the lock.
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = allocations_.find(data);
  Drop(found->second.registration);
  file = std::move(found->second.file);
  allocations_.erase(found);
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
  if (!address->empty()) socket_ = RegionSocket(*address);
  ++connection_number_;
  // It may be another container's.
  ask_after_ = now + (Connected() ? absl::ZeroDuration() : kAskAgain);
}

bool SharedMemory::Connected() {
  if (!socket_.connected()) {
    Disconnect();
    return false;
  }
  return true;
}

void SharedMemory::Disconnect() {
  socket_ = RegionSocket();
  ++connection_number_;
}

bool SharedMemory::Register(const MemoryFile& file,
                            Registration& registration) {
  if (registration.connection == connection_number_) {
    return !registration.id.empty();
  }
  registration = {.id = "", .connection = connection_number_};
  TokenSource* const token = connection_.token_source_.get();
  absl::StatusOr<std::string> id =
      socket_.Register(file.fd(), token == nullptr ? "" : token->Get());
  // Refused on this connection: it would be again, until others give theirs
  // back, which is not worth to ask for with every call.
  if (!id.ok()) {
    // Cut off: nor would it be taken at once on another one.
    if (absl::IsUnavailable(id.status())) ask_after_ = absl::Now() + kAskSoon;
    return false;
  }
  registration.id = *std::move(id);
  return true;
}

void SharedMemory::Drop(const Registration& registration) {
  if (registration.connection != connection_number_ ||
      registration.id.empty() || !IsOwner()) {
    return;
  }
  socket_.Drop(registration.id);
}

SharedMemory::Allocation* SharedMemory::AllocationOf(
    std::span<const std::byte> bytes) {
  auto after = allocations_.upper_bound(bytes.data());
  if (after == allocations_.begin()) return nullptr;
  Allocation& allocation = std::prev(after)->second;
  const std::span<std::byte> memory = allocation.file->bytes();
  return bytes.data() + bytes.size() <= memory.data() + memory.size()
             ? &allocation
             : nullptr;
}

bool SharedMemory::Allocated(std::span<const std::byte> bytes) {
  if (!IsOwner()) return false;
  const std::lock_guard<std::mutex> lock(mutex_);
  return AllocationOf(bytes) != nullptr;
}

std::optional<SharedMemory::Place> SharedMemory::Find(
    std::span<const std::byte> bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Allocation* const allocation = AllocationOf(bytes);
  if (allocation == nullptr ||
      !Register(*allocation->file, allocation->registration)) {
    return std::nullopt;
  }
  return Place{allocation->registration.id,
               bytes.data() - allocation->file->bytes().data()};
}

std::unique_ptr<SharedMemory::Area> SharedMemory::TakeArea(size_t bytes) {
  if (bytes > kLargestArea) return nullptr;
  const size_t wanted = AreaBytes(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  // The newest that fits, whose pages are most likely in a cache.
  std::unique_ptr<Area> area;
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
    if (used + wanted > kMostAreaBytes) return nullptr;
    Shrink(kMostAreaBytes - used - wanted);
    area = std::make_unique<Area>();
    area->file_ = MemoryFile::Create(wanted);
    if (area->file_ == nullptr) return nullptr;
    area_bytes_ += wanted;
  }
  if (Register(*area->file_, area->registration_)) return area;
  area_bytes_ -= area->bytes().size();
  return nullptr;
}

void SharedMemory::ReturnArea(std::unique_ptr<Area> area, bool idle) {
  std::unique_ptr<Area> dropped;  // Unmapped without the lock.
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t size = area->bytes().size();
  if (!idle) {
    Drop(area->registration_);
    area_bytes_ -= size;
    dropped = std::move(area);
    return;
  }
  unused_bytes_ += size;
  unused_.push_back(std::move(area));
  Shrink(kMostUnusedBytes);
}

// Gives unused areas back until they have no more bytes than that.
void SharedMemory::Shrink(size_t unused_bytes) {
  while (unused_bytes_ > unused_bytes) {
    Area& oldest = *unused_.front();
    Drop(oldest.registration_);
    unused_bytes_ -= oldest.bytes().size();
    area_bytes_ -= oldest.bytes().size();
    unused_.erase(unused_.begin());
  }
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
