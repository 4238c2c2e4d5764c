#include "server/rpc/inference_service.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "inference/inference.pb.h"
#include "server/inference/model.h"
#include "server/rpc/infer_call.h"
#include "server/rpc/infer_stream_call.h"
#include "server/rpc/unary_call.h"
#include "server/status.h"
#include "server/version.h"

namespace attention::server {
namespace {

std::string Path(absl::string_view method) {
  return absl::StrCat("/inference.GRPCInferenceService/", method);
}

// All but inferences count as one method.
constexpr RawMethod kHealthMethod = {"Inference", Access::kHealth};
constexpr RawMethod kMethod = {"Inference", Access::kTenants};
constexpr RawMethod kMemoryMethod = {"Inference", Access::kTenantsHere};

// Serves `method` by an answer that is always the same.
template <typename Request, typename Response>
void AddConstant(StreamedService& service, absl::string_view method,
                 Response response) {
  AddUnary<Request>(service, Path(method), kMethod,
                    [response = std::move(response)](const Request&)
                        -> absl::StatusOr<Response> { return response; });
}

// The same for those of the model.
template <typename Request, typename Response>
void AddOfModel(StreamedService& service, absl::string_view method,
                Response response) {
  AddUnary<Request>(service, Path(method), kMethod,
                    [response = std::move(response)](
                        const Request& request) -> absl::StatusOr<Response> {
                      absl::Status status =
                          CheckModel(request.name(), request.version());
                      if (!status.ok()) return status;
                      return response;
                    });
}

}  // namespace

void InferenceService::AddTo(StreamedService& service) {
  AddHealth(service);
  AddDescriptions(service);
  AddSharedMemory(service);
  service.Add(
      Path("ModelInfer"), [this](grpc::GenericCallbackServerContext* context) {
        return StartInferCall(environment_, {statistics_, regions_}, context);
      });
  service.Add(Path("ModelStreamInfer"),
              [this](grpc::GenericCallbackServerContext* context) {
                return StartInferStreamCall(environment_,
                                            {statistics_, regions_}, context);
              });
}

void InferenceService::AddHealth(StreamedService& service) {
  AddUnary<inference::ServerLiveRequest>(
      service, Path("ServerLive"), kHealthMethod,
      [](const inference::ServerLiveRequest&)
          -> absl::StatusOr<inference::ServerLiveResponse> {
        inference::ServerLiveResponse response;
        response.set_live(true);
        return response;
      });
  AddUnary<inference::ServerReadyRequest>(
      service, Path("ServerReady"), kHealthMethod,
      [this](const inference::ServerReadyRequest&)
          -> absl::StatusOr<inference::ServerReadyResponse> {
        inference::ServerReadyResponse response;
        response.set_ready(ready_);
        return response;
      });
  AddUnary<inference::ModelReadyRequest>(
      service, Path("ModelReady"), kHealthMethod,
      [this](const inference::ModelReadyRequest& request)
          -> absl::StatusOr<inference::ModelReadyResponse> {
        absl::Status status = CheckModel(request.name(), request.version());
        if (!status.ok()) return status;
        inference::ModelReadyResponse response;
        response.set_ready(ready_);
        return response;
      });
}

void InferenceService::AddDescriptions(StreamedService& service) {
  inference::ServerMetadataResponse server;
  server.set_name("attention_server");
  server.set_version(kVersion);
  for (const char* extension : {"binary_tensor_data", "model_configuration",
                                "statistics", "parameters"}) {
    server.add_extensions(extension);
  }
  if (!environment_.options.shared_memory.empty()) {
    server.add_extensions("system_shared_memory");
  }
  AddConstant<inference::ServerMetadataRequest>(service, "ServerMetadata",
                                                server);
  AddOfModel<inference::ModelMetadataRequest>(service, "ModelMetadata",
                                              ModelMetadata());
  inference::ModelConfigResponse config;
  *config.mutable_config() = ModelConfiguration();
  AddOfModel<inference::ModelConfigRequest>(service, "ModelConfig", config);
  AddUnary<inference::ModelStatisticsRequest>(
      service, Path("ModelStatistics"), kMethod,
      [this](const inference::ModelStatisticsRequest& request)
          -> absl::StatusOr<inference::ModelStatisticsResponse> {
        absl::Status status =
            CheckModel(request.name().empty() ? kModelName : request.name(),
                       request.version());
        if (!status.ok()) return status;
        inference::ModelStatisticsResponse response;
        *response.add_model_stats() = statistics_.Get();
        return response;
      });
  AddUnary<inference::RepositoryIndexRequest>(
      service, Path("RepositoryIndex"), kMethod,
      [this](const inference::RepositoryIndexRequest& request)
          -> absl::StatusOr<inference::RepositoryIndexResponse> {
        inference::RepositoryIndexResponse response;
        const bool ready = ready_;
        if (request.ready() && !ready) return response;
        auto* const model = response.add_models();
        model->set_name(std::string(kModelName));
        model->set_version(std::string(kModelVersion));
        model->set_state(ready ? "READY" : "UNAVAILABLE");
        if (!ready) model->set_reason("draining");
        return response;
      });
}

void InferenceService::AddSharedMemory(StreamedService& service) {
  AddUnary<inference::SystemSharedMemoryStatusRequest>(
      service, Path("SystemSharedMemoryStatus"), kMemoryMethod,
      [this](const inference::SystemSharedMemoryStatusRequest& request,
             const Tenant& tenant)
          -> absl::StatusOr<inference::SystemSharedMemoryStatusResponse> {
        inference::SystemSharedMemoryStatusResponse response;
        for (const auto& [name, region] :
             regions_.List(tenant.id, request.name())) {
          auto& status = (*response.mutable_regions())[name];
          status.set_name(name);
          status.set_key(region->key());
          status.set_offset(static_cast<uint64_t>(region->offset()));
          status.set_byte_size(static_cast<uint64_t>(region->bytes()));
        }
        return response;
      });
  AddUnary<inference::SystemSharedMemoryRegisterRequest>(
      service, Path("SystemSharedMemoryRegister"), kMemoryMethod,
      [this](const inference::SystemSharedMemoryRegisterRequest& request,
             const Tenant& tenant)
          -> absl::StatusOr<inference::SystemSharedMemoryRegisterResponse> {
        absl::Status status =
            regions_.Register(tenant.id, request.name(), request.key(),
                              request.offset(), request.byte_size());
        if (!status.ok()) return status;
        return inference::SystemSharedMemoryRegisterResponse();
      });
  AddUnary<inference::SystemSharedMemoryUnregisterRequest>(
      service, Path("SystemSharedMemoryUnregister"), kMemoryMethod,
      [this](const inference::SystemSharedMemoryUnregisterRequest& request,
             const Tenant& tenant)
          -> absl::StatusOr<inference::SystemSharedMemoryUnregisterResponse> {
        regions_.Unregister(tenant.id, request.name());
        return inference::SystemSharedMemoryUnregisterResponse();
      });
  AddConstant<inference::CudaSharedMemoryStatusRequest>(
      service, "CudaSharedMemoryStatus",
      inference::CudaSharedMemoryStatusResponse());
  AddUnary<inference::CudaSharedMemoryRegisterRequest>(
      service, Path("CudaSharedMemoryRegister"), kMethod,
      [](const inference::CudaSharedMemoryRegisterRequest&)
          -> absl::StatusOr<inference::CudaSharedMemoryRegisterResponse> {
        return absl::UnimplementedError("there is no GPU here");
      });
  AddConstant<inference::CudaSharedMemoryUnregisterRequest>(
      service, "CudaSharedMemoryUnregister",
      inference::CudaSharedMemoryUnregisterResponse());
}

}  // namespace attention::server
