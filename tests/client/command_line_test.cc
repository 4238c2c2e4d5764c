#include "client/cpp/cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "attention/details/v1/details.pb.h"
#include "client/cpp/cli/compute_command.h"
#include "client/cpp/cli/npy.h"
#include "client/cpp/cli/report.h"
#include "tests/client/fake_service.h"
#include "tests/client/run_with.h"

namespace attention::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class CommandLine : public ::testing::Test {
 protected:
  CommandLine()
      : service_([](auto&, const auto& request, auto& response) {
          *response.mutable_output() = request.query();
          if (request.options().return_present()) {
            *response.mutable_present_key() = request.key();
            *response.mutable_present_value() = request.value();
          }
          return grpc::Status::OK;
        }) {}

  std::string Server() const {
    return absl::StrCat("--server=", service_.address());
  }

  Outcome Compute(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"compute", Server(),
                                          "--query=[[1,0]]", "--key=[[2,3]]",
                                          "--value=[[4]]"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunWith(std::move(arguments));
  }

  v1::ComputeAttentionRequest Sent(std::vector<std::string> more) {
    const Outcome outcome = Compute(std::move(more));
    EXPECT_EQ(outcome.code, kSuccess) << outcome.err;
    return service_.requests().empty() ? v1::ComputeAttentionRequest()
                                       : service_.requests().back();
  }

  FakeService service_;
};

TEST(SendingLineTest, FitsATerminal) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  EXPECT_EQ(SendingLine(2 * kGiB, 5 * kGiB, absl::Seconds(2)),
            "[####......] 2.0 of 5.0 GiB  1.0 GiB/s");
  EXPECT_LE(
      SendingLine(int64_t{1} << 60, int64_t{1} << 60, absl::Milliseconds(1))
          .size(),
      79u);
}

TEST_F(CommandLine, SendsTensors) {
  const auto sent = Sent({"--mask=[[true]]", "--past-key=[[[[5,6]]]]",
                          "--past-value=[[[[7]]]]", "--type=float64"});
  EXPECT_EQ(sent.query().data_type(), v1::DATA_TYPE_FLOAT64);
  EXPECT_THAT(sent.query().shape(), ElementsAre(1, 2));
  EXPECT_THAT(sent.key().shape(), ElementsAre(1, 2));
  EXPECT_THAT(sent.value().shape(), ElementsAre(1, 1));
  EXPECT_EQ(sent.mask().data_type(), v1::DATA_TYPE_BOOL);
  EXPECT_THAT(sent.past_key().shape(), ElementsAre(1, 1, 1, 2));
  EXPECT_THAT(sent.past_value().shape(), ElementsAre(1, 1, 1, 1));
}

