// Calls whose tensors lie in memory that the client shares.
#include "tests/support/shared_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "attention/v1/attention.grpc.pb.h"
#include "server/auth/token_file.h"
#include "tests/support/attention_case.h"
#include "tests/support/certificates.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/stream_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using test::Random;
using v1::ComputeAttentionRequest;
using v1::ComputeAttentionResponse;

constexpr size_t kAlignment = 64;

// Hands out places of a region, one after the other.
class Places {
 public:
  Places(const MappedMemory& memory, std::string id)
      : memory_(memory), id_(std::move(id)) {}

  v1::SharedMemory Take(size_t bytes) {
    v1::SharedMemory place;
    place.set_region(id_);
    place.set_offset(static_cast<int64_t>(next_));
    next_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    EXPECT_LE(next_, memory_.bytes().size());
    return place;
  }

  // Puts the elements there in place of `data`.
  void Move(v1::Tensor* tensor) {
    const std::string data = tensor->data();
    tensor->clear_data();
    *tensor->mutable_shared_memory() = Take(data.size());
    std::memcpy(memory_.bytes().data() + tensor->shared_memory().offset(),
                data.data(), data.size());
  }

  // The other way round.
  void Fetch(size_t bytes, v1::Tensor* tensor) {
    tensor->set_data(memory_.bytes().data() + tensor->shared_memory().offset(),
                     bytes);
    tensor->clear_shared_memory();
  }

 private:
  const MappedMemory& memory_;
  const std::string id_;
  size_t next_ = 0;
};

std::vector<v1::Tensor*> TensorsOf(ComputeAttentionRequest& request) {
  std::vector<v1::Tensor*> tensors = {
      request.mutable_query(), request.mutable_key(), request.mutable_value()};
  if (request.has_mask()) tensors.push_back(request.mutable_mask());
  if (request.has_past_key()) tensors.push_back(request.mutable_past_key());
  if (request.has_past_value()) tensors.push_back(request.mutable_past_value());
  if (request.has_indices()) tensors.push_back(request.mutable_indices());
  if (request.has_sinks()) tensors.push_back(request.mutable_sinks());
  return tensors;
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  void Start(server::Options options = TestServer::DefaultOptions()) {
    options.shared_memory = address_;
    server_ = std::make_unique<TestServer>(options);
    channel_ = server_->Channel(Transport::kLoopback);
    regions_ = std::make_unique<RegionClient>(address_);
  }

  grpc::Status Compute(const ComputeAttentionRequest& request,
                       ComputeAttentionResponse* response,
                       const std::string& token = "") {
    grpc::ClientContext context;
    if (!token.empty()) {
      context.AddMetadata("authorization", "Bearer " + token);
    }
    return v1::AttentionService::NewStub(channel_)->ComputeAttention(
        &context, request, response);
  }

  void ExpectInvalid(const ComputeAttentionRequest& request,
                     const std::string& field, const std::string& description) {
    ComputeAttentionResponse response;
    const grpc::Status status = Compute(request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const Details details = DetailsOf(status);
    EXPECT_EQ(details.field, field);
    EXPECT_EQ(details.description, description);
  }

  void ExpectUnknown(const grpc::Status& status, const std::string& field) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(status.error_message(),
              field +
                  ": got a region that is not known here, wanted one that the "
                  "caller has registered and that is still there");
    EXPECT_EQ(DetailsOf(status).reason, "REGION_UNKNOWN");
    EXPECT_EQ(DetailsOf(status).resource, field);
  }

  // With tensors shared or sent at random, inputs and outputs alike, the answer
  // has the same bits.
  void ExpectSameBits(const ComputeAttentionRequest& sent, uint64_t seed) {
    Random random(seed);
    ComputeAttentionResponse wanted;
    ASSERT_TRUE(Compute(sent, &wanted).ok());
    const MappedMemory memory(sent.ByteSizeLong() + wanted.ByteSizeLong() +
                              16 * kAlignment);
    Places places(memory, regions_->Share(memory));
    ComputeAttentionRequest shared = sent;
    for (v1::Tensor* tensor : TensorsOf(shared)) {
      if (random.Chance(0.7)) places.Move(tensor);
    }
    v1::OutputMemory& outputs = *shared.mutable_outputs();
    const auto place = [&](bool has, const v1::Tensor& tensor,
                           auto mutable_it) {
      if (has && random.Chance(0.7)) {
        *(outputs.*mutable_it)() = places.Take(tensor.data().size());
      }
    };
    using Outputs = v1::OutputMemory;
    place(wanted.has_output(), wanted.output(), &Outputs::mutable_output);
    place(wanted.has_log_sum_exp(), wanted.log_sum_exp(),
          &Outputs::mutable_log_sum_exp);
    place(wanted.has_scores(), wanted.scores(), &Outputs::mutable_scores);
    place(wanted.has_present_key(), wanted.present_key(),
          &Outputs::mutable_present_key);
    place(wanted.has_present_value(), wanted.present_value(),
          &Outputs::mutable_present_value);
    ComputeAttentionResponse got;
    const grpc::Status status = Compute(shared, &got);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const auto fetch = [&](bool given, const v1::SharedMemory& place,
                           const v1::Tensor& tensor, auto mutable_it) {
      if (!given) return;
      EXPECT_EQ((got.*mutable_it)()->shared_memory().SerializeAsString(),
                place.SerializeAsString());
      places.Fetch(tensor.data().size(), (got.*mutable_it)());
    };
    using Response = ComputeAttentionResponse;
    fetch(outputs.has_output(), outputs.output(), wanted.output(),
          &Response::mutable_output);
    fetch(outputs.has_log_sum_exp(), outputs.log_sum_exp(),
          wanted.log_sum_exp(), &Response::mutable_log_sum_exp);
    fetch(outputs.has_scores(), outputs.scores(), wanted.scores(),
          &Response::mutable_scores);
    fetch(outputs.has_present_key(), outputs.present_key(),
          wanted.present_key(), &Response::mutable_present_key);
    fetch(outputs.has_present_value(), outputs.present_value(),
          wanted.present_value(), &Response::mutable_present_value);
    got.clear_timing();
    wanted.clear_timing();
    EXPECT_TRUE(got.SerializeAsString() == wanted.SerializeAsString());
  }

  // A request of SmallRequest()'s tensors, all of them shared.
  ComputeAttentionRequest SharedRequest(const MappedMemory& memory,
                                        const std::string& id) {
    ComputeAttentionRequest request = SmallRequest();
    Places places(memory, id);
    for (v1::Tensor* tensor : TensorsOf(request)) places.Move(tensor);
    return request;
  }

  const TestFolder folder_;
  const std::string address_ = "unix:" + folder_.Path("regions");
  std::unique_ptr<TestServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<RegionClient> regions_;
};

