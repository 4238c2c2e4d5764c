// Queries of a message over a layer of a session.
#ifndef ATTENTION_SERVER_LAYER_ATTEND_H_
#define ATTENTION_SERVER_LAYER_ATTEND_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/buffer_pool.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "server/convert.h"
#include "sessions/page.h"
#include "sessions/session.h"
#include "wire/memory_meter.h"
#include "wire/session_request.h"

namespace attention::server {

// The layer that a request names, if it has the length that is expected. Errors
// are those that a client gets.
absl::StatusOr<LayerSnapshot> ReadLayer(const Session& session,
                                        const wire::LayerFields& where);

// What an AttendRequest asks of a layer of so many tokens, with the axis of a
// batch of one and without keys and values. As ToKernel(), whose errors it has.
absl::StatusOr<KernelRequest> ToLayerRequest(wire::AttendFields fields,
                                             const PageFormat& format,
                                             int64_t length, BufferPool& pool,
                                             wire::MemoryMeter& meter);

// A plan of it over the layer, whose view is put into `view`; both must live as
// long as the plan, whose outputs have no axis for the batch. Errors as of
// PlanAttention(); and where a layer with a window is asked without one, or for
// tokens that it has released.
absl::StatusOr<AttentionPlan> PlanLayerRequest(const KernelRequest& request,
                                               const LayerSnapshot& layer,
                                               KeyValueView& view,
                                               const AttentionLimits& limits);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LAYER_ATTEND_H_
