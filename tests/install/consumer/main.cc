// The example of attention/client.h, against the server named on the command
// line: a call that works, a call that fails, health and capabilities.
#include <attention/client.h>
#include <attention/float16.h>
#include <attention/session.h>

#include <cmath>
#include <iostream>
#include <vector>

namespace {

int Fail(const char* what, const absl::Status& status) {
  std::cerr << what << ": " << status << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return Fail("usage: consumer ADDRESS", {});
  const attention::Client client(argv[1]);
  const absl::StatusOr<attention::Health> health = client.CheckHealth();
  if (!health.ok() || *health != attention::Health::kServing) {
    return Fail("health", health.status());
  }
  const auto capabilities = client.GetCapabilities();
  if (!capabilities.ok()) return Fail("capabilities", capabilities.status());

  const std::vector<float> eye = {1, 0, 0, 1};
  attention::ComputeRequest request;
  request.query = attention::TensorSpan::Of<float>(eye, {2, 2});
  request.key = request.query;
  request.value = request.query;
  const absl::StatusOr<attention::ComputeResult> result =
      client.Compute(request, {.timeout = absl::Seconds(30)});
  if (!result.ok()) return Fail("compute", result.status());
  const std::vector<double> output = result->output.ToDoubles();
  if (output.size() != 4 || std::fabs(output[0] - 0.669762) > 1e-6) {
    return Fail("wrong output", {});
  }

  const std::vector<float> row = {1, 0, 0};
  request.key = attention::TensorSpan::Of<float>(row, {1, 3});
  const absl::Status refused = client.Compute(request).status();
  const auto violations = attention::FieldViolations(refused);
  if (refused.code() != absl::StatusCode::kInvalidArgument ||
      violations.size() != 1 || violations[0].field != "key.shape") {
    return Fail("wrong refusal", refused);
  }

  attention::v1::SessionConfig config;
  config.set_kv_heads(1);
  config.set_head_size(2);
  auto session = client.CreateSession(config);
  if (!session.ok()) return Fail("session", session.status());
  const auto tokens = attention::TensorSpan::Of<float>(eye, {1, 2, 2});
  const auto stepped = session->Step(0, tokens, tokens, tokens);
  if (!stepped.ok()) return Fail("step", stepped.status());
  if (std::fabs(stepped->output.ToDoubles()[3] - 0.669762) > 1e-6) {
    return Fail("wrong step", {});
  }
  if (attention::FromFloat16(attention::ToFloat16(0.5)) != 0.5f) {
    return Fail("wrong rounding", {});
  }
  std::cout << output[0] << " " << output[1] << " from version "
            << capabilities->version() << "\n";
  return 0;
}
