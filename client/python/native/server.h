// What the calls of one client share.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_SERVER_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_SERVER_H_

#include <memory>
#include <stop_token>
#include <utility>

#include "attention/client.h"
#include "attention/connection.h"

namespace attention::python {

struct Server {
  explicit Server(Connection made)
      : connection(std::move(made)), client(connection.WithMaxAttempts(1)) {}

  const Connection connection;
  // Tries a call once: retries.py does the rest.
  const Client client;
  // Requested by Close().
  std::stop_source closing;
  // Keeps what must not be destroyed.
  std::shared_ptr<Server> itself;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_SERVER_H_
