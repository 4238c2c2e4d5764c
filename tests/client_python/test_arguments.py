"""Arguments of the wrong kind: every one of them is named, with what came and
what was wanted, and nothing is sent."""

import inspect
from pathlib import Path

import grpc
import numpy as np
import pytest

from attention_client import Client

EYE = np.eye(2, dtype=np.float32)
SELF = [1.0]
SELF.append(SELF)


class Tensor:
    """What PyTorch's tensors look like, which need not be installed."""

    shape = (2, 2)

    def __init__(self, error=None, **attributes):
        self.__dict__.update(attributes)
        self._error = error

    def __array__(self, dtype=None, copy=None):
        if self._error:
            raise self._error
        return EYE


class Device:
    type = "cuda"


class BFloat16:
    """A tensor that only DLPack gives away, and not now."""

    dtype = "torch.bfloat16"

    def __dlpack__(self):
        raise BufferError("not exported")


class csr_matrix:
    """As that of SciPy."""

    shape = (2, 2)
    dtype = np.dtype("float32")
    nnz = 2


csr_matrix.__module__ = "scipy.sparse._csr"

# What no tensor is made of, and what is said of it.
NO_TENSOR = [
    (3, TypeError, "got the number 3, wanted an array, or lists of numbers"),
    (1.5, TypeError, "got the number 1.5, wanted an array"),
    (np.float32(2), TypeError, "got the number 2.0, wanted an array"),
    (True, TypeError, "got True, wanted an array"),
    ("text", TypeError, "got the string 'text', wanted an array"),
    (b"text", TypeError, "got the bytes b'text', wanted an array"),
    ("x" * 99, TypeError, f"got the string '{'x' * 36}..., wanted an array"),
    ({"a": 1}, TypeError, "got a dict, wanted an array"),
    ({1, 2}, TypeError, "got a set, wanted an array"),
    (object(), TypeError, "got an object, wanted an array"),
    ((row for row in EYE), TypeError, "got a generator, wanted an array"),
    (Path("q.npy"), TypeError, "got a PosixPath, wanted an array"),
    ([[1, 2], [3]], ValueError, "got rows of different length or depth"),
    ([[1, 2], 3], ValueError, "got rows of different length or depth"),
    (SELF, TypeError, "[1][1][1]: got a list of 2, wanted numbers"),
    ([[1, "a"]], TypeError, "[0][1]: got the string 'a', wanted numbers"),
    ([[1], [None]], TypeError, "[1][0]: got None, wanted numbers"),
    ([object()], TypeError, "[0]: got an object, wanted numbers"),
    ([[10**400]], ValueError, "got a number that does not fit float64"),
    (np.array([["a"]]), TypeError, "got type str32, wanted one of float32"),
    (np.array([[None]]), TypeError, "got type object, wanted one of float32"),
    (np.eye(2) * 1j, TypeError, "got type complex128, wanted one of float32"),
    (
        np.ma.masked_array([[1.0, 2.0]], [[True, False]]),
        TypeError,
        "got a masked array, whose mask would be lost: pass value.filled(0)",
    ),
    ([[1.0, np.ma.masked]], TypeError, "[0][1]: got a masked array"),
    (
        [np.ma.masked_array([1.0], [True])],
        TypeError,
        "[0]: got a masked array",
    ),
    (
        csr_matrix(),
        TypeError,
        "got a sparse csr_matrix, wanted a dense array: pass value.toarray()",
    ),
    (
        Tensor(requires_grad=True),
        TypeError,
        (
            "got a tensor that requires grad, and no gradients come back: "
            "pass value.detach()"
        ),
    ),
    ([Tensor(requires_grad=True)], TypeError, "[0]: got a tensor that req"),
    (Tensor(is_sparse=True), TypeError, "got a sparse Tensor, wanted a dense"),
    (
        Tensor(layout="torch.sparse_csr"),
        TypeError,
        "got a sparse Tensor, wanted a dense",
    ),
    (
        Tensor(device=Device()),
        TypeError,
        "got a tensor on device cuda, wanted one in the CPU's memory",
    ),
    (
        BFloat16(),
        TypeError,
        "got a BFloat16, which numpy cannot read: not exported",
    ),
    ([BFloat16()], TypeError, "[0]: got a BFloat16, wanted numbers, or a ten"),
    (
        Tensor(RuntimeError("conjugate bit")),
        TypeError,
        "got a Tensor of shape (2, 2), which numpy cannot read: conjugate bit",
    ),
]

