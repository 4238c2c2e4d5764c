"""Messages by hand are those of protobuf."""

import random

import numpy as np
import pytest
from google.protobuf.message import DecodeError

import attention_client
from attention_client import attention_pb2 as pb
from attention_client import wire

EYE = np.eye(2, dtype=np.float32)


def tensor(array):
    return pb.Tensor(
        data_type=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes()
    )


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 40000])
def test_a_request(rows):
    array = np.ones((rows, 1), np.float32)
    others = pb.ComputeAttentionRequest(
        valid_lengths=[1], options=pb.AttentionOptions(softcap=2)
    )
    request = wire.Request(
        (*((pb.DATA_TYPE_FLOAT32, array),) * 3, None, None, None),
        others.SerializeToString(),
    )
    expected = pb.ComputeAttentionRequest(
        query=tensor(array), key=tensor(array), value=tensor(array)
    )
    expected.MergeFrom(others)
    assert wire.joined(request) == expected.SerializeToString()


def test_the_pieces_of_a_tensor_are_merged_as_by_protobuf():
    first = pb.Tensor(data_type=1, shape=[2], data=b"first")
    second = pb.Tensor(shape=[3], data=b"second", float_values=[1])
    third = pb.Tensor(data_type=2)
    pieces = [
        memoryview(piece.SerializeToString())
        for piece in (first, second, third)
    ]
    expected = pb.Tensor.FromString(b"".join(pieces))
    actual = wire.tensor_of(pieces)
    assert actual.data_type == expected.data_type
    assert actual.shape == tuple(expected.shape)
    assert bytes(actual.data) == expected.data


def test_fields_that_are_not_known_are_left():
    message = (
        b"\x0a\x01a"
        + b"\x78\x80\x01"
        + b"\x0a\x00"
        + b"\x79"
        + bytes(8)
        + b"\x7d"
        + bytes(4)
        + b"\x7a\x01b"
    )
    others, found = wire.split(memoryview(message), (1,))
    assert found == [(1, b"a"), (1, b"")]
    assert others == (
        b"\x78\x80\x01\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x7a\x01b"
    )


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a",
        b"\x0a\x02a",
        b"\x80",
        b"\x78" + b"\xff" * 10 + b"\x01",
        b"\x79" + bytes(7),
        b"\x7d" + bytes(3),
        b"\x7e",
        b"\x7c",
    ],
)
def test_what_is_no_message(message):
    with pytest.raises(DecodeError):
        wire.split(memoryview(message), (1,))


def test_damaged_answers_are_none_of_this_package_s_bugs(server, fake_client):
    answer = pb.ComputeAttentionResponse(
        output=tensor(EYE), scores=tensor(EYE), timing=pb.Timing(queue_us=300)
    ).SerializeToString()
    assert len(answer) > 50
    rng = random.Random(1)
    server.serializers["ComputeAttention"] = bytes
    outcomes = set()
    for i in range(200):
        damaged = bytearray(answer)
        if i % 2:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        server.answers["ComputeAttention"] = lambda request, context: (
            damaged  # noqa: B023
        )
        try:
            fake_client.compute(EYE, EYE, EYE)
            outcomes.add("answer")
        except attention_client.Internal as error:
            assert error.message.startswith("malformed answer: ")
            outcomes.add("Internal")
    assert outcomes == {"answer", "Internal"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": b"123"},
        {"shape": [-1, -1]},
        {"shape": [2**40, 2**40]},
        {"data_type": 99},
        {"data_type": 0},
    ],
)
def test_elements_that_do_not_fit_their_shape(server, fake_client, wrong):
    output = tensor(np.ones((1, 1), np.float32))
    output.MergeFrom(pb.Tensor())
    for field, value in wrong.items():
        output.ClearField(field)
        output.MergeFrom(pb.Tensor(**{field: value}))
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=output)
    )
    with pytest.raises(
        attention_client.Internal, match="malformed answer: output has"
    ):
        fake_client.compute(EYE, EYE, EYE)


def test_an_answer_without_output(server, fake_client):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse()
    )
    with pytest.raises(attention_client.Internal, match="malformed answer"):
        fake_client.compute(EYE, EYE, EYE)
