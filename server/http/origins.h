// Which pages in browsers may call.
#ifndef ATTENTION_SERVER_HTTP_ORIGINS_H_
#define ATTENTION_SERVER_HTTP_ORIGINS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/http/http_server.h"

namespace attention::server {

// As CORS has it: a browser says of which origin the page is that calls, and
// shows the page an answer only if that names the origin. Thread-safe.
class Origins {
 public:
  // "https://a.example", or "*": all. `own_host`: the server's name, beside
  // localhost and addresses.
  Origins(std::vector<std::string> allowed, std::string own_host);

  // Of one request.
  class Check {
   public:
    // Whether its page was named.
    bool named() const { return named_; }
    // Whether it may have an effect: it is of no page, of a named one, or of
    // one of this server.
    bool may_call() const { return may_call_; }
    // Tells the browser, where the page was named.
    void AddTo(HttpResponse& response) const;
    // The answer to a browser that asks beforehand.
    HttpResponse Preflight(absl::string_view methods) const;

   private:
    friend class Origins;
    std::string origin_;
    bool named_ = false;
    bool may_call_ = true;
  };
  Check Of(const HttpRequest& request) const;

 private:
  bool IsOwn(absl::string_view host) const;

  const std::vector<std::string> allowed_;
  const std::string own_host_;
};

// Of a request that must not call.
inline constexpr char kOtherOrigin[] =
    "this page is of another origin: the server must name it "
    "(--http-allow-origin)";

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_ORIGINS_H_
