"""Tensors of bfloat16 as PyTorch has them, which need not be installed."""

import ctypes

import ml_dtypes
import numpy as np
import pytest

from attention_client import attention_pb2 as pb
from attention_client import dlpack

EYE = np.eye(2, dtype=np.float32)


class Tensor:
    """numpy's tensor of integers, with another type in its capsule."""

    dtype = "torch.bfloat16"

    def __init__(self, numbers, code=4, device=1):
        self.numbers = np.asarray(numbers, ml_dtypes.bfloat16)
        self._code, self._device = code, device

    @property
    def T(self):
        return Tensor(self.numbers.T)

    def __dlpack__(self):
        capsule = self.numbers.view(np.uint16).__dlpack__()
        pointer = dlpack._get_pointer(capsule, b"dltensor")
        tensor = dlpack._Tensor.from_address(pointer)
        tensor.dtype.code = self._code
        tensor.device.type = self._device
        return capsule


def test_it_is_read_where_it_is():
    tensor = Tensor(np.arange(6).reshape(2, 3))
    bits = dlpack.bfloat16_bits(tensor)
    assert np.shares_memory(bits, tensor.numbers)
    assert not bits.flags.writeable
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), tensor.numbers)


def test_its_memory_is_kept():
    bits = dlpack.bfloat16_bits(Tensor([[1, 2]]))
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), [[1, 2]])


@pytest.mark.parametrize("name", ["query", "mask", "past_key"])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_arrives(server, fake_client, name, transposed):
    server.answers["ComputeAttention"] = lambda request, context: (
        pb.ComputeAttentionResponse(output=getattr(request, name))
    )
    tensor = Tensor(np.arange(6).reshape(2, 3))
    tensor = tensor.T if transposed else tensor
    arguments = {"query": EYE, "key": EYE, "value": EYE, name: tensor}
    output = fake_client.compute(**arguments).output
    assert output.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(output, tensor.numbers)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"code": 2}, r"type \(2, 16, 1\), wanted bfloat16"),
        ({"device": 2}, "memory of device 2, wanted the CPU's"),
    ],
)
def test_what_it_says_it_is_and_is_not(server, fake_client, wrong, text):
    with pytest.raises(TypeError, match=text):
        fake_client.compute(Tensor([[1]], **wrong), EYE, EYE)
    assert server.request is None


def test_an_empty_one():
    bits = dlpack.bfloat16_bits(Tensor(np.zeros((2, 0))))
    assert bits.shape == (2, 0)


def test_the_struct_is_that_of_dlpack_h():
    assert ctypes.sizeof(dlpack._Tensor) == 48
