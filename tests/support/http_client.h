// An HTTP client that sends what it is told, byte by byte.
#ifndef ATTENTION_TESTS_SUPPORT_HTTP_CLIENT_H_
#define ATTENTION_TESTS_SUPPORT_HTTP_CLIENT_H_

#include <string>

#include "absl/strings/string_view.h"
#include "base/descriptor.h"

namespace attention::testing {

// A connection to "127.0.0.1:port". Every call fails the test, and gives up,
// where it would wait for longer than a minute. Not thread-safe.
class HttpClient {
 public:
  // With `receive_buffer` bytes of room for what is not read yet; 0: as many as
  // the system gives.
  explicit HttpClient(const std::string& address, int receive_buffer = 0);

  // Whether all was sent: not to a connection known to be closed.
  bool Send(absl::string_view bytes);

  struct Response {
    // 0 if the connection was closed before a whole response came.
    int status = 0;
    // With the status line.
    std::string headers;
    std::string body;
  };
  // `bodyless`: as the answer to HEAD is, whatever length it tells.
  Response Read(bool bodyless = false);

  // Send() of a GET, and Read().
  Response Get(const std::string& path);

  // Whether the other side closed, with nothing left to read.
  bool IsClosed();
  // Reads until the other side closes; how many bytes came.
  size_t ReadToEnd();

 private:
  // False at the end.
  bool Receive();

  Descriptor fd_;
  std::string received_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_HTTP_CLIENT_H_
