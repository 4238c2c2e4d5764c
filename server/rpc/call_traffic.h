// A call's part in the account of its connection (connections/traffic.h).
#ifndef ATTENTION_SERVER_RPC_CALL_TRAFFIC_H_
#define ATTENTION_SERVER_RPC_CALL_TRAFFIC_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "server/connections/connection_table.h"

namespace attention::server {

// From construction, when its headers have come, to End(). Does nothing for
// peers whose bytes are unknown. Thread-compatible; never throws.
class CallTraffic {
 public:
  // `connections` must outlive this.
  CallTraffic(ConnectionTable& connections, absl::string_view peer,
              int64_t header_bytes) noexcept;
  // Ends it as a call that was cancelled.
  ~CallTraffic() { End({.cancelled = true}); }
  CallTraffic(const CallTraffic&) = delete;
  CallTraffic& operator=(const CallTraffic&) = delete;

  // Its message is read from here on: `limit` bytes at most.
  void Read(int64_t limit) noexcept;
  // A message of a stream came, as Traffic::Next() says.
  void Next(int64_t message_bytes, int64_t response_bytes,
            int64_t limit) noexcept;
  // What the peer has taken so far of what its connection carries.
  std::optional<ConnectionTable::Delivery> Delivered() const {
    return connection_ ? ConnectionTable::DeliveryOn(*connection_)
                       : std::nullopt;
  }
  // Once; later ones do nothing. `received` need not be set.
  void End(Traffic::CallEnd end) noexcept;

 private:
  ConnectionTable& connections_;
  std::optional<ConnectionId> connection_;
  Traffic::Call call_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_TRAFFIC_H_