TEST_F(SharedMemoryTest, IsOfferedWhereItIsOn) {
  Start();
  v1::GetCapabilitiesResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(v1::AttentionService::NewStub(channel_)
                  ->GetCapabilities(&context, {}, &response)
                  .ok());
  EXPECT_EQ(response.shared_memory(), address_);

  TestServer without;
  grpc::ClientContext other;
  ASSERT_TRUE(
      v1::AttentionService::NewStub(without.Channel(Transport::kLoopback))
          ->GetCapabilities(&other, {}, &response)
          .ok());
  EXPECT_EQ(response.shared_memory(), "");
}

TEST_F(SharedMemoryTest, AnyRequestHasTheSameBits) {
  Start();
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Random random(seed);
    test::AttentionCase c = test::RandomCase(random, {.strided = false});
    SCOPED_TRACE(c.ToString());
    ExpectSameBits(RequestOf(c), seed);
    if (HasFailure()) return;
  }
}

// Of several MiB: computed and copied by jobs, in pieces.
TEST_F(SharedMemoryTest, LargeRequestsHaveTheSameBits) {
  Start();
  ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 1500, 16}, 1);
  *request.mutable_key() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 3000, 16}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 3000, 16}, 3);
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {1500, 3000}, 4);
  for (uint64_t seed = 1; seed <= 8; ++seed) ExpectSameBits(request, seed);
}

