"""The cases of tests/vectors, sent as any language would send them."""

import json

import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf import json_format

from attention_client import attention_pb2 as pb
from attention_client import tensors
from attention_client.errors import from_rpc_error
from support.tolerance import assert_close
from vectors import generate

CASES = json.loads(generate.FILE.read_text())["cases"]
TENSORS = ("output", "log_sum_exp", "scores", "present_key", "present_value")


def named(with_key):
    chosen = [case for case in CASES if with_key in case]
    return pytest.mark.parametrize(
        "case", chosen, ids=[case["name"] for case in chosen]
    )


def array(message, field):
    tensor = getattr(message, field)
    if tensor.float_values:
        values = np.array(tensor.float_values, np.float32)
        return values.reshape(tuple(tensor.shape))
    dtype = tensors.numpy_type(tensor.data_type)
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))


@pytest.fixture(scope="module")
def send(server_address):
    with grpc.insecure_channel(server_address) as channel:
        call = channel.unary_unary(
            "/attention.v1.AttentionService/ComputeAttention",
            request_serializer=pb.ComputeAttentionRequest.SerializeToString,
            response_deserializer=pb.ComputeAttentionResponse.FromString,
        )
        yield lambda case: call(
            json_format.ParseDict(
                case["request"], pb.ComputeAttentionRequest()
            ),
            timeout=60,
        )


@named("response")
def test_answer(case, send):
    actual = send(case)
    expected = json_format.ParseDict(
        case["response"], pb.ComputeAttentionResponse()
    )
    double = expected.log_sum_exp.data_type == pb.DATA_TYPE_FLOAT64
    for field in TENSORS:
        assert actual.HasField(field) == expected.HasField(field), field
        if not expected.HasField(field):
            continue
        got, wanted = array(actual, field), array(expected, field)
        assert got.dtype == wanted.dtype, field
        assert bool(getattr(actual, field).float_values) == bool(
            getattr(expected, field).float_values
        ), field
        assert_close(
            got,
            wanted.astype(np.float64),
            computed_in=np.float64 if double else np.float32,
        )


@named("error")
def test_error(case, send):
    with pytest.raises(grpc.RpcError) as caught:
        send(case)
    error = from_rpc_error(caught.value, "")
    assert error.code.name == case["error"]["code"]
    assert [violation.field for violation in error.field_violations] == [
        case["error"]["field"]
    ]


def test_the_file_is_what_the_generator_writes():
    """Answers up to the last bits of a double, which numpy's dot product and
    exponential round as the CPU's instructions have it."""
    anew = json.loads(generate.text())["cases"]
    assert [without_answer(case) for case in CASES] == [
        without_answer(case) for case in anew
    ], "write it anew: PYTHONPATH=tests python -m vectors.generate"
    for case, again in zip(CASES, anew, strict=True):
        if "response" not in case:
            continue
        was, now = (
            json_format.ParseDict(c["response"], pb.ComputeAttentionResponse())
            for c in (case, again)
        )
        for field in TENSORS:
            assert was.HasField(field) == now.HasField(field), field
            if not was.HasField(field):
                continue
            old, new = array(was, field), array(now, field)
            assert (old.dtype, old.shape) == (new.dtype, new.shape), field
            np.testing.assert_allclose(
                old.astype(np.float64),
                new.astype(np.float64),
                rtol=float(ml_dtypes.finfo(old.dtype).eps),
                atol=1e-14,
                err_msg=f"{case['name']}: {field}",
            )


def without_answer(case):
    return {name: value for name, value in case.items() if name != "response"}