# What is no list of numbers, whole or not.
NO_LIST = [
    (3, TypeError, "got the number 3, wanted a list of"),
    (np.int64(3), TypeError, "got the number 3, wanted a list of"),
    ("1,2", TypeError, "got the string '1,2', wanted a list of"),
    ({1: 2}, TypeError, "got a dict, wanted a list of"),
    ({1, 2}, TypeError, "got a set, wanted a list of"),
    (iter([1]), TypeError, "got a list_iterator, wanted a list of"),
    ([1, None], TypeError, "[1]: got None, wanted numbers"),
    ([1, "2"], TypeError, "[1]: got the string '2', wanted numbers"),
    ([[1, 2]], ValueError, "got shape (1, 2), wanted a list of"),
    ([[1], [1, 2]], ValueError, "got rows of different length or depth"),
    ([True], TypeError, "got type bool, wanted a list of"),
    ([1j], TypeError, "[0]: got the number 1j, wanted numbers"),
    (np.array(["a"]), TypeError, "got type str32, wanted a list of"),
    (np.ma.masked_array([1], [True]), TypeError, "got a masked array"),
    (Tensor(requires_grad=True), TypeError, "got a tensor that requires grad"),
]
NO_WHOLE_LIST = [
    *NO_LIST,
    ([1.5], TypeError, "got type float64, wanted a list of whole numbers"),
    (np.array([1.0]), TypeError, "got type float64, wanted a list of whole"),
    ([2**63], ValueError, "[0]: got 9223372036854775808, wanted a number of"),
    ([10**30], TypeError, "got type float64, wanted a list of whole numbers"),
]
NO_FLOAT_LIST = [
    *NO_LIST,
    ([10**400], ValueError, "got a number that does not fit float64"),
]

NO_WHOLE_NUMBER = [
    (2.0, TypeError, "got the number 2.0, wanted a whole number"),
    ("2", TypeError, "got the string '2', wanted a whole number"),
    (True, TypeError, "got True, wanted a whole number"),
    ([2], TypeError, "got a list of 1, wanted a whole number"),
    (np.array([2]), TypeError, "got an array of shape (1,), wanted a whole"),
    (2**63, ValueError, "got 9223372036854775808, wanted a number of 64 bits"),
]
NO_NUMBER = [
    ("0.5", TypeError, "got the string '0.5', wanted a number"),
    (b"1", TypeError, "got the bytes b'1', wanted a number"),
    (True, TypeError, "got True, wanted a number"),
    (1j, TypeError, "got the number 1j, wanted a number"),
    ([0.5], TypeError, "got a list of 1, wanted a number"),
    (np.array([0.5]), TypeError, "got an array of shape (1,), wanted a numb"),
    (np.ma.masked, TypeError, "got a MaskedConstant of shape (), wanted a nu"),
    (object(), TypeError, "got an object, wanted a number"),
    (10**400, ValueError, "got the number 1000000"),
]
NO_NAME = [
    (True, TypeError, "got True, wanted None or one of '"),
    (1, TypeError, "got the number 1, wanted None or one of '"),
    (["raw"], TypeError, "got a list of 1, wanted None or one of '"),
    (b"raw", TypeError, "got the bytes b'raw', wanted None or one of '"),
    ("", ValueError, "got '', wanted None or one of '"),
    ("nonsense", ValueError, "got 'nonsense', wanted None or one of '"),
]
NO_FLAG = [
    (1, TypeError, "got the number 1, wanted True or False"),
    ("yes", TypeError, "got the string 'yes', wanted True or False"),
    (None, TypeError, "got None, wanted True or False"),
]
NO_TIME = [*NO_NUMBER, (float("nan"), ValueError, "got nan, wanted a number")]
NO_FILE = [
    (3, TypeError, "got the number 3, wanted the name of a file"),
    (b"x", TypeError, "got the bytes b'x', wanted the name of a file"),
    (["x"], TypeError, "got a list of 1, wanted the name of a file"),
    ("", ValueError, "got '', wanted the name of a file"),
    ("/no/such", ValueError, "/no/such: cannot open: No such file or dir"),
]
NONE = (None, TypeError, "got None, wanted an array, or lists of numbers")