TEST_F(CommandLine, SendsIndicesAndSinksOfRows) {
  const auto sent = Sent(
      {"--indices=[[[1, -1]]]", "--row-sinks=[[[0.5]]]", "--type=float16"});
  EXPECT_EQ(sent.indices().data_type(), v1::DATA_TYPE_INT64);
  EXPECT_THAT(sent.indices().shape(), ElementsAre(1, 1, 2));
  EXPECT_EQ(sent.sinks().data_type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(sent.sinks().shape(), ElementsAre(1, 1, 1));
}

TEST_F(CommandLine, MasksKeepTheirPrecision) {
  const auto sent = Sent({"--type=float16", "--mask=[[0.1]]"});
  EXPECT_EQ(sent.query().data_type(), v1::DATA_TYPE_FLOAT16);
  EXPECT_EQ(sent.mask().data_type(), v1::DATA_TYPE_FLOAT32);
}

TEST_F(CommandLine, DefaultsAreLeftToTheServer) {
  const auto sent = Sent({});
  EXPECT_EQ(sent.options().ByteSizeLong(), 0);
  EXPECT_FALSE(sent.has_mask());
  EXPECT_FALSE(sent.has_past_key());
}

TEST_F(CommandLine, SendsEveryOption) {
  const auto sent =
      Sent({"--layout=BSHD", "--query-heads=4", "--kv-heads=2", "--scale=-0.5",
            "--softcap=30", "--causal=bottom-right", "--window=-1,3",
            "--alibi-slopes=0.5,0.25", "--sinks=-inf,1", "--math-mode=fast",
            "--softmax-precision=float64", "--log-sum-exp", "--scores=biased",
            "--present", "--valid-lengths=1,2", "--query-starts=0,3",
            "--key-starts=0,4"});
  const v1::AttentionOptions& options = sent.options();
  EXPECT_EQ(options.layout(), v1::LAYOUT_BSHD);
  EXPECT_EQ(options.query_heads(), 4);
  EXPECT_EQ(options.kv_heads(), 2);
  EXPECT_EQ(options.scale(), -0.5);
  EXPECT_EQ(options.softcap(), 30);
  EXPECT_EQ(options.causal(), v1::CAUSAL_BOTTOM_RIGHT);
  EXPECT_EQ(options.window().left(), -1);
  EXPECT_EQ(options.window().right(), 3);
  EXPECT_THAT(options.alibi_slopes(), ElementsAre(0.5, 0.25));
  EXPECT_THAT(options.sinks(),
              ElementsAre(-std::numeric_limits<double>::infinity(), 1));
  EXPECT_EQ(options.math_mode(), v1::MATH_MODE_FAST);
  EXPECT_EQ(options.softmax_precision(), v1::DATA_TYPE_FLOAT64);
  EXPECT_TRUE(options.return_log_sum_exp());
  EXPECT_EQ(options.return_scores(), v1::SCORES_BIASED);
  EXPECT_TRUE(options.return_present());
  EXPECT_THAT(sent.valid_lengths(), ElementsAre(1, 2));
  EXPECT_THAT(sent.query_starts(), ElementsAre(0, 3));
  EXPECT_THAT(sent.key_starts(), ElementsAre(0, 4));
}

TEST_F(CommandLine, NamesAreTakenInAnySpelling) {
  const auto sent = Sent({"--layout=Bshd", "--causal=Bottom_Right",
                          "--math-mode=FAST", "--type=FLOAT64"});
  EXPECT_EQ(sent.options().layout(), v1::LAYOUT_BSHD);
  EXPECT_EQ(sent.options().causal(), v1::CAUSAL_BOTTOM_RIGHT);
  EXPECT_EQ(sent.options().math_mode(), v1::MATH_MODE_FAST);
  EXPECT_EQ(sent.query().data_type(), v1::DATA_TYPE_FLOAT64);
}

TEST_F(CommandLine, LiteralsAsTheyArePrinted) {
  const auto sent = Sent({"--mask=tensor([[True]])",
                          "--past-key=array([[[[5., 6.]]]], dtype=float16)",
                          "--past-value=[[[[7.]]]]", "--type=float64"});
  EXPECT_EQ(sent.mask().data_type(), v1::DATA_TYPE_BOOL);
  EXPECT_EQ(sent.past_key().data_type(), v1::DATA_TYPE_FLOAT16);
  EXPECT_EQ(sent.past_value().data_type(), v1::DATA_TYPE_FLOAT64);
}

// What is on standard input while it lives.
class StandardInput {
 public:
  explicit StandardInput(const std::string& text) : text_(text) {
    std::cin.clear();
    before_ = std::cin.rdbuf(text_.rdbuf());
  }
  ~StandardInput() { std::cin.rdbuf(before_); }

 private:
  std::istringstream text_;
  std::streambuf* before_;
};

TEST_F(CommandLine, ADashReadsStandardInput) {
  {
    const StandardInput in("[[1. 0.]]\n");
    EXPECT_THAT(Sent({"--mask=-"}).mask().shape(), ElementsAre(1, 2));
  }
  {
    const StandardInput in("[[1,");
    EXPECT_EQ(Compute({"--mask=-"}).err,
              "attention_client: --mask: standard input: not a literal such as "
              "[[1, 0], [0, 1]]: wrong at character 5 (the end)\n");
  }
  {
    std::ostringstream npy;
    const std::vector<float> values = {3, 4};
    ASSERT_TRUE(WriteNpy(Tensor::Of<float>(values, {2, 1}), npy).ok());
    const StandardInput in(npy.str());
    EXPECT_THAT(Sent({"--mask", "-"}).mask().shape(), ElementsAre(2, 1));
  }
  const StandardInput in("[[1]]");
  EXPECT_EQ(Compute({"--mask=-", "--past-key=-"}).err,
            "attention_client: --past-key: got '-', but --mask reads standard "
            "input already\n");
}

TEST_F(CommandLine, AMaskOfZerosAndOnesGetsAHint) {
  const std::string note =
      "attention_client: note: --mask: its numbers, all 0 or 1, are added to "
      "the scores; to hide keys write false and true instead, or give an array "
      "of type bool\n";
  for (const std::string mask :
       {"[[0, 1]]", "[[1.]]", "[[0]]", "array([[1]], dtype=uint8)",
        "array([[1]], dtype=int8)", "array([[1]], dtype=int64)",
        "tensor([[1., 0.]], dtype=torch.float16)",
        "tensor([[1., 0.]], dtype=torch.bfloat16)",
        "tensor([[1., 0.]], dtype=torch.float64)"}) {
    const Outcome outcome = Compute({"--mask=" + mask});
    EXPECT_EQ(outcome.code, kSuccess);
    EXPECT_EQ(outcome.err, note) << mask;
  }
  for (const std::string mask :
       {"[[true]]", "[[0, -1]]", "[[0, 0.5]]", "[[0, -inf]]", "[[]]",
        "array([[1, 0]], dtype=bool)",
        "tensor([[1., 2.]], dtype=torch.bfloat16)"}) {
    EXPECT_EQ(Compute({"--mask=" + mask}).err, "") << mask;
  }
}

TEST_F(CommandLine, Completion) {
  const Outcome bash = RunWith({"completion", "bash"});
  EXPECT_EQ(bash.code, kSuccess);
  EXPECT_THAT(bash.out, HasSubstr("complete -F _attention_client "));
  EXPECT_THAT(bash.out, HasSubstr("words='bottom-right top-left'"));
  EXPECT_THAT(RunWith({"completion", "zsh"}).out,
              StartsWith("#compdef attention_client\n"));
  EXPECT_EQ(RunWith({"completion", "fish"}).code, kBadInput);
}

TEST_F(CommandLine, PrintsTheOutputBare) {
  EXPECT_EQ(Compute({}).out, "[[1, 0]]\n");
}

TEST_F(CommandLine, LabelsSeveralTensors) {
  EXPECT_EQ(Compute({"--present"}).out,
            "output:\n[[1, 0]]\npresent_key:\n[[2, 3]]\n"
            "present_value:\n[[4]]\n");
}

TEST_F(CommandLine, UsageErrorsAreOneLineAndOne) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{},
       "got no command, wanted compute, health, info, bench, session or "
       "completion"},
      {{"benhc"}, "benhc: no such command, did you mean bench?"},
      {{"--server=x", "health"}, "--server: this flag stands after a command"},
      {{"health", "--port=1"}, "--port: no such flag, did you mean --server?"},
      {{"compute", "--qeury=[[1]]"}, "did you mean --query?"},
      {{"health", "--server=http://a:1"},
       "--server: got 'http://a:1', wanted no scheme"},
      {{"bench", "--server=localhost"},
       "--server: got 'localhost', wanted a port too"},
      {{"health", "--service=x", "--timeout=nan"}, "--timeout: got 'nan'"},
      {{"compute"}, "--query is required"},
      {{"health", "--timeout=0"},
       "--timeout: got '0', wanted a time such as 5 (seconds), 500ms or "
       "1m30s, above 0"},
      {{"health", "--timeout=soon"}, "--timeout: got 'soon'"},
      {{"health", "extra"}, "extra"},
  };
  for (const auto& [arguments, error] : cases) {
    const Outcome outcome = RunWith(arguments);
    EXPECT_EQ(outcome.code, kBadInput);
    ExpectOneLine(outcome.err);
    EXPECT_THAT(outcome.err, HasSubstr(error));
    EXPECT_EQ(outcome.out, "");
  }
}