// What is shared is no part of the message, nor of the memory for calls.
TEST_F(SharedMemoryTest, LimitsOfMessagesAreOfMessages) {
  server::Options options = TestServer::DefaultOptions();
  options.max_request_bytes = 1024;
  options.max_response_bytes = 1024;
  options.max_inflight_bytes = 3 << 20;
  Start(options);
  ComputeAttentionRequest request;
  for (v1::Tensor* tensor : {request.mutable_query(), request.mutable_key(),
                             request.mutable_value()}) {
    *tensor = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 4, 1000, 64}, 1);
  }
  const MappedMemory memory(size_t{4} << 20);
  Places places(memory, regions_->Share(memory));
  for (v1::Tensor* tensor : TensorsOf(request)) places.Move(tensor);
  ComputeAttentionResponse response;
  grpc::Status status = Compute(request, &response);
  EXPECT_EQ(DetailsOf(status).reason, "ANSWER_TOO_LARGE");
  *request.mutable_outputs()->mutable_output() =
      places.Take(4 * 1000 * 64 * sizeof(float));
  status = Compute(request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(SharedMemoryTest, PlacesAreChecked) {
  Start();
  const MappedMemory memory(4096);
  const std::string id = regions_->Share(memory);
  const ComputeAttentionRequest good = SharedRequest(memory, id);
  ComputeAttentionResponse response;
  ASSERT_TRUE(Compute(good, &response).ok());

  const auto with_key_at = [&](int64_t offset) {
    ComputeAttentionRequest request = good;
    request.mutable_key()->mutable_shared_memory()->set_offset(offset);
    return request;
  };
  EXPECT_TRUE(Compute(with_key_at(4096 - 80), &response).ok());
  for (int64_t offset : {int64_t{4096 - 76}, int64_t{2}, int64_t{-4},
                         int64_t{-80}, std::numeric_limits<int64_t>::max() - 3,
                         std::numeric_limits<int64_t>::min()}) {
    ExpectInvalid(
        with_key_at(offset), "key.shared_memory.offset",
        absl::StrCat("got ", offset,
                     ", wanted 0 to 4016 and a multiple of 4 for 80 bytes of "
                     "FLOAT32 in a region of 4096"));
  }

  ComputeAttentionRequest request = good;
  request.mutable_value()->set_shape(3, 1000);
  ExpectInvalid(request, "value.shared_memory.offset",
                "got a region of 4096 bytes, wanted at least the 20000 of the "
                "elements");
  request = good;
  request.mutable_value()->set_shape(0, int64_t{1} << 31);
  request.mutable_value()->set_shape(1, int64_t{1} << 31);
  ExpectInvalid(request, "value.shape",
                "got (2147483648, 2147483648, 5, 2), wanted fewer than 2^60 "
                "elements");

  request = good;
  request.mutable_query()->mutable_shared_memory()->set_region("short");
  ExpectInvalid(request, "query.shared_memory.region",
                "got 5 bytes, wanted the 16 of a region's id");
  request = good;
  request.mutable_query()->set_data("x");
  ExpectInvalid(request, "query",
                "got both shared_memory and data, wanted one");
  request = good;
  request.mutable_query()->add_float_values(1);
  ExpectInvalid(request, "query",
                "got both shared_memory and float_values, wanted one");
  request = good;
  request.mutable_query()->clear_data_type();
  ExpectInvalid(request, "query.data_type",
                "missing, wanted the type of the elements in shared_memory");
}

TEST_F(SharedMemoryTest, PlacesOfOutputsAreChecked) {
  Start();
  const MappedMemory memory(4096);
  const std::string id = regions_->Share(memory);
  ComputeAttentionRequest request = SmallRequest();
  v1::SharedMemory& output = *request.mutable_outputs()->mutable_output();
  output.set_region(id);
  ComputeAttentionResponse response;
  // Shape (1, 2, 3, 2).
  output.set_offset(4096 - 48);
  EXPECT_TRUE(Compute(request, &response).ok());
  output.set_offset(4096 - 44);
  ExpectInvalid(request, "outputs.output.offset",
                "got 4052, wanted 0 to 4048 and a multiple of 4 for 48 bytes "
                "of FLOAT32 in a region of 4096");
  output.set_region(std::string(16, 'x'));
  ExpectUnknown(Compute(request, &response), "outputs.output.region");
  output.set_region(id);
  output.set_offset(0);
  *request.mutable_outputs()->mutable_scores() = output;
  ExpectInvalid(request, "outputs.scores",
                "got it, wanted none: options do not ask for it");
  const std::vector<float> query = FloatsOf(request.query());
  *request.mutable_query() = FloatTensor({1, 2, 3, 4}, query);
  ExpectInvalid(request, "outputs",
                "got it with float_values in query, whose answer has them too; "
                "wanted query in data or shared_memory");
}

TEST_F(SharedMemoryTest, MasksAreChecked) {
  Start();
  const MappedMemory memory(4096);
  const std::string id = regions_->Share(memory);
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {3, 5}, 1);
  Places(memory, id).Move(request.mutable_mask());
  ComputeAttentionResponse response;
  EXPECT_TRUE(Compute(request, &response).ok());
  memory.bytes()[7] = std::byte{2};
  ExpectInvalid(request, "mask.data", "got byte 2 at element 7, wanted 0 or 1");
}

