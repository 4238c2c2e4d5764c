"""What the client puts on the wire, and what it makes of an answer."""

import ml_dtypes
import numpy as np
import pytest

from attention_client import AttentionResult, PackedMask, Timing
from attention_client import attention_pb2 as pb

EYE = np.eye(2, dtype=np.float32)


@pytest.fixture
def sent(server, fake_client):
    """Calls compute() and returns the request that arrived."""
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.query)
    )

    def send(query=EYE, key=EYE, value=EYE, **arguments):
        fake_client.compute(query, key, value, **arguments)
        return server.request

    return send


def test_a_plain_call_sends_three_tensors_and_default_options(sent):
    tensor = pb.Tensor(
        data_type=pb.DATA_TYPE_FLOAT32, shape=[2, 2], data=EYE.tobytes()
    )
    assert sent() == pb.ComputeAttentionRequest(
        query=tensor, key=tensor, value=tensor, options=pb.AttentionOptions()
    )


def test_the_size_of_the_message_is_announced(server, sent):
    for query in (EYE, np.ones((300, 2), np.float32)):
        request = sent(query)
        headers = dict(server.context.invocation_metadata())
        assert headers["attention-request-bytes"] == str(request.ByteSize())


def test_every_argument_arrives_in_its_field(sent):
    request = sent(
        mask=np.array([[True, False]]),
        past_key=np.full((1, 1, 3, 2), 4, np.float32),
        past_value=np.full((1, 1, 3, 2), 5, np.float32),
        valid_lengths=np.array([1, 2]),
        query_starts=(0, 1, 2),
        key_starts=[0, 2, 2],
        layout="ragged",
        query_heads=6,
        kv_heads=3,
        scale=0.0,
        softcap=2.5,
        causal="bottom_right",
        window=(7, None),
        chunk_size=64,
        alibi_slopes=np.array([0.5, 0.25]),
        sinks=[1, -np.inf],
        math_mode="fast",
        softmax_precision=np.float64,
        return_log_sum_exp=True,
        return_scores="weights",
        return_present=True,
    )
    assert request.mask == pb.Tensor(
        data_type=pb.DATA_TYPE_BOOL, shape=[1, 2], data=b"\1\0"
    )
    assert set(np.frombuffer(request.past_key.data, "<f4")) == {4}
    assert set(np.frombuffer(request.past_value.data, "<f4")) == {5}
    assert list(request.past_key.shape) == [1, 1, 3, 2]
    assert list(request.valid_lengths) == [1, 2]
    assert list(request.query_starts) == [0, 1, 2]
    assert list(request.key_starts) == [0, 2, 2]
    assert request.options == pb.AttentionOptions(
        layout=pb.LAYOUT_RAGGED,
        query_heads=6,
        kv_heads=3,
        scale=0.0,
        softcap=2.5,
        causal=pb.CAUSAL_BOTTOM_RIGHT,
        window=pb.Window(left=7),
        chunk_size=64,
        alibi_slopes=[0.5, 0.25],
        sinks=[1, -np.inf],
        math_mode=pb.MATH_MODE_FAST,
        softmax_precision=pb.DATA_TYPE_FLOAT64,
        return_log_sum_exp=True,
        return_scores=pb.SCORES_WEIGHTS,
        return_present=True,
    )
    assert request.options.HasField("scale")
    assert not request.options.window.HasField("right")


@pytest.mark.parametrize(
    ("indices", "data_type", "data"),
    [
        ([[[0, -1]]], pb.DATA_TYPE_INT64, np.array([0, -1], "<i8")),
        (np.array([[[7]]], np.uint8), pb.DATA_TYPE_INT32, np.array([7], "<i4")),
        (np.array([[[7]]], np.int8), pb.DATA_TYPE_INT32, np.array([7], "<i4")),
        (np.array([[[7]]], ">i4"), pb.DATA_TYPE_INT32, np.array([7], "<i4")),
        (np.zeros((1, 2, 0), int), pb.DATA_TYPE_INT64, np.zeros(0)),
    ],
)
def test_indices_are_integers(sent, indices, data_type, data):
    request = sent(indices=indices)
    assert request.indices == pb.Tensor(
        data_type=data_type, shape=np.shape(indices), data=data.tobytes()
    )
    assert not request.HasField("sinks")


def test_sinks_of_rows_are_a_tensor(sent):
    request = sent(sinks=np.full((1, 2, 3), 5, np.float16))
    assert list(request.sinks.shape) == [1, 2, 3]
    assert request.sinks.data_type == pb.DATA_TYPE_FLOAT16
    assert not request.options.sinks


