#include "attention/client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <span>
#include <stop_token>
#include <thread>

#include "attention/details/v1/details.pb.h"
#include "tests/client/fake_service.h"

namespace attention {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void SetTensor(const std::vector<float>& values,
               const std::vector<int64_t>& shape, v1::Tensor& message) {
  message.set_data_type(v1::DATA_TYPE_FLOAT32);
  message.mutable_shape()->Assign(shape.begin(), shape.end());
  message.set_data(values.data(), values.size() * sizeof(float));
}

grpc::Status AnswerOne(grpc::ServerContext&, const v1::ComputeAttentionRequest&,
                       v1::ComputeAttentionResponse& response) {
  SetTensor({1}, {1, 1}, *response.mutable_output());
  return grpc::Status::OK;
}

class ClientTest : public ::testing::Test {
 protected:
  ComputeRequest Request() const {
    ComputeRequest request;
    request.query = TensorSpan::Of<float>(values_, {1, 2});
    request.key = TensorSpan::Of<float>(values_, {1, 2});
    request.value = TensorSpan::Of<float>(values_, {1, 2});
    return request;
  }

  const std::vector<float> values_ = {1, 2};
};

TEST_F(ClientTest, SendsEveryField) {
  FakeService service(AnswerOne);
  const std::vector<double> doubles = {5};
  const Tensor own = Tensor::Of<double>(doubles, {1});
  ComputeRequest request = Request();
  request.mask = own;
  request.past_key = own;
  request.past_value = own;
  request.valid_lengths = {1, 2};
  request.query_starts = {3, 4};
  request.key_starts = {5, 6};
  request.options.set_scale(0.5);
  ASSERT_TRUE(Client(service.address()).Compute(request).ok());

  const v1::ComputeAttentionRequest sent = service.requests().at(0);
  EXPECT_EQ(sent.query().data_type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(sent.query().shape(), ElementsAre(1, 2));
  EXPECT_EQ(sent.query().data(),
            std::string(reinterpret_cast<const char*>(values_.data()), 8));
  EXPECT_EQ(sent.mask().data_type(), v1::DATA_TYPE_FLOAT64);
  EXPECT_EQ(sent.mask().data().size(), 8);
  EXPECT_TRUE(sent.has_past_key());
  EXPECT_TRUE(sent.has_past_value());
  EXPECT_THAT(sent.valid_lengths(), ElementsAre(1, 2));
  EXPECT_THAT(sent.query_starts(), ElementsAre(3, 4));
  EXPECT_THAT(sent.key_starts(), ElementsAre(5, 6));
  EXPECT_EQ(sent.options().scale(), 0.5);
}

TEST_F(ClientTest, AnnouncesTheSizeOfTheMessage) {
  FakeService service(AnswerOne);
  const Client client(service.address());
  ASSERT_TRUE(client.Compute(Request()).ok());
  ComputeRequest longer = Request();
  const std::vector<float> row(1000);
  longer.key = TensorSpan::Of<float>(row, {500, 2});
  longer.valid_lengths = {300};
  ASSERT_TRUE(client.Compute(longer).ok());
  const auto requests = service.requests();
  // Longer than the tensors alone.
  EXPECT_GT(requests.at(1).ByteSizeLong(), 4000);
  EXPECT_THAT(service.announced_bytes(),
              ElementsAre(absl::StrCat(requests.at(0).ByteSizeLong()),
                          absl::StrCat(requests.at(1).ByteSizeLong())));
}

TEST_F(ClientTest, ReturnsEveryField) {
  FakeService service([](auto&, const auto& request, auto& response) {
    EXPECT_FALSE(request.has_mask());
    SetTensor({1, 2}, {1, 2}, *response.mutable_output());
    SetTensor({3}, {1}, *response.mutable_log_sum_exp());
    SetTensor({4}, {1, 1, 1, 1}, *response.mutable_scores());
    SetTensor({5}, {1, 1, 1, 1}, *response.mutable_present_key());
    SetTensor({}, {1, 1, 0, 1}, *response.mutable_present_value());
    response.mutable_timing()->set_compute_us(9);
    return grpc::Status::OK;
  });
  const auto result = Client(service.address()).Compute(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->output.elements<float>(), ElementsAre(1, 2));
  EXPECT_THAT(result->output.shape(), ElementsAre(1, 2));
  EXPECT_THAT(result->log_sum_exp->elements<float>(), ElementsAre(3));
  EXPECT_THAT(result->scores->elements<float>(), ElementsAre(4));
  EXPECT_THAT(result->present_key->elements<float>(), ElementsAre(5));
  EXPECT_THAT(result->present_value->shape(), ElementsAre(1, 1, 0, 1));
  EXPECT_EQ(result->timing.compute_us(), 9);
}

TEST_F(ClientTest, WhatWasNotAskedForIsAbsent) {
  FakeService service(AnswerOne);
  const auto result = Client(service.address()).Compute(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->log_sum_exp);
  EXPECT_FALSE(result->scores);
  EXPECT_FALSE(result->present_key);
  EXPECT_FALSE(result->present_value);
}

TEST_F(ClientTest, WorksOverAChannelThatExists) {
  FakeService service(AnswerOne);
  const Client client(service.server().InProcessChannel({}));
  EXPECT_TRUE(client.Compute(Request()).ok());
}

TEST_F(ClientTest, TellsWhichFieldIsWrong) {
  FakeService service([](auto&, const auto&, auto&) {
    details::v1::BadRequest bad;
    bad.add_field_violations()->set_field("key.shape");
    details::v1::Status details;
    details.add_details()->set_type_url(
        "type.googleapis.com/google.rpc.BadRequest");
    details.mutable_details(0)->set_value(bad.SerializeAsString());
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "wrong",
                        details.SerializeAsString());
  });
  const auto result = Client(service.address()).Compute(Request());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(result.status().message(), "wrong");
  ASSERT_EQ(FieldViolations(result.status()).size(), 1);
  EXPECT_EQ(FieldViolations(result.status())[0].field, "key.shape");
}

TEST_F(ClientTest, DeadlineEndsTheCallOnBothSides) {
  std::promise<bool> cancelled;
  FakeService service([&](grpc::ServerContext& context, const auto&, auto&) {
    while (!context.IsCancelled()) std::this_thread::yield();
    cancelled.set_value(true);
    return grpc::Status::OK;
  });
  const auto result =
      Client(service.address())
          .Compute(Request(), {.timeout = absl::Milliseconds(50)});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(cancelled.get_future().get());
}

TEST_F(ClientTest, UnreachableServerIsUnavailable) {
  const std::string nowhere =
      absl::StrCat("unix:", ::testing::TempDir(), "/no-such-socket");
  const Client client(nowhere);
  EXPECT_EQ(client.Compute(Request()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.CheckHealth().status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, AnswersAboveFourMegabytesArrive) {
  constexpr int64_t kCount = 2 << 20;
  const auto handler = [](auto&, const auto&, auto& response) {
    SetTensor(std::vector<float>(kCount), {kCount}, *response.mutable_output());
    return grpc::Status::OK;
  };
  FakeService service(handler);
  const auto result = Client(service.address()).Compute(Request());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->output.size(), kCount);

  ClientOptions options;
  options.max_receive_bytes = 1 << 20;
  const absl::Status status =
      Client(service.address(), options).Compute(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  // Not the server's limit.
  EXPECT_EQ(ErrorReason(status), "CLIENT_LIMIT");
}

// Above gRPC's own limit, 8 KiB.
TEST_F(ClientTest, AnErrorMayHaveLargeTrailers) {
  FakeService service([](auto& context, const auto&, auto&) {
    context.AddTrailingMetadata("x-large", std::string(20000, 'x'));
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no");
  });
  EXPECT_EQ(Client(service.address()).Compute(Request()).status(),
            absl::NotFoundError("no"));

  ClientOptions options;
  options.arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 1000);
  const absl::Status status =
      Client(service.address(), options).Compute(Request()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(status), "HEADERS_TOO_LARGE");
}

TEST_F(ClientTest, MoreThanAMessageHoldsIsRefusedUnsent) {
  FakeService service(AnswerOne);
  ComputeRequest request = Request();
  // Never read: only its length counts.
  request.key.bytes = {request.key.bytes.data(), size_t{1} << 31};
  const auto result = Client(service.address()).Compute(request);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("2 GiB"));
  EXPECT_TRUE(service.requests().empty());
}

TEST_F(ClientTest, MalformedAnswersAreInternal) {
  FakeService service([](auto&, const auto&, auto& response) {
    SetTensor({1}, {1, 1}, *response.mutable_output());
    SetTensor({1}, {2}, *response.mutable_scores());
    return grpc::Status::OK;
  });
  const auto result = Client(service.address()).Compute(Request());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("scores"));
}