TEST_F(SharedMemoryTest, MasksOfBitsAreUnpacked) {
  Start();
  const MappedMemory memory(4096);
  const std::string id = regions_->Share(memory);
  ComputeAttentionRequest request = SmallRequest();
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {3, 5}, 1);
  const ComputeAttentionResponse wanted = KernelAnswer(request);
  *request.mutable_mask() = Packed(request.mask());
  Places(memory, id).Move(request.mutable_mask());
  ComputeAttentionResponse response;
  EXPECT_TRUE(Compute(request, &response).ok());
  EXPECT_TRUE(response.output().data() == wanted.output().data());
  request.mutable_mask()->mutable_shared_memory()->set_offset(4095);
  EXPECT_EQ(Compute(request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, StreamsTakeNone) {
  Start();
  const MappedMemory memory(4096);
  const std::string id = regions_->Share(memory);
  const ComputeAttentionRequest shared = SharedRequest(memory, id);
  const StreamOf stream(SmallRequest());
  const auto expect_invalid =
      [&](const std::vector<v1::StreamAttentionRequest>& messages,
          const std::string& field, const std::string& description) {
        const StreamResult result = SendStream(channel_, messages);
        EXPECT_EQ(result.status.error_code(),
                  grpc::StatusCode::INVALID_ARGUMENT);
        EXPECT_EQ(DetailsOf(result.status).field, field);
        EXPECT_EQ(DetailsOf(result.status).description, description);
      };
  const std::string none = "got one, wanted none: only with ComputeAttention";
  v1::StreamAttentionRequest header = stream.Header();
  *header.mutable_header()->mutable_query() = shared.query();
  expect_invalid({header}, "header.query.shared_memory", none);
  header = stream.Header();
  *header.mutable_header()->mutable_key() = shared.key();
  expect_invalid({header}, "header.key.shared_memory", none);
  header = stream.Header();
  header.mutable_header()->mutable_outputs();
  expect_invalid({header}, "header.outputs",
                 "got it, wanted none: not with StreamAttention");
  v1::StreamAttentionRequest chunk = stream.Chunk(0, 5);
  *chunk.mutable_chunk()->mutable_value() = shared.value();
  expect_invalid({stream.Header(), chunk}, "chunk.value.shared_memory", none);
}

TEST_F(SharedMemoryTest, RegionsGoWithTheirConnection) {
  Start();
  const MappedMemory memory(4096);
  const ComputeAttentionRequest request =
      SharedRequest(memory, regions_->Share(memory));
  ComputeAttentionResponse response;
  EXPECT_TRUE(Compute(request, &response).ok());
  regions_.reset();
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().regions().bytes() == 0; }));
  ExpectUnknown(Compute(request, &response), "query.shared_memory.region");
}

TEST_F(SharedMemoryTest, WithoutTheFlagNoneIsKnown) {
  TestServer server;
  channel_ = server.Channel(Transport::kLoopback);
  const MappedMemory memory(4096);
  ComputeAttentionResponse response;
  ExpectUnknown(Compute(SharedRequest(memory, std::string(16, 'x')), &response),
                "query.shared_memory.region");
  channel_.reset();
}

// A client that dies: its calls' memory is there until they have ended.
TEST_F(SharedMemoryTest, RunningCallsKeepTheirMemory) {
  server::Options options = TestServer::DefaultOptions();
  // So that calls beside a long one are not refused.
  options.max_queue = absl::Hours(24);
  options.default_deadline = absl::Hours(24);
  Start(options);
  {
    std::optional<MappedMemory> memory(std::in_place, size_t{32} << 20);
    ComputeAttentionRequest request = LongCall::Request();
    Places places(*memory, regions_->Share(*memory));
    for (v1::Tensor* tensor : TensorsOf(request)) places.Move(tensor);
    *request.mutable_outputs()->mutable_output() = places.Take(size_t{4} << 20);
    LongCall call(channel_, request);
    ASSERT_TRUE(
        WaitUntil([&] { return server_->server().running_calls() == 1; }));
    ComputeAttentionRequest small = SmallRequest();
    small.mutable_query()->clear_data();
    *small.mutable_query()->mutable_shared_memory() =
        request.query().shared_memory();
    ComputeAttentionResponse response;
    EXPECT_TRUE(Compute(small, &response).ok());
    regions_.reset();
    memory.reset();
    // Forgotten for others, and kept for the call.
    EXPECT_TRUE(WaitUntil([&] {
      return Compute(small, &response).error_code() ==
             grpc::StatusCode::NOT_FOUND;
    }));
    EXPECT_EQ(server_->server().regions().bytes(), 32 << 20);
    EXPECT_FALSE(call.ended());
  }
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().regions().bytes() == 0; }));
}

