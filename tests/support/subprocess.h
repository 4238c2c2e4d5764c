// A program that runs beside the test.
#ifndef ATTENTION_TESTS_SUPPORT_SUBPROCESS_H_
#define ATTENTION_TESTS_SUPPORT_SUBPROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace attention::testing {

// Not thread-safe. Killed by the destructor if it still runs.
class Subprocess {
 public:
  // Starts argv[0], a path. Fails the test if that does not work.
  explicit Subprocess(const std::vector<std::string>& argv)
      : Subprocess(argv, Streams()) {}

  // Where its output goes instead: descriptors that the caller keeps and reads,
  // or does not. Then nothing of it comes from ReadLine() and Wait().
  struct Streams {
    int standard_output = -1;
    int standard_error = -1;
  };
  Subprocess(const std::vector<std::string>& argv, const Streams& streams);
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  // The next line of standard output without its end; empty at the end of it.
  std::string ReadLine();
  void Signal(int signal);
  // Until Wait().
  pid_t pid() const { return pid_; }

  struct Result {
    // 128 plus the signal if one ended it.
    int exit_code;
    // What has not been read before.
    std::string standard_output;
    std::string standard_error;
  };
  // Waits for its end.
  Result Wait();
  // Whether it has ended by then. To be followed by Wait().
  bool EndsWithin(std::chrono::milliseconds limit);

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  int error_ = -1;
  std::string buffered_;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_SUBPROCESS_H_
