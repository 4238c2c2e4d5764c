// The page at "/": attention step by step, and what the server does at the
// moment, in a browser. Its sources are in server/http/page; the build joins
// them to one file, which loads nothing from elsewhere.
#ifndef ATTENTION_SERVER_HTTP_PAGE_H_
#define ATTENTION_SERVER_HTTP_PAGE_H_

#include "absl/strings/string_view.h"
#include "server/http/http_server.h"

namespace attention::server {

// The page, HTML in UTF-8.
extern const absl::string_view kPageText;

// Answers with the page. Its Content-Security-Policy allows the page's own
// script and style, by their hashes, and requests to the server itself, nothing
// else: text that a file or an answer brings along never becomes code.
HttpHandler PageHandler();

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_PAGE_H_
