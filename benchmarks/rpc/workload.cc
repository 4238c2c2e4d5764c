#include "benchmarks/rpc/workload.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::benchmarks {
namespace {

std::vector<int64_t> QueryShape(const Case& shape) {
  return {1, shape.query_heads, shape.queries, shape.head_size};
}

std::vector<int64_t> KeyShape(const Case& shape) {
  return {1, shape.kv_heads, shape.keys, shape.head_size};
}

ConstTensorView ViewOf(const TensorSpan& tensor) {
  ConstTensorView view;
  view.shape.assign(tensor.shape.begin(), tensor.shape.end());
  view.data = tensor.bytes.data();
  return view;
}

AttentionPlan PlanOf(const ComputeRequest& request, bool causal) {
  AttentionOptions options;
  if (causal) options.causal = Causal::kBottomRight;
  AttentionInputs inputs;
  inputs.query = ViewOf(request.query);
  inputs.key = ViewOf(request.key);
  inputs.value = ViewOf(request.value);
  return PlanAttention(inputs, options).value();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedNumbers>> MappedNumbers::Open(
    const std::string& path, size_t count) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return absl::ErrnoToStatus(errno, path);
  const size_t bytes = count * sizeof(float);
  struct stat found = {};
  fstat(file, &found);
  void* const memory =
      found.st_size == static_cast<off_t>(bytes)
          ? mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0)
          : MAP_FAILED;
  close(file);
  if (memory == MAP_FAILED) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": got ", found.st_size, " bytes, wanted ", bytes));
  }
  return std::unique_ptr<MappedNumbers>(
      new MappedNumbers({static_cast<const float*>(memory), count}));
}

MappedNumbers::~MappedNumbers() {
  munmap(const_cast<float*>(numbers_.data()), numbers_.size_bytes());
}

absl::StatusOr<std::unique_ptr<Workload>> Workload::Open(
    const std::string& folder, const Case& shape) {
  const auto open = [&](const char* name, const std::vector<int64_t>& sizes) {
    return MappedNumbers::Open(absl::StrCat(folder, "/", name),
                               ElementCount(sizes).value_or(0));
  };
  auto query = open("query", QueryShape(shape));
  if (!query.ok()) return query.status();
  auto key = open("key", KeyShape(shape));
  if (!key.ok()) return key.status();
  auto value = open("value", KeyShape(shape));
  if (!value.ok()) return value.status();
  return std::unique_ptr<Workload>(new Workload(
      shape, *std::move(query), *std::move(key), *std::move(value)));
}

Workload::Workload(const Case& shape, std::unique_ptr<MappedNumbers> query,
                   std::unique_ptr<MappedNumbers> key,
                   std::unique_ptr<MappedNumbers> value)
    : query_(std::move(query)),
      key_(std::move(key)),
      value_(std::move(value)),
      request_([&] {
        ComputeRequest request;
        request.query =
            TensorSpan::Of<float>(query_->numbers(), QueryShape(shape));
        request.key = TensorSpan::Of<float>(key_->numbers(), KeyShape(shape));
        request.value =
            TensorSpan::Of<float>(value_->numbers(), KeyShape(shape));
        if (shape.causal) request.options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
        return request;
      }()),
      plan_(PlanOf(request_, shape.causal)) {}

}  // namespace attention::benchmarks