TEST_F(SharedMemoryTest, RegionsOfOtherTenantsAreUnknown) {
  const auto line = [](const std::string& token, const std::string& tenant) {
    const server::TokenHash hash = server::HashOf(token);
    return absl::StrCat(
        absl::BytesToHexString(absl::string_view(
            reinterpret_cast<const char*>(hash.data()), hash.size())),
        " ", tenant, "\n");
  };
  server::Options options = TestServer::DefaultOptions();
  options.tokens = folder_.Write(
      "tokens", line("t-a", "a") + line("t-a2", "a") + line("t-b", "b"));
  Start(options);
  const MappedMemory memory(4096);
  const ComputeAttentionRequest request =
      SharedRequest(memory, regions_->Share(memory, "t-a"));
  ComputeAttentionResponse response;
  EXPECT_TRUE(Compute(request, &response, "t-a").ok());
  EXPECT_TRUE(Compute(request, &response, "t-a2").ok());
  const grpc::Status others = Compute(request, &response, "t-b");
  ExpectUnknown(others, "query.shared_memory.region");
  const grpc::Status nobodys =
      Compute(SharedRequest(memory, std::string(16, 'x')), &response, "t-b");
  EXPECT_EQ(others.error_details(), nobodys.error_details());
}

// Whatever a client writes into its memory while calls use it spoils nothing
// but these calls' numbers.
TEST_F(SharedMemoryTest, MemoryThatChangesSpoilsNumbersOnly) {
  Start();
  const MappedMemory memory(size_t{1} << 20);
  const std::string id = regions_->Share(memory);
  const ComputeAttentionRequest sent = SmallRequest();
  ComputeAttentionResponse wanted;
  ASSERT_TRUE(Compute(sent, &wanted).ok());
  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    Random random(1);
    while (!stop) {
      // Of all kinds: small numbers, NaN, infinities, bytes that are no bool.
      const auto byte = static_cast<std::byte>(
          random.Pick<int64_t>({0, 1, 2, 0x3f, 0x7f, 0x80, 0xff}));
      const auto begin = static_cast<size_t>(random.Integer(0, (1 << 20) - 64));
      std::memset(memory.bytes().data() + begin, static_cast<int>(byte), 64);
    }
  });
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Random random(seed);
    ComputeAttentionRequest request =
        RequestOf(test::RandomCase(random, {.strided = false}));
    if (request.ByteSizeLong() > 500000) continue;
    Places places(memory, id);
    for (v1::Tensor* tensor : TensorsOf(request)) places.Move(tensor);
    ComputeAttentionResponse response;
    const grpc::Status status = Compute(request, &response);
    if (!status.ok()) {
      // What decides more than numbers is checked.
      const std::string field = DetailsOf(status).field;
      EXPECT_TRUE(field == "mask.data" || field == "indices.data" ||
                  field == "sinks.data")
          << status.error_message();
    }
    // Calls beside it are right.
    if (seed % 10 == 0) {
      ASSERT_TRUE(Compute(sent, &response).ok());
      EXPECT_EQ(response.output().data(), wanted.output().data());
    }
  }
  stop = true;
  scribbler.join();
}

TEST_F(SharedMemoryTest, APathThatIsServedIsRefused) {
  Start();
  server::Options options = TestServer::DefaultOptions();
  options.shared_memory = address_;
  EXPECT_EQ(server::Server::Start(options).status(),
            absl::UnavailableError(
                absl::StrCat("--shared-memory: cannot listen on \"", address_,
                             "\": another process serves it")));
  // Of a server that died.
  const std::string stale = folder_.Path("stale");
  {
    const Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, stale.data(), stale.size());
    ASSERT_EQ(bind(socket.get(), reinterpret_cast<const sockaddr*>(&name),
                   sizeof(name)),
              0);
  }
  options.shared_memory = "unix:" + stale;
  EXPECT_TRUE(server::Server::Start(options).ok());
}

}  // namespace
}  // namespace attention::testing
