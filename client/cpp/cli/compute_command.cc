#include "client/cpp/cli/compute_command.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/float16.h"
#include "client/cpp/cli/explain.h"
#include "client/cpp/cli/tensor_argument.h"
#include "client/cpp/cli/tensor_flags.h"
#include "client/cpp/cli/terminal_line.h"

namespace attention::cli {
namespace {

// The request's tensors, which the request only borrows.
struct Inputs {
  Tensor query;
  TensorInput key;
  TensorInput value;
  std::optional<Tensor> mask;
  std::optional<TensorInput> past_key;
  std::optional<TensorInput> past_value;
  std::optional<Tensor> indices;
  std::optional<Tensor> row_sinks;

  template <typename Function>
  void ForEachMappable(const Function& function) const {
    for (const TensorInput* input : {&key, &value}) function(*input);
    for (const auto* input : {&past_key, &past_value}) {
      if (*input) function(**input);
    }
  }
  // Gives back the memory of mapped files.
  void DropPages() const {
    ForEachMappable([](const TensorInput& input) { input.DropPages(); });
  }
  bool Shortened() const {
    bool shortened = false;
    ForEachMappable([&](const TensorInput& input) {
      shortened = shortened || input.Shortened();
    });
    return shortened;
  }
};

absl::StatusOr<Inputs> ReadInputs(const ComputeFlags& flags) {
  absl::Status readable =
      CheckStandardInput({{"--query", flags.query},
                          {"--key", flags.key},
                          {"--value", flags.value},
                          {"--mask", flags.mask},
                          {"--past-key", flags.past_key},
                          {"--past-value", flags.past_value},
                          {"--indices", flags.indices},
                          {"--row-sinks", flags.row_sinks}});
  if (!readable.ok()) return readable;
  Inputs inputs;
  const v1::DataType type = flags.literal_type;
  // A mask's numbers need not be of the query's type, and small ones would
  // round: they stay float32.
  for (const absl::Status& status :
       {ReadTensorFlag("--query", flags.query, type, inputs.query),
        ReadTensorFlag("--key", flags.key, type, inputs.key),
        ReadTensorFlag("--value", flags.value, type, inputs.value),
        ReadTensorFlag("--mask", flags.mask, v1::DATA_TYPE_FLOAT32,
                       inputs.mask),
        ReadTensorFlag("--past-key", flags.past_key, type, inputs.past_key),
        ReadTensorFlag("--past-value", flags.past_value, type,
                       inputs.past_value),
        ReadTensorFlag("--indices", flags.indices, v1::DATA_TYPE_INT64,
                       inputs.indices),
        ReadTensorFlag("--row-sinks", flags.row_sinks, v1::DATA_TYPE_FLOAT32,
                       inputs.row_sinks)}) {
    if (!status.ok()) return status;
  }
  return inputs;
}

template <typename T>
bool Among(std::span<const T> elements, T zero, T one) {
  return std::all_of(elements.begin(), elements.end(),
                     [&](T x) { return x == zero || x == one; });
}

// Whether a mask of numbers, which are added, looks like one of truth values.
bool LooksBoolean(const Tensor& mask) {
  if (mask.size() == 0) return false;
  switch (mask.type()) {
    case v1::DATA_TYPE_FLOAT32:
      return Among<float>(mask.elements<float>(), 0, 1);
    case v1::DATA_TYPE_FLOAT64:
      return Among<double>(mask.elements<double>(), 0, 1);
    case v1::DATA_TYPE_FLOAT16:
      return Among<uint16_t>(mask.elements<uint16_t>(), 0, ToFloat16(1));
    case v1::DATA_TYPE_BFLOAT16:
      return Among<uint16_t>(mask.elements<uint16_t>(), 0, ToBFloat16(1));
    case v1::DATA_TYPE_INT8:
      return Among<int8_t>(mask.elements<int8_t>(), 0, 1);
    case v1::DATA_TYPE_INT32:
      return Among<int32_t>(mask.elements<int32_t>(), 0, 1);
    case v1::DATA_TYPE_INT64:
      return Among<int64_t>(mask.elements<int64_t>(), 0, 1);
    default:
      return false;
  }
}

ComputeRequest RequestOf(const ComputeFlags& flags, const Inputs& inputs) {
  ComputeRequest request;
  request.query = inputs.query;
  request.key = inputs.key.span();
  request.value = inputs.value.span();
  if (inputs.mask) request.mask = *inputs.mask;
  if (inputs.past_key) request.past_key = inputs.past_key->span();
  if (inputs.past_value) request.past_value = inputs.past_value->span();
  if (inputs.indices) request.indices = *inputs.indices;
  if (inputs.row_sinks) request.sinks = *inputs.row_sinks;
  request.valid_lengths = flags.valid_lengths;
  request.query_starts = flags.query_starts;
  request.key_starts = flags.key_starts;
  request.options = flags.options;
  if (flags.explain) request.options.set_return_scores(v1::SCORES_WEIGHTS);
  return request;
}

// Where each tensor of the answer goes; nothing: to standard output.
struct Targets {
  std::optional<TensorTarget> output;
  std::optional<TensorTarget> log_sum_exp;
  std::optional<TensorTarget> scores;
  std::optional<TensorTarget> present_key;
  std::optional<TensorTarget> present_value;
};

absl::StatusOr<Targets> TargetsOf(const ComputeFlags& flags,
                                  const Inputs& inputs) {
  Targets targets;
  for (const absl::Status& status :
       {ReadTargetFlag("--output", flags.output_file, "output",
                       inputs.query.type(), targets.output),
        ReadTargetFlag("--log-sum-exp-output", flags.log_sum_exp_file,
                       "log_sum_exp", v1::DATA_TYPE_FLOAT32,
                       targets.log_sum_exp),
        ReadTargetFlag("--scores-output", flags.scores_file, "scores",
                       inputs.query.type(), targets.scores),
        ReadTargetFlag("--present-key-output", flags.present_key_file,
                       "present_key", inputs.key.type(), targets.present_key),
        ReadTargetFlag("--present-value-output", flags.present_value_file,
                       "present_value", inputs.value.type(),
                       targets.present_value)}) {
    if (!status.ok()) return status;
  }
  absl::Status status =
      CheckApart({{"--output", targets.output},
                  {"--log-sum-exp-output", targets.log_sum_exp},
                  {"--scores-output", targets.scores},
                  {"--present-key-output", targets.present_key},
                  {"--present-value-output", targets.present_value}});
  if (!status.ok()) return status;
  return targets;
}

absl::Status Deliver(const ComputeFlags& flags, const ComputeResult& result,
                     const Targets& targets, std::ostream& out) {
  // Alone, the output stands bare, to be read by other programs.
  const bool labelled = flags.explain || result.log_sum_exp || result.scores ||
                        result.present_key;
  Delivery delivery(labelled, out);
  // --explain has shown output and weights, if of one head only.
  if (!flags.explain || targets.output) {
    delivery.Add("output", result.output, targets.output);
  }
  delivery.Add("log_sum_exp", result.log_sum_exp, targets.log_sum_exp);
  if (!flags.explain || targets.scores) {
    delivery.Add("scores", result.scores, targets.scores);
  }
  delivery.Add("present_key", result.present_key, targets.present_key);
  delivery.Add("present_value", result.present_value, targets.present_value);
  return delivery.WriteFiles();
}

// While a large request is sent: gives back the memory of mapped files, and
// shows how far it is where that takes long.
class Sending {
 public:
  Sending(const Inputs& inputs, bool show, std::ostream& err)
      : inputs_(inputs), show_(show), line_(err) {}

