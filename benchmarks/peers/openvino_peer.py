"""OpenVINO's scaled_dot_product_attention operation."""

import numpy as np
import openvino
from openvino import opset13

from benchmarks.peers import cases

TYPES = {
    "FLOAT32": openvino.Type.f32,
    "FLOAT16": openvino.Type.f16,
    "BFLOAT16": openvino.Type.bf16,
}
CORE = openvino.Core()


def version():
    return f"OpenVINO {openvino.__version__.split('-')[0]}"


def repeat_heads(node, case):
    """Each key/value head for every query head of its group."""
    batch, heads, _, size = node.get_partial_shape()
    sizes = [d.get_length() for d in (batch, heads, size)]
    length = case.key_length
    split = [sizes[0], sizes[1], 1, length, sizes[2]]
    wide = [sizes[0], sizes[1], case.group, length, sizes[2]]
    whole = [sizes[0], case.query_heads, length, sizes[2]]
    node = opset13.reshape(node, np.array(split), special_zero=False)
    node = opset13.broadcast(node, np.array(wide))
    return opset13.reshape(node, np.array(whole), special_zero=False)


def build(case, inputs):
    """A model of `inputs`, an array each parameter."""

    def parameter(array):
        shape = list(array.shape)
        if case.ragged:
            shape[2] = -1
        of_type = TYPES[case.type]
        if array.dtype == np.bool_:
            of_type = openvino.Type.boolean
        return opset13.parameter(shape, of_type)

    parameters = [parameter(array) for array in inputs]
    query, key, value, *mask = parameters
    if case.group > 1 and not case.decode:
        key, value = repeat_heads(key, case), repeat_heads(value, case)
    node = opset13.scaled_dot_product_attention(
        query, key, value, *mask, causal=case.is_causal and not mask
    )
    return openvino.Model([node], parameters)


def fill(tensor, array):
    kind = np.uint16 if tensor.element_type == openvino.Type.bf16 else None
    view = tensor.data.view(kind) if kind else tensor.data
    view[...] = array


def make(case, sequences, threads, precision):
    if case.type == "FLOAT64":
        raise NotImplementedError("computes FLOAT64 in FLOAT32")
    feeds = []
    for s in sequences:
        query, mask = s.query, s.mask
        if case.decode:  # The query heads of a group as rows of one head.
            query = query.reshape(
                case.batch, case.kv_heads, case.group, case.head_size
            )
        if case.window_left >= 0:
            mask = cases.window_mask(case)
        feeds.append([query, s.key, s.value])
        if mask is not None:
            feeds[-1].append(mask)
    compiled = CORE.compile_model(
        build(case, feeds[0]),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    requests = []
    for feed in feeds:
        request = compiled.create_infer_request()
        for i, array in enumerate(feed):
            of_type = compiled.input(i).element_type
            tensor = openvino.Tensor(of_type, array.shape)
            fill(tensor, array)
            request.set_input_tensor(i, tensor)
        requests.append(request)

    def run():
        for request in requests:
            request.infer()
        return requests

    def to_numpy(done):
        outputs = []
        for request, s in zip(done, sequences, strict=True):
            tensor = request.get_output_tensor()
            output = tensor.data
            if tensor.element_type == openvino.Type.bf16:
                output = cases.widen(output.view(np.uint16), "BFLOAT16")
            shape = (*s.query.shape[:3], case.value_head_size)
            outputs.append(output.astype(np.float64).reshape(shape))
        return outputs

    return run, to_numpy


def sdpa(case, sequences, threads):
    """Computed in the type of the case, as far as the CPU can."""
    kind = TYPES.get(case.type, openvino.Type.f32)
    return make(case, sequences, threads, kind)


def sdpa_f32(case, sequences, threads):
    """FLOAT16 computed in FLOAT32, not in the CPU's BFLOAT16."""
    if case.type != "FLOAT16":
        raise NotImplementedError("for FLOAT16 only")
    return make(case, sequences, threads, openvino.Type.f32)


WAYS = {"sdpa": sdpa, "sdpa_f32": sdpa_f32}