def test_packed_masks_are_bits(sent):
    mask = np.arange(15).reshape(3, 5) % 2 == 0
    bits = np.packbits(mask, bitorder="little")
    request = sent(mask=PackedMask(bits, mask.shape))
    assert request.mask == pb.Tensor(
        data_type=pb.DATA_TYPE_BITS, shape=[3, 5], data=b"\x55\x55"
    )


@pytest.mark.parametrize(
    ("bits", "error", "words"),
    [
        (np.zeros(1, np.uint8), ValueError, "mask.bits: got 1 bytes, wanted 2"),
        (np.zeros(2, np.int8), TypeError, "mask.bits: got type int8, wanted"),
        ("ab", TypeError, "mask.bits: got the string"),
    ],
)
def test_packed_masks_fit_their_shape(sent, bits, error, words):
    with pytest.raises(error, match=words):
        sent(mask=PackedMask(bits, (3, 5)))


def test_no_scale_is_not_a_scale_of_zero(sent):
    assert not sent().options.HasField("scale")


@pytest.mark.parametrize(
    ("dtype", "data_type"),
    [
        (np.float32, pb.DATA_TYPE_FLOAT32),
        (np.float16, pb.DATA_TYPE_FLOAT16),
        (ml_dtypes.bfloat16, pb.DATA_TYPE_BFLOAT16),
        (np.float64, pb.DATA_TYPE_FLOAT64),
        (np.bool_, pb.DATA_TYPE_BOOL),
        (np.int8, pb.DATA_TYPE_INT8),
        (np.int32, pb.DATA_TYPE_INT32),
        (np.int64, pb.DATA_TYPE_INT64),
    ],
)
def test_types_travel_both_ways(server, fake_client, dtype, data_type):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.mask)
    )
    array = np.array([[0, 1, 1], [1, 0, 3]]).astype(dtype)
    result = fake_client.compute(EYE, EYE, EYE, mask=array)
    assert server.request.mask.data_type == data_type
    assert result.output.dtype == array.dtype
    np.testing.assert_array_equal(result.output, array)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("dtype", "sent_as"),
    [
        ("uint8", "INT32"),
        ("int16", "INT32"),
        ("uint16", "INT32"),
        ("uint32", "INT64"),
        ("uint64", "INT64"),
    ],
)
def test_masks_of_other_integers_keep_their_values(sent, dtype, sent_as, order):
    largest = min(np.iinfo(dtype).max, 2**63 - 1)
    array = np.array([[0, 2, largest], [np.iinfo(dtype).min, 1, 7]], dtype)
    mask = sent(mask=array.astype(np.dtype(dtype).newbyteorder(order))).mask
    assert mask.data_type == pb.DataType.Value(f"DATA_TYPE_{sent_as}")
    arrived = np.frombuffer(mask.data, f"<i{int(sent_as[3:]) // 8}")
    assert arrived.tolist() == array.ravel().tolist()
    assert list(mask.shape) == [2, 3]


def test_a_uint64_that_no_wire_type_holds(fake_client):
    mask = np.array([[2**63, 0]], np.uint64)
    with pytest.raises(ValueError, match="mask: got the uint64 9223372036854"):
        fake_client.compute(EYE, EYE, EYE, mask=mask)


def test_integers_other_than_the_wire_s_are_for_masks_alone(fake_client):
    with pytest.raises(TypeError, match="query: got type uint8"):
        fake_client.compute(np.ones((2, 2), np.uint8), EYE, EYE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, list])
def test_a_mask_of_zeros_and_ones_is_sent_with_a_warning(sent, dtype):
    rows = [[1, 0], [0, 1]]
    mask = rows if dtype is list else np.array(rows, dtype)
    with pytest.warns(
        UserWarning, match="all 0 or 1; they are added"
    ) as caught:
        message = sent(mask=mask).mask
    assert message.data_type != pb.DATA_TYPE_BOOL
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "mask",
    [
        np.array([[True, False]]),
        np.array([[0.0, 1.0]], np.float32),
        np.array([[0, 2]], np.uint8),
        np.array([[0, -1]], np.int8),
        np.zeros((2, 0), np.uint8),
    ],
    ids=["bool", "float", "two", "negative", "empty"],
)
def test_other_masks_are_sent_without_a_word(sent, mask):
    sent(mask=mask)  # Warnings are errors here.


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=">f4").reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(4, 3, 2).T,
        np.arange(48, dtype=np.float32).reshape(2, 3, 8)[:, ::-1, ::2],
        np.broadcast_to(np.float32(7), (2, 3, 4)),
        np.zeros((2, 0, 4), np.float32),
    ],
    ids=["big-endian", "transposed", "strided", "broadcast", "empty"],
)
def test_arrays_arrive_row_major_and_little_endian(sent, array):
    tensor = sent(query=array).query
    assert tensor.data_type == pb.DATA_TYPE_FLOAT32
    arrived = np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))
    np.testing.assert_array_equal(arrived, array)


