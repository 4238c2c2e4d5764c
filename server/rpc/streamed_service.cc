#include "server/rpc/streamed_service.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/raw_call.h"
#include "server/status.h"

namespace attention::server {
namespace {

class UnknownCall final : public RawCall {
 public:
  UnknownCall(const CallEnvironment& environment,
              grpc::GenericCallbackServerContext* context)
      : RawCall(environment, {"other", Access::kAnybody}, context),
        context_(*context) {}

 private:
  absl::Status Begin() override {
    constexpr size_t kMostShown = 100;
    return WithReason(
        Reason::kUnknownMethod,
        absl::UnimplementedError(absl::StrCat(
            "there is no method ",
            absl::CHexEscape(context_.method().substr(0, kMostShown)))));
  }
  // Nothing is read.
  void Received(const grpc::ByteBuffer& /*message*/) override {}
  void NoMore() override {}

  const grpc::GenericCallbackServerContext& context_;
};

}  // namespace

StreamedService::StreamedService(const CallEnvironment& environment)
    : environment_(environment) {}

void StreamedService::Add(const std::string& path, Starter starter) {
  starters_.emplace(path, std::move(starter));
  made_.store(true, std::memory_order_release);
}

grpc::ServerGenericBidiReactor* StreamedService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  made_.load(std::memory_order_acquire);
  const auto starter = starters_.find(context->method());
  if (starter != starters_.end()) return starter->second(context);
  return StartRawCall<UnknownCall>(environment_, context);
}

}  // namespace attention::server