OF_COMPUTE = {
    "query": [*NO_TENSOR, NONE],
    "key": [*NO_TENSOR, NONE],
    "value": [*NO_TENSOR, NONE],
    "mask": NO_TENSOR,
    "past_key": NO_TENSOR,
    "past_value": NO_TENSOR,
    "valid_lengths": NO_WHOLE_LIST,
    "query_starts": NO_WHOLE_LIST,
    "key_starts": NO_WHOLE_LIST,
    "layout": NO_NAME,
    "query_heads": NO_WHOLE_NUMBER,
    "kv_heads": NO_WHOLE_NUMBER,
    "scale": NO_NUMBER,
    "softcap": NO_NUMBER,
    "chunk_size": NO_WHOLE_NUMBER,
    "causal": NO_NAME,
    "window": [
        (3, TypeError, "got the number 3, wanted (left, right), each"),
        ("ab", TypeError, "got the string 'ab', wanted (left, right)"),
        ({1, 2}, TypeError, "got a set, wanted (left, right)"),
        ((1,), ValueError, "got a tuple of 1, wanted (left, right)"),
        ((1, 2, 3), ValueError, "got a tuple of 3, wanted (left, right)"),
        ((1, 2.5), TypeError, "[1]: got the number 2.5, wanted a whole number"),
        (("1", 2), TypeError, "[0]: got the string '1', wanted a whole"),
        ((True, 2), TypeError, "[0]: got True, wanted a whole number"),
        ((2**70, 2), ValueError, "[0]: got 1180591620717411303424, wanted"),
    ],
    "alibi_slopes": NO_FLOAT_LIST,
    "sinks": [
        *NO_FLOAT_LIST,
        (EYE * 1j, TypeError, "got type complex64, wanted one of float32"),
    ],
    "indices": [
        *NO_TENSOR,
        (
            [[2**63]],
            ValueError,
            "got 9223372036854775808, wanted at most 92233",
        ),
    ],
    "math_mode": NO_NAME,
    "softmax_precision": [
        (3, TypeError, "got the number 3, wanted one of float32"),
        (object(), TypeError, "got an object, wanted one of float32"),
        ("f8", TypeError, "got type f8, wanted one of float32"),
        (np.complex64, TypeError, "got type complex64, wanted one of"),
    ],
    "return_log_sum_exp": NO_FLAG,
    "return_scores": NO_NAME,
    "return_present": NO_FLAG,
    "timeout": NO_TIME,
}
OF_CLIENT = {
    "target": [
        (None, TypeError, "got None, wanted an address such as '127.0.0.1:"),
        (50051, TypeError, "got the number 50051, wanted an address such as"),
        (b"x:1", TypeError, "got the bytes b'x:1', wanted an address"),
        ("", ValueError, "got '', wanted an address such as"),
        (" ", ValueError, "got ' ', wanted an address such as"),
        ("http://x:1", ValueError, "got 'http://x:1', wanted an address such"),
    ],
    "timeout": NO_TIME,
    "token": [
        (3, TypeError, "got an int, wanted a string"),
        (b"hidden", TypeError, "got a bytes, wanted a string"),
        ("", ValueError, "is empty, wanted a token"),
        ("two hidden", ValueError, "has white space within the token, wanted"),
        ("hidd\xe9n", ValueError, "has characters that are not printable"),
    ],
    "token_file": NO_FILE,
    "tls": NO_FLAG,
    "tls_ca": NO_FILE,
    "tls_cert": [
        *NO_FILE[:-1],
        (__file__, ValueError, "needs tls_key as well"),
    ],
    "tls_key": [
        *NO_FILE[:-1],
        (__file__, ValueError, "needs tls_cert as well"),
    ],
    "credentials": [
        (True, TypeError, "got True, wanted grpc.ChannelCredentials"),
        ("ca.pem", TypeError, "got the string 'ca.pem', wanted grpc.Chan"),
        (
            grpc.access_token_call_credentials("hidden"),
            TypeError,
            "got a CallCredentials, wanted grpc.ChannelCredentials",
        ),
    ],
    "allow_plaintext_token": NO_FLAG,
    "use_shared_memory": NO_FLAG,
    "max_attempts": [
        (1.5, TypeError, "got the number 1.5, wanted a whole number"),
        ("4", TypeError, "got the string '4', wanted a whole number"),
        (True, TypeError, "got True, wanted a whole number"),
        (0, ValueError, "got 0, wanted at least 1, which is one try"),
        (-1, ValueError, "got -1, wanted at least 1"),
        (2**31, ValueError, "got 2147483648, wanted at most 2147483647"),
    ],
    "channel_options": [
        (3, TypeError, "got the number 3, wanted pairs (name, value)"),
        ("ab", TypeError, "got the string 'ab', wanted pairs"),
        ({"a": 1}, TypeError, "got a dict, wanted pairs"),
        ([3], TypeError, "[0]: got the number 3, wanted a pair"),
        (["ab"], TypeError, "[0]: got the string 'ab', wanted a pair"),
        ([(1, 2)], TypeError, "[0][0]: got the number 1, wanted a string"),
        ([("a", None)], TypeError, "[0][1]: got None, wanted a number or a"),
        ([("a", 1.5)], TypeError, "[0][1]: got the number 1.5, wanted a num"),
    ],
}


