// The variables that name proxies, for tests.
#ifndef ATTENTION_TESTS_CLIENT_PROXY_ENVIRONMENT_H_
#define ATTENTION_TESTS_CLIENT_PROXY_ENVIRONMENT_H_

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"

namespace attention {

// These variables and no others that name proxies are set while it lives.
// To be used where no other thread looks at the environment.
class ProxyEnvironment {
 public:
  using Variables = std::map<std::string, std::string>;

  explicit ProxyEnvironment(const Variables& set) {
    for (const char* name : kNames) {
      if (const char* value = std::getenv(name)) before_[name] = value;
      unsetenv(name);
    }
    for (const auto& [name, value] : set)
      setenv(name.c_str(), value.c_str(), 1);
  }
  ~ProxyEnvironment() {
    for (const char* name : kNames) unsetenv(name);
    for (const auto& [name, value] : before_) {
      setenv(name.c_str(), value.c_str(), 1);
    }
  }
  ProxyEnvironment(const ProxyEnvironment&) = delete;
  ProxyEnvironment& operator=(const ProxyEnvironment&) = delete;

 private:
  static constexpr const char* kNames[] = {
      "grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"};
  Variables before_;
};

// An address on loopback that refuses connections while it lives: a port that
// is taken and not listened on.
class RefusingPort {
 public:
  RefusingPort() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    bind(socket_, reinterpret_cast<sockaddr*>(&address), length);
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~RefusingPort() { close(socket_); }
  RefusingPort(const RefusingPort&) = delete;
  RefusingPort& operator=(const RefusingPort&) = delete;

  const std::string& address() const { return address_; }

 private:
  const int socket_;
  std::string address_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_PROXY_ENVIRONMENT_H_