TEST_F(CommandLine, WrongFlagsAreNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--layout=square", "--layout: got 'square', wanted bhsd|bshd|"},
      {"--causal=yes", "--causal: got 'yes', wanted bottom-right|top-left"},
      {"--window=3", "--window: got '3', wanted LEFT,RIGHT"},
      {"--window=a,b", "--window: got 'a,b', wanted numbers"},
      {"--sinks=1,,2", "--sinks: got '1,,2', wanted numbers"},
      {"--scale=big", "--scale"},
      {"--query-heads=1.5", "--query-heads"},
      {"--head=1", "--explain"},
      {"--scores-output=a.npy", "--scores"},
      {"--nonsense", "--nonsense: no such flag"},
      {"--mask=[[1],[2,3]]", "--mask: rows of different length"},
      {"--mask=none.npy", "--mask: none.npy: no such file"},
      {"--output=out.txt", "--output: got 'out.txt', wanted file.npy"},
  };
  for (const auto& [flag, error] : cases) {
    const Outcome outcome = Compute({flag});
    EXPECT_EQ(outcome.code, kBadInput) << flag;
    ExpectOneLine(outcome.err);
    EXPECT_THAT(outcome.err, HasSubstr(error));
  }
  EXPECT_EQ(Compute({"--explain", "--scores=raw"}).code, kBadInput);
  EXPECT_TRUE(service_.requests().empty());
}

