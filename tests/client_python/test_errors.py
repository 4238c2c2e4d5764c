"""How calls fail."""

import datetime
import threading

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

import attention_client
from attention_client import AttentionError, Client, FieldViolation
from attention_client import attention_pb2 as pb

EYE = np.eye(2, dtype=np.float32)


def abort(code, message, details=None):
    """An answer that is a status; `details` is the trailer's bytes."""

    def answer(request, context):
        if details is not None:
            context.set_trailing_metadata(
                (("grpc-status-details-bin", details),)
            )
        context.abort(code, message)

    return answer


def packed(code, message, *details):
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        any_message = any_pb2.Any()
        any_message.Pack(detail)
        status.details.append(any_message)
    return status.SerializeToString()


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code.name != "OK"]
)
def test_each_code_has_its_exception(server, fake_client, code):
    server.answers["ComputeAttention"] = abort(code, "so it is")
    with pytest.raises(AttentionError) as caught:
        fake_client.compute(EYE, EYE, EYE)
    error = caught.value
    expected = "".join(part.capitalize() for part in code.name.split("_"))
    own_class = getattr(attention_client, expected, AttentionError)
    assert type(error) is own_class
    assert error.code is code
    assert error.message == "so it is"
    assert error.field_violations == ()
    assert error.reason == ""
    assert error.retry_delay is None
    assert str(error) == f"{code.name}: so it is (server {server.address})"


def test_codes_that_only_the_base_class_stands_for():
    without = {
        code.name
        for code in grpc.StatusCode
        if not hasattr(
            attention_client,
            "".join(part.capitalize() for part in code.name.split("_")),
        )
    }
    assert without == {"OK", "UNKNOWN", "DATA_LOSS"}


def test_field_violations_are_carried(server, fake_client):
    code = grpc.StatusCode.INVALID_ARGUMENT
    violations = [
        error_details_pb2.BadRequest.FieldViolation(
            field="key.shape", description="got (3, 8), wanted (3, 4)"
        ),
        error_details_pb2.BadRequest.FieldViolation(
            field="options.softcap", description="got -1, wanted >= 0"
        ),
    ]
    server.answers["ComputeAttention"] = abort(
        code,
        "two",
        packed(
            code,
            "two",
            error_details_pb2.BadRequest(field_violations=violations),
        ),
    )
    with pytest.raises(attention_client.InvalidArgument) as caught:
        fake_client.compute(EYE, EYE, EYE)
    assert caught.value.field_violations == (
        FieldViolation("key.shape", "got (3, 8), wanted (3, 4)"),
        FieldViolation("options.softcap", "got -1, wanted >= 0"),
    )


@pytest.mark.parametrize(
    ("domain", "reason", "metadata"),
    [("attention", "QUEUE_FULL", {"a": "b"}), ("proxy.example", "", {})],
)
def test_the_server_s_reason_is_carried(
    server, fake_client, domain, reason, metadata
):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    info = error_details_pb2.ErrorInfo(
        reason="QUEUE_FULL", domain=domain, metadata={"a": "b"}
    )
    server.answers["ComputeAttention"] = abort(
        code, "busy", packed(code, "busy", info)
    )
    with pytest.raises(attention_client.ResourceExhausted) as caught:
        fake_client.compute(EYE, EYE, EYE)
    assert caught.value.reason == reason
    assert caught.value.metadata == metadata


def test_the_retry_delay_is_carried(server, fake_client):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retry_info = error_details_pb2.RetryInfo()
    retry_info.retry_delay.FromMilliseconds(1500)
    server.answers["ComputeAttention"] = abort(
        code, "busy", packed(code, "busy", retry_info)
    )
    with pytest.raises(attention_client.ResourceExhausted) as caught:
        fake_client.compute(EYE, EYE, EYE)
    assert caught.value.retry_delay == datetime.timedelta(seconds=1.5)


