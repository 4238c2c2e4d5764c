#include "server/http/page.h"

#include <openssl/sha.h>

#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

// What stands between `open` and `close`, the first of each.
absl::string_view Between(absl::string_view open, absl::string_view close) {
  const size_t begin = kPageText.find(open) + open.size();
  return kPageText.substr(begin, kPageText.find(close, begin) - begin);
}

// 'sha256-BASE64', as the policy names an inline script or style.
std::string HashSource(absl::string_view text) {
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         hash);
  return absl::StrCat(
      "'sha256-",
      absl::Base64Escape({reinterpret_cast<const char*>(hash), sizeof(hash)}),
      "'");
}

}  // namespace

HttpHandler PageHandler() {
  std::string policy =
      absl::StrCat("default-src 'none'; script-src ",
                   HashSource(Between("<script>", "</script>")), "; style-src ",
                   HashSource(Between("<style>", "</style>")),
                   "; connect-src 'self'; img-src data:; base-uri 'none'; "
                   "form-action 'none'; frame-ancestors 'none'");
  return [policy = std::move(policy)](const HttpRequest&) {
    return HttpResponse{.body = std::string(kPageText),
                        .content_type = "text/html; charset=utf-8",
                        .headers = {{"Content-Security-Policy", policy},
                                    {"X-Content-Type-Options", "nosniff"},
                                    {"Referrer-Policy", "no-referrer"},
                                    // Another version is another page.
                                    {"Cache-Control", "no-cache"}}};
  };
}

}  // namespace attention::server