TEST_F(ClientTest, FillsTheCallersMemory) {
  FakeService service([](auto&, const auto&, auto& response) {
    SetTensor({3, 4}, {1, 2}, *response.mutable_output());
    return grpc::Status::OK;
  });
  std::vector<float> output(2);
  ComputeRequest request = Request();
  request.outputs.output = std::as_writable_bytes(std::span(output));
  const Client client(service.address());
  const auto result = client.Compute(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(output, ElementsAre(3, 4));
  EXPECT_EQ(result->output.elements<float>().data(), output.data());

  output = {0, 0};
  ASSERT_TRUE(client.ComputeAsync(request).get().ok());
  EXPECT_THAT(output, ElementsAre(3, 4));
}

TEST_F(ClientTest, AsynchronousCallsAreMadeAtOnce) {
  std::promise<void> both;
  std::atomic<int> inside{0};
  const std::shared_future<void> met = both.get_future().share();
  // Neither is answered before both have come.
  FakeService service([&](auto&, const auto& request, auto& response) {
    if (++inside == 2) both.set_value();
    met.wait();
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  });
  // The client need not stay.
  auto first = Client(service.address()).ComputeAsync(Request());
  auto second = Client(service.address()).ComputeAsync(Request());
  for (auto* result : {&first, &second}) {
    const auto answer = result->get();
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_THAT(answer->output.elements<float>(), ElementsAre(1, 2));
  }
}

TEST_F(ClientTest, AsynchronousCallsCallBackOnce) {
  FakeService service(AnswerOne);
  const Client client(service.address());
  // Shared: the callback may still be inside it when the wait is over.
  const auto answered =
      std::make_shared<std::promise<absl::StatusOr<ComputeResult>>>();
  client.ComputeAsync(Request(), {}, [answered](auto result) {
    answered->set_value(std::move(result));  // Throws the second time.
  });
  EXPECT_TRUE(answered->get_future().get().ok());
}

TEST_F(ClientTest, AsynchronousCallsTellErrors) {
  FakeService service([](auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  EXPECT_EQ(Client(service.address()).ComputeAsync(Request()).get().status(),
            absl::UnavailableError("draining"));
  EXPECT_EQ(service.announced_bytes().at(0),
            absl::StrCat(service.requests().at(0).ByteSizeLong()));
  // Those found before anything is sent too.
  ClientOptions no_file;
  no_file.tls_ca = "/no/such/file";
  EXPECT_EQ(Client(service.address(), no_file)
                .ComputeAsync(Request())
                .get()
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  ComputeRequest request = Request();
  request.key.bytes = {request.key.bytes.data(), size_t{1} << 31};
  EXPECT_EQ(
      Client(service.address()).ComputeAsync(request).get().status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, StoppingEndsTheCallOnBothSides) {
  for (const bool blocking : {true, false}) {
    std::promise<void> begun;
    std::promise<bool> cancelled;
    FakeService service([&](grpc::ServerContext& context, const auto&, auto&) {
      begun.set_value();
      while (!context.IsCancelled()) std::this_thread::yield();
      cancelled.set_value(true);
      return grpc::Status::OK;
    });
    const Client client(service.address());
    std::stop_source stop;
    const CallOptions options = {.stop = stop.get_token()};
    auto result =
        blocking
            ? std::async(std::launch::async,
                         [&] { return client.Compute(Request(), options); })
            : client.ComputeAsync(Request(), options);
    begun.get_future().wait();
    stop.request_stop();
    EXPECT_EQ(result.get().status().code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(cancelled.get_future().get());
  }
}

TEST_F(ClientTest, AnInterruptedCallEndsOnBothSides) {
  std::atomic<bool> begun = false;
  std::promise<bool> cancelled;
  FakeService service([&](grpc::ServerContext& context, const auto&, auto&) {
    begun = true;
    while (!context.IsCancelled()) std::this_thread::yield();
    cancelled.set_value(true);
    return grpc::Status::OK;
  });
  const auto caller = std::this_thread::get_id();
  const CallOptions options = {.interrupted = [&] {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    return begun.load();
  }};
  EXPECT_EQ(
      Client(service.address()).Compute(Request(), options).status().code(),
      absl::StatusCode::kCancelled);
  EXPECT_TRUE(cancelled.get_future().get());
}

TEST_F(ClientTest, GetsCapabilities) {
  FakeService service;
  const auto answer = Client(service.address()).GetCapabilities();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->threads(), 7);
}

TEST_F(ClientTest, ChecksHealth) {
  FakeService service;
  const Client client(service.address());
  const std::string name = "attention.v1.AttentionService";
  auto& health = *service.server().GetHealthCheckService();
  health.SetServingStatus(name, true);
  EXPECT_EQ(client.CheckHealth().value(), Health::kServing);
  EXPECT_EQ(client.CheckHealth(name).value(), Health::kServing);
  EXPECT_EQ(client.CheckHealth("no.such.Service").status().code(),
            absl::StatusCode::kNotFound);
  health.SetServingStatus(name, false);
  EXPECT_EQ(client.CheckHealth(name).value(), Health::kNotServing);
}

TEST_F(ClientTest, ThreadsShareOneClient) {
  FakeService service([](auto&, const auto& request, auto& response) {
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  });
  const Client client(service.address());
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&client, i] {
      const std::vector<float> value = {static_cast<float>(i)};
      ComputeRequest request;
      request.query = TensorSpan::Of<float>(value, {1, 1});
      for (int call = 0; call < 10; ++call) {
        const auto result = client.Compute(request);
        ASSERT_TRUE(result.ok()) << result.status();
        EXPECT_THAT(result->output.elements<float>(), ElementsAre(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace attention