  void operator()(int64_t sent, int64_t total) {
    if (sent - dropped_ >= kDropEvery) {
      inputs_.DropPages();
      dropped_ = sent;
    }
    const absl::Time now = absl::Now();
    if (!show_ || now < next_) return;
    next_ = now + absl::Milliseconds(100);
    line_.Show(SendingLine(sent, total, now - start_));
  }
  void Clear() { line_.Clear(); }

 private:
  static constexpr int64_t kDropEvery = int64_t{64} << 20;

  const Inputs& inputs_;
  const bool show_;
  TerminalLine line_;
  const absl::Time start_ = absl::Now();
  // Not for what is over at once.
  absl::Time next_ = start_ + absl::Milliseconds(500);
  int64_t dropped_ = 0;
};

ExitCode CallFailed(const absl::Status& status, std::ostream& err) {
  err << "attention_client: " << Describe(status) << "\n";
  return ExitCodeOf(status);
}

}  // namespace

std::string SendingLine(int64_t sent, int64_t total,
                        absl::Duration since_start) {
  constexpr int kWidth = 10;
  constexpr double kGiB = 1 << 30;
  const double share =
      static_cast<double>(sent) / static_cast<double>(std::max(sent, total));
  const int filled = static_cast<int>(share * kWidth);
  return absl::StrFormat(
      "[%s%s] %.1f of %.1f GiB  %.1f GiB/s", std::string(filled, '#'),
      std::string(kWidth - filled, '.'), static_cast<double>(sent) / kGiB,
      static_cast<double>(total) / kGiB,
      static_cast<double>(sent) / kGiB / absl::ToDoubleSeconds(since_start));
}

ExitCode RunCompute(const ComputeFlags& flags, std::ostream& out,
                    std::ostream& err) {
  absl::StatusOr<Inputs> inputs = ReadInputs(flags);
  if (!inputs.ok()) return BadInput(inputs.status(), err);
  absl::StatusOr<Targets> targets = TargetsOf(flags, *inputs);
  if (!targets.ok()) return BadInput(targets.status(), err);

  if (inputs->mask && LooksBoolean(*inputs->mask)) {
    err << "attention_client: note: --mask: its numbers, all 0 or 1, are added "
           "to the scores; to hide keys write false and true instead, or give "
           "an array of type bool\n";
  }
  const absl::StatusOr<Connection> connection =
      Connect(flags.server, flags.connection);
  if (!connection.ok()) return BadInput(connection.status(), err);
  const Client client(*connection);
  const ComputeRequest request = RequestOf(flags, *inputs);
  Sending sending(*inputs, flags.progress, err);
  const CallOptions call{
      .timeout = flags.timeout,
      .progress = [&](int64_t sent, int64_t total) { sending(sent, total); }};
  absl::StatusOr<ComputeResult> result = client.Compute(request, call);
  sending.Clear();
  if (inputs->Shortened()) {
    return BadInput(absl::InvalidArgumentError(
                        "an input file became shorter while it was read"),
                    err);
  }
  if (!result.ok()) return CallFailed(result.status(), err);

  if (flags.explain) {
    absl::Status status = CheckChoice(*result, flags.batch, flags.head);
    if (!status.ok()) return BadInput(status, err);
    absl::StatusOr<Explanation> explanation =
        Explain(client, request, *result, call, flags.batch, flags.head);
    if (!explanation.ok()) return CallFailed(explanation.status(), err);
    out << Render(*explanation, flags.ascii);
  }
  absl::Status status = Deliver(flags, *result, *targets, out);
  if (!status.ok()) return BadInput(status, err);
  return kSuccess;
}

}  // namespace attention::cli
