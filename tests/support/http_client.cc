#include "tests/support/http_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace attention::testing {
namespace {

constexpr timeval kPatience = {60, 0};

// The value of a header; "" if it is not there.
std::string Header(const std::string& headers, absl::string_view name) {
  for (absl::string_view line : absl::StrSplit(headers, "\r\n")) {
    if (absl::ConsumePrefix(&line, name) && absl::ConsumePrefix(&line, ": ")) {
      return std::string(line);
    }
  }
  return "";
}

}  // namespace

HttpClient::HttpClient(const std::string& address, int receive_buffer)
    : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  if (receive_buffer > 0) {
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer,
               sizeof(receive_buffer));
  }
  for (int option : {SO_RCVTIMEO, SO_SNDTIMEO}) {
    setsockopt(fd_.get(), SOL_SOCKET, option, &kPatience, sizeof(kPatience));
  }
  const std::pair<std::string, std::string> host_and_port =
      absl::StrSplit(address, ':');
  sockaddr_in server{};
  server.sin_family = AF_INET;
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(host_and_port.second, &port)) << address;
  server.sin_port = htons(static_cast<uint16_t>(port));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd_.get(), reinterpret_cast<const sockaddr*>(&server),
                    sizeof(server)),
            0)
      << std::strerror(errno);
}

bool HttpClient::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent =
        send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) return false;
    bytes.remove_prefix(sent);
  }
  return true;
}

bool HttpClient::Receive() {
  char buffer[16384];
  const ssize_t bytes = recv(fd_.get(), buffer, sizeof(buffer), 0);
  EXPECT_FALSE(bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      << "the server neither answered nor closed";
  if (bytes <= 0) return false;
  received_.append(buffer, bytes);
  return true;
}

HttpClient::Response HttpClient::Read(bool bodyless) {
  Response response;
  size_t end;
  while ((end = received_.find("\r\n\r\n")) == std::string::npos) {
    if (!Receive()) return response;
  }
  response.headers = received_.substr(0, end);
  received_.erase(0, end + 4);
  size_t length = 0;
  if (!bodyless &&
      !absl::SimpleAtoi(Header(response.headers, "Content-Length"), &length)) {
    ADD_FAILURE() << "no length in " << response.headers;
  }
  while (received_.size() < length) {
    if (!Receive()) return response;
  }
  response.body = received_.substr(0, length);
  received_.erase(0, length);
  const std::string version = "HTTP/1.1 ";
  EXPECT_TRUE(absl::StartsWith(response.headers, version)) << response.headers;
  EXPECT_TRUE(absl::SimpleAtoi(response.headers.substr(version.size(), 3),
                               &response.status));
  return response;
}

HttpClient::Response HttpClient::Get(const std::string& path) {
  Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: test\r\n\r\n"));
  return Read();
}

bool HttpClient::IsClosed() {
  char byte;
  const ssize_t bytes = recv(fd_.get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK);
  return bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

size_t HttpClient::ReadToEnd() {
  size_t bytes = 0;
  do {
    bytes += received_.size();
    received_.clear();
  } while (Receive());
  return bytes;
}

}  // namespace attention::testing
