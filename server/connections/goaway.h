// Tells clients to make their next calls elsewhere.
#ifndef ATTENTION_SERVER_CONNECTIONS_GOAWAY_H_
#define ATTENTION_SERVER_CONNECTIONS_GOAWAY_H_

#include "grpcpp/server.h"

namespace attention::server {

// Asks the client of every connection to begin no more calls on it (GOAWAY).
// Calls that were on their way by then are still served: the connection takes
// no more only once its client has answered a ping sent behind the GOAWAY, or
// has not for 20 s. It is closed when its last call has ended. Connections that
// have been told are left alone. In-process channels, which know no GOAWAY, are
// cut at once with the calls on them.
//
// Thread-safe. `server` must have started, and not have ended.
void SendGoaways(grpc::Server& server);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_GOAWAY_H_
