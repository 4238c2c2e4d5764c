"""How often elements are copied on their way, and whose they are."""

import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from attention_client import Client
from attention_client import attention_pb2 as pb

EYE = np.eye(2, dtype=np.float32)
MIB = 1 << 20
SMALL = MIB // 4


def peak_of(call):
    """The most bytes that Python and numpy allocate during a call: the least
    of a few, since other threads may allocate something meanwhile."""
    call()  # Connects; what is made once is made here.
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_request(core, client, contiguous):
    keys = np.ones((1, 8, 4096, 32), np.float32)
    if not contiguous:
        keys = np.ones((1, 4096, 8, 32), np.float32).swapaxes(1, 2)
    copies = (core == "pure") + (not contiguous)
    query = np.ones((1, 8, 1, 32), np.float32)
    peak = peak_of(lambda: client.compute(query, keys, keys))
    assert 2 * keys.nbytes == 8 * MIB
    assert peak < copies * 8 * MIB + SMALL


def test_an_append(core, client):
    keys = np.ones((8, 4096, 32), np.float32)
    with client.create_session(kv_heads=8, head_size=32) as session:
        peak = peak_of(lambda: session.append(keys, keys))
    # Two messages of 4 MiB, one after the other; grpcio lets go of the first
    # one when it has the next.
    assert 2 * keys.nbytes == 8 * MIB
    assert peak < {"native": 0, "pure": 8 * MIB}[core] + SMALL


def test_an_answer(core, client):
    query = np.ones((1, 8, 4096, 32), np.float32)
    keys = np.ones((1, 8, 1, 32), np.float32)
    outputs = []
    peak = peak_of(
        lambda: outputs.append(client.compute(query, keys, keys).output)
    )
    assert query.nbytes == 4 * MIB
    # The message sent, that received, and the elements out of it.
    assert peak < {"native": 0, "pure": 12 * MIB}[core] + SMALL
    # Memory of its own each, that may be written to.
    for i, output in enumerate(outputs):
        assert output.flags.writeable
        output += i
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(output, 1 + i)


def test_an_answer_outlives_its_client(server, fake_client):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.query)
    )
    large = np.arange(100000, dtype=np.float64).reshape(1, -1)
    output = fake_client.compute(large, EYE, EYE).output
    fake_client.close()
    assert output.flags.aligned
    np.testing.assert_array_equal(output, large)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 3), "float32", (2, 3)),
        ([4], np.float16, (4,)),
        (5, np.dtype("int64"), (5,)),
        (np.int32(6), "bool", (6,)),
        ((2, 0, 3), "bfloat16", (2, 0, 3)),
        ((), "float64", ()),
    ],
)
def test_empty(fake_client, shape, dtype, expected):
    array = fake_client.empty(shape, dtype)
    assert array.shape == expected
    assert array.dtype.name == getattr(np.dtype(dtype), "name", dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.size == 0 or array.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "text"),
    [
        ((2, -1), "float32", ValueError, r"shape\[1\]: got -1, wanted a num"),
        ((2, 1.5), "float32", TypeError, "shape: got type float64, wanted"),
        ("2", "float32", TypeError, "shape: got the string '2', wanted"),
        (2, "uint8", TypeError, "dtype: got type uint8, wanted one of"),
        (2, 3, TypeError, "dtype: got the number 3, wanted one of float32"),
        (
            (2**62, 4),
            "float32",
            ValueError,
            r"shape: got \(46116\d+, 4\), \d+ ",
        ),
        ((2**40, 2**10), "float32", MemoryError, "shape: got .* more than can"),
    ],
)
def test_what_cannot_be_empty(fake_client, shape, dtype, error, text):
    with pytest.raises(error, match=text):
        fake_client.empty(shape, dtype)


@pytest.fixture
def sharing_server(server_binary, tmp_path):
    """The address of a server that shares memory."""
    with subprocess.Popen(
        [
            server_binary,
            "--listen=127.0.0.1:0",
            f"--shared-memory=unix:{tmp_path}/memory",
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process.stdout.readline().removeprefix("listening on ").strip()
        process.terminate()
        assert process.wait(timeout=60) == 0


def mapping_of(array):
    """The line of the kernel's table with the memory of an array."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = line.partition(" ")[0].split("-")
        if int(begin, 16) <= address < int(end, 16):
            return line
    raise AssertionError(f"{address:x} is not mapped")


def test_what_empty_gives_can_be_shared(core, sharing_server):
    with Client(sharing_server, timeout=60) as client:
        query = np.ones((1, 8, 1, 64), np.float32)
        keys = client.empty((1, 8, 4096, 64), "float32")
        values = client.empty(keys.shape, np.float32)
        for array in (keys, values):
            assert ("memfd:" in mapping_of(array)) == (core == "native")
        keys[:] = 1
        values[:] = np.arange(64)
        output = client.compute(query, keys, values).output
        np.testing.assert_array_equal(output[0, 0, 0], np.arange(64))
    # It is an array like any other, whoever is gone.
    assert (values == np.arange(64)).all()


def test_shared_memory_can_be_turned_off(sharing_server):
    with Client(sharing_server, use_shared_memory=False) as client:
        assert "memfd:" not in mapping_of(client.empty(1 << 20, "float32"))
        assert client.health() == "SERVING"


def test_answers_by_shared_memory_are_the_caller_s_own(sharing_server):
    query = np.ones((1, 8, 4096, 32), np.float32)
    keys = np.ones((1, 8, 1, 32), np.float32)
    with Client(sharing_server, timeout=60) as client:
        outputs = []
        for i in range(4):
            outputs.append(client.compute(query, keys, keys * i).output)
            outputs[-1] += 10
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(output, 10 + i)
