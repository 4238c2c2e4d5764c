// Certificates made on the spot, and files to put them into.
#ifndef ATTENTION_TESTS_SUPPORT_CERTIFICATES_H_
#define ATTENTION_TESTS_SUPPORT_CERTIFICATES_H_

#include <memory>
#include <string>

#include "absl/time/time.h"

namespace attention::testing {

// A certificate and its key, in PEM.
struct Pem {
  std::string cert;
  std::string key;
};

// Signs certificates; its own says that it may.
class Authority {
 public:
  explicit Authority(const std::string& name);
  ~Authority();
  Authority(const Authority&) = delete;
  Authority& operator=(const Authority&) = delete;

  // Its own certificate.
  const std::string& cert() const;

  struct Wanted {
    // The common name, and the name of the host; for 127.0.0.1 as well.
    std::string name = "localhost";
    // From now on.
    absl::Duration begins = -absl::Hours(1);
    absl::Duration ends = absl::Hours(1);
  };
  Pem Issue(const Wanted& wanted) const;
  Pem Issue() const { return Issue(Wanted()); }

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

// A folder of the test's own, removed with what is in it.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  // Makes a file, or replaces it at once by a new one. Returns its path.
  std::string Write(const std::string& name, const std::string& text) const;

 private:
  std::string path_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_CERTIFICATES_H_