def rows(table):
    return [
        pytest.param(name, *row, id=f"{name}-{i}")
        for name, cases in table.items()
        for i, row in enumerate(cases)
    ]


def refusal(error, call):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    text = str(caught.value)
    assert "hidden" not in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("name", "value", "error", "text"), rows(OF_COMPUTE))
def test_compute(server, fake_client, name, value, error, text):
    tensors = {"query": EYE, "key": EYE, "value": EYE}
    said = refusal(
        error, lambda: fake_client.compute(**{**tensors, name: value})
    )
    assert said.startswith(name)
    assert text in said
    assert server.request is None


@pytest.mark.parametrize(("name", "value", "error", "text"), rows(OF_CLIENT))
def test_client(name, value, error, text):
    said = refusal(
        error, lambda: Client(**{"target": "127.0.0.1:1", name: value})
    )
    assert said.startswith(name)
    assert text in said


def test_health_and_capabilities(fake_client):
    assert refusal(TypeError, lambda: fake_client.health(3)) == (
        "service: got the number 3, wanted a string"
    )
    for method in (fake_client.health, fake_client.capabilities):
        assert refusal(TypeError, lambda: method(timeout="5")) == (  # noqa: B023
            "timeout: got the string '5', wanted a number"
        )


@pytest.mark.parametrize(
    ("call", "table"), [(Client.compute, OF_COMPUTE), (Client, OF_CLIENT)]
)
def test_the_tables_have_every_argument(call, table):
    wanted = [name for name in inspect.signature(call).parameters]
    assert sorted(table) == sorted(name for name in wanted if name != "self")


def test_what_numpy_users_pass_is_taken(server, fake_client):
    from attention_client import attention_pb2 as pb

    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=request.query)
    )
    result = fake_client.compute(
        Tensor(),
        memoryview(np.eye(2)),
        [EYE[0], EYE[1]],
        valid_lengths=np.array([1, 2], np.uint8),
        query_starts=range(3),
        key_starts=[],
        query_heads=np.int32(2),
        scale=np.float16(0.5),
        softcap=np.array(2),
        window=np.array([1, -1]),
        alibi_slopes=(np.float32(0.5), 1),
        sinks=[10**30],
        softmax_precision="float64",
        return_present=np.True_,
        timeout=float("inf"),
    )
    np.testing.assert_array_equal(result.output, EYE)
    request = server.request
    assert request.key.data_type == pb.DATA_TYPE_FLOAT64
    assert request.value.data_type == pb.DATA_TYPE_FLOAT32
    assert list(request.valid_lengths) == [1, 2]
    assert list(request.query_starts) == [0, 1, 2]
    assert list(request.key_starts) == []
    options = request.options
    assert options.query_heads == 2
    assert (options.scale, options.softcap) == (0.5, 2)
    assert (options.window.left, options.window.right) == (1, -1)
    assert list(options.alibi_slopes) == [0.5, 1]
    assert list(options.sinks) == [1e30]
    assert options.return_present