def test_lists_of_numbers_become_float32_and_of_bools_stay(sent):
    request = sent([[1, 0]], [[1.5, 0]], [[1, 2]], mask=[[True]])
    assert request.query.data_type == pb.DATA_TYPE_FLOAT32
    assert request.key.data == np.array([1.5, 0], "<f4").tobytes()
    assert request.mask.data_type == pb.DATA_TYPE_BOOL


def tensor(array):
    return pb.Tensor(
        data_type=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes()
    )


def test_every_field_of_an_answer_is_returned(server, fake_client):
    arrays = [np.full((1, i), i, np.float32) for i in range(1, 6)]
    output, lse, scores, present_key, present_value = map(tensor, arrays)
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(
            output=output,
            log_sum_exp=lse,
            scores=scores,
            present_key=present_key,
            present_value=present_value,
            timing=pb.Timing(
                queue_us=1, decode_us=2, compute_us=3, encode_us=4
            ),
        )
    )
    result = fake_client.compute(EYE, EYE, EYE)
    assert isinstance(result, AttentionResult)
    fields = (
        result.output,
        result.log_sum_exp,
        result.scores,
        result.present_key,
        result.present_value,
    )
    for actual, expected in zip(fields, arrays, strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert result.timing == Timing(1, 2, 3, 4)


def test_what_was_not_asked_for_is_none(server, fake_client, sent):
    sent()
    result = fake_client.compute(EYE, EYE, EYE)
    assert result.log_sum_exp is None
    assert result.scores is None
    assert result.present_key is None
    assert result.present_value is None


def test_the_answer_can_be_written_to(fake_client, sent):
    sent()
    output = fake_client.compute(EYE, EYE, EYE).output
    output += 1
    np.testing.assert_array_equal(output, EYE + 1)


def test_answers_above_grpc_s_own_limit_arrive(fake_client, sent):
    sent()
    large = np.ones((1200, 1000), np.float32)
    assert large.nbytes > 4 << 20
    np.testing.assert_array_equal(
        fake_client.compute(large, EYE, EYE).output, large
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"layout": "bhds"}, ValueError, "layout: got 'bhds'.*'bshd'"),
        ({"return_scores": "raws"}, ValueError, "return_scores: got 'raws'"),
        ({"math_mode": ""}, ValueError, "math_mode: got ''"),
        (
            {"mask": np.zeros((2, 2), np.complex64)},
            TypeError,
            "mask: got type complex64, wanted one of float32",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(
    server, fake_client, arguments, error, text
):
    with pytest.raises(error, match=text):
        fake_client.compute(EYE, EYE, EYE, **arguments)
    assert server.request is None


def test_a_message_that_protobuf_cannot_hold_is_refused(server, fake_client):
    # Never written to, it takes no memory.
    large = np.zeros((2**29, 1), np.float32)
    with pytest.raises(ValueError, match=r"request: got \d+ bytes, wanted"):
        fake_client.compute(EYE, large, EYE, return_scores="raw")
    # The native core may have asked for the server's capabilities.
    assert not isinstance(server.request, pb.ComputeAttentionRequest)


def test_capabilities(server, fake_client):
    server.answers["GetCapabilities"] = lambda request, context: (
        pb.GetCapabilitiesResponse(
            version="1.2.3",
            simd_target="AVX2",
            threads=4,
            data_types=[pb.DATA_TYPE_FLOAT32, pb.DATA_TYPE_BFLOAT16],
            math_modes=[pb.MATH_MODE_REPRODUCIBLE, pb.MATH_MODE_FAST],
            max_request_bytes=5,
            max_response_bytes=6,
            key_block=256,
            max_head_size=7,
            max_heads=8,
            max_batch=9,
            max_batch_heads=10,
            max_work=2**45,
        )
    )
    capabilities = fake_client.capabilities()
    assert capabilities.version == "1.2.3"
    assert capabilities.simd_target == "AVX2"
    assert capabilities.threads == 4
    assert capabilities.data_types == ("float32", "bfloat16")
    assert capabilities.math_modes == ("reproducible", "fast")
    assert capabilities.max_request_bytes == 5
    assert capabilities.max_response_bytes == 6
    assert capabilities.key_block == 256
    assert capabilities.max_head_size == 7
    assert capabilities.max_heads == 8
    assert capabilities.max_batch == 9
    assert capabilities.max_batch_heads == 10
    assert capabilities.max_work == 2**45