def test_the_client_s_own_limit_is_told_apart(server):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(
            output=pb.Tensor(
                data_type=pb.DATA_TYPE_FLOAT32, shape=[250], data=bytes(1000)
            )
        )
    )
    options = [("grpc.max_receive_message_length", 100)]
    with (
        Client(server.address, channel_options=options) as client,
        pytest.raises(attention_client.ResourceExhausted) as caught,
    ):
        client.compute(EYE, EYE, EYE)
    assert caught.value.reason == "CLIENT_LIMIT"


def test_an_error_may_have_large_trailers(server, fake_client):
    def answer(request, context):
        # Above gRPC's own limits, 8 and 16 KiB.
        context.set_trailing_metadata((("x-large", "x" * 20000),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no")

    server.answers["ComputeAttention"] = answer
    with pytest.raises(attention_client.NotFound, match="no"):
        fake_client.compute(EYE, EYE, EYE)
    options = [
        ("grpc.max_metadata_size", 1000),
        ("grpc.absolute_max_metadata_size", 1000),
    ]
    with (
        Client(server.address, channel_options=options) as client,
        pytest.raises(attention_client.ResourceExhausted) as caught,
    ):
        client.compute(EYE, EYE, EYE)
    assert caught.value.reason == "HEADERS_TOO_LARGE"


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff",
        packed(grpc.StatusCode.INTERNAL, "x", health_pb2.HealthCheckRequest()),
        status_pb2.Status(
            details=[
                any_pb2.Any(
                    type_url="type.googleapis.com/google.rpc.BadRequest",
                    value=b"\xff",
                )
            ]
        ).SerializeToString(),
    ],
    ids=["no status", "unknown detail", "broken detail"],
)
def test_details_that_cannot_be_read_do_not_hide_the_error(
    server, fake_client, details
):
    server.answers["ComputeAttention"] = abort(
        grpc.StatusCode.INVALID_ARGUMENT, "wrong", details
    )
    with pytest.raises(attention_client.InvalidArgument, match="wrong"):
        fake_client.compute(EYE, EYE, EYE)


def test_a_server_that_is_not_there_is_named(tmp_path):
    target = f"unix:{tmp_path}/nobody"
    with (
        Client(target) as client,
        pytest.raises(attention_client.Unavailable) as caught,
    ):
        client.health()
    assert target in str(caught.value)
    assert "connect" in caught.value.message


@pytest.mark.parametrize("per_call", [True, False])
def test_the_timeout_ends_a_call(server, per_call):
    release = threading.Event()

    def answer(request, context):
        release.wait(10)  # So that a lost timeout fails rather than hangs.
        return pb.ComputeAttentionResponse()

    server.answers["ComputeAttention"] = answer
    try:
        with (
            Client(server.address, timeout=60 if per_call else 0.05) as client,
            pytest.raises(attention_client.DeadlineExceeded),
        ):
            client.compute(EYE, EYE, EYE, timeout=0.05 if per_call else None)
    finally:
        release.set()


@pytest.mark.parametrize("timeout", [0, -1, -1e300, float("-inf")])
def test_no_time_is_left(server, timeout):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.query)
    )
    with (
        Client(server.address) as client,
        pytest.raises(attention_client.DeadlineExceeded),
    ):
        client.compute(EYE, EYE, EYE, timeout=timeout)


@pytest.mark.parametrize("timeout", [1e9, 1e15, 1e300, float("inf")])
def test_much_time_is_left(server, timeout):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.query)
    )
    with Client(server.address, timeout=timeout) as client:
        assert client.compute(EYE, EYE, EYE).output.shape == EYE.shape


def test_a_closed_client_refuses_calls(server):
    client = Client(server.address)
    client.close()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.health()


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING"])
def test_health_gives_the_status_of_the_named_service(
    server, fake_client, status
):
    server.answers["Check"] = lambda request, context: (
        health_pb2.HealthCheckResponse(status=status)
    )
    assert fake_client.health("attention.v1.AttentionService") == status
    assert server.request.service == "attention.v1.AttentionService"
    assert fake_client.health() == status
    assert server.request.service == ""