TEST_F(CommandLine, BFloat16IntoNpyIsRefusedBeforeTheCall) {
  const Outcome outcome =
      Compute({"--type=bfloat16", "--output=no/folder/a.npy"});
  EXPECT_EQ(outcome.code, kBadInput);
  EXPECT_EQ(outcome.err,
            "attention_client: --output: .npy has no BFLOAT16: write a "
            ".safetensors file instead\n");
  EXPECT_TRUE(service_.requests().empty());
}

TEST_F(CommandLine, HelpTellsExitCodes) {
  for (const std::string command : {"compute", "health", "info"}) {
    const Outcome outcome = RunWith({command, "--help"});
    EXPECT_EQ(outcome.code, kSuccess);
    EXPECT_THAT(outcome.out, HasSubstr("Exit codes: 0 "));
  }
}

TEST_F(CommandLine, Health) {
  EXPECT_EQ(RunWith({"health", Server()}).code, kSuccess);
  EXPECT_EQ(RunWith({"health", Server()}).out, "SERVING\n");
  const Outcome unknown = RunWith({"health", Server(), "--service=no.Such"});
  EXPECT_EQ(unknown.code, kRefused);
  EXPECT_THAT(unknown.err, StartsWith("attention_client: NOT_FOUND"));

  service_.server().GetHealthCheckService()->SetServingStatus(false);
  const Outcome draining = RunWith({"health", Server()});
  EXPECT_EQ(draining.code, kRefused);
  EXPECT_EQ(draining.err, "attention_client: NOT_SERVING\n");
  EXPECT_EQ(draining.out, "");

  const Outcome nowhere = RunWith({"health", "--server=unix:/no/such/socket"});
  EXPECT_EQ(nowhere.code, kNoAnswer);
  ExpectOneLine(nowhere.err);
}

TEST_F(CommandLine, Info) {
  const Outcome outcome = RunWith({"info", Server()});
  EXPECT_EQ(outcome.code, kSuccess);
  EXPECT_EQ(outcome.out,
            "version             1.2.3\n"
            "SIMD target         AVX9\n"
            "threads             7\n"
            "types               FLOAT32 BFLOAT16\n"
            "math modes          REPRODUCIBLE\n"
            "max request bytes   1000\n"
            "max response bytes  2000\n"
            "keys a block        256\n"
            "max head size       300\n"
            "max heads           400\n"
            "max batch           500\n"
            "max batch * heads   600\n"
            "max multiply-adds   70000000000\n"
            "max chunk bytes     8000\n"
            "shared memory       unix:/no/such/socket\n");
}

TEST(Report, ExitCodes) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), kSuccess);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), kRefused);
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("")), kRefused);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), kRefused);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("")), kBadInput);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), kNoAnswer);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), kNoAnswer);
}

TEST(Report, OneLineFromAnyStatus) {
  EXPECT_EQ(Describe(absl::InternalError("two\nlines\x01\n")),
            "INTERNAL: two lines");
}

TEST(Report, TellsTheReasonAndTheDelay) {
  details::v1::ErrorInfo info;
  info.set_reason("MEMORY_BUSY");
  info.set_domain("attention");
  details::v1::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(50'000'000);
  absl::Status status = absl::ResourceExhaustedError("busy");
  const std::string info_bytes = info.SerializeAsString();
  const std::string retry_bytes = retry.SerializeAsString();
  status.SetPayload("type.googleapis.com/google.rpc.ErrorInfo",
                    absl::Cord(absl::string_view(info_bytes)));
  EXPECT_EQ(Describe(status), "RESOURCE_EXHAUSTED: busy (MEMORY_BUSY)");
  status.SetPayload("type.googleapis.com/google.rpc.RetryInfo",
                    absl::Cord(absl::string_view(retry_bytes)));
  EXPECT_EQ(Describe(status),
            "RESOURCE_EXHAUSTED: busy (MEMORY_BUSY, try again in 50ms)");
}

TEST(Report, LeavesOutAReasonThatTheLineHasAlready) {
  details::v1::ErrorInfo info;
  info.set_domain("attention");
  for (const char* reason : {"INVALID_FIELD", "INVALID_ARGUMENT"}) {
    info.set_reason(reason);
    absl::Status status = absl::InvalidArgumentError("key: missing");
    const std::string bytes = info.SerializeAsString();
    status.SetPayload("type.googleapis.com/google.rpc.ErrorInfo",
                      absl::Cord(absl::string_view(bytes)));
    EXPECT_EQ(Describe(status), "INVALID_ARGUMENT: key: missing");
  }
}

}  // namespace
}  // namespace attention::cli
