"""ONNX Runtime's operators: Attention, MultiHeadAttention and
GroupQueryAttention."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.peers import cases

MICROSOFT = "com.microsoft"
TYPES = {
    "FLOAT64": TensorProto.DOUBLE,
    "FLOAT32": TensorProto.FLOAT,
    "FLOAT16": TensorProto.FLOAT16,
    "BFLOAT16": TensorProto.BFLOAT16,
}


def version():
    return f"ONNX Runtime {onnxruntime.__version__}"


def session(node, inputs, threads):
    """`inputs`: name to (element type, shape); outputs are of any shape."""

    def info(name, of_type, shape=None):
        return helper.make_tensor_value_info(name, of_type, shape)

    output_type = next(iter(inputs.values()))[0]
    graph = helper.make_graph(
        [node],
        "attention",
        [info(name, *spec) for name, spec in inputs.items()],
        [info(name, output_type) for name in node.output],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def element_type(case, array):
    if array.dtype == np.bool_:
        return TensorProto.BOOL
    if array.dtype == np.int32:
        return TensorProto.INT32
    if array.dtype == np.float32:
        return TensorProto.FLOAT
    return TYPES[case.type]


def make(case, node, feeds, threads, shared=None):
    """`feeds`: name to array, a dict each sequence.

    `shared`: outputs that are the memory of an input, as "present_key":
    "past_key".
    """

    def shape(name):
        # Sequences may differ in length.
        ranks = [feed[name].shape for feed in feeds]
        return [
            sizes[0] if len(set(sizes)) == 1 else None
            for sizes in zip(*ranks, strict=True)
        ]

    inputs = {
        name: (element_type(case, array), shape(name))
        for name, array in feeds[0].items()
    }
    runner = session(node, inputs, threads)
    bindings = []
    for feed in feeds:
        binding = runner.io_binding()
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array, inputs[name][0]
            )
            for name, array in feed.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in node.output:
            if shared and name in shared:
                binding.bind_ortvalue_output(name, values[shared[name]])
            else:
                binding.bind_output(name, "cpu")
        bindings.append((binding, feed, values))

    def run():
        for binding, _, _ in bindings:
            runner.run_with_iobinding(binding)
        return [binding for binding, _, _ in bindings]

    def to_numpy(done):
        return [
            unpack(case, binding.get_outputs()[0].numpy()) for binding in done
        ]

    return run, to_numpy


def unpack(case, output):
    """(B, S, H * D) to (B, H, S, D), in float64."""
    if output.ndim == 3:
        output = output.reshape(*output.shape[:2], case.query_heads, -1)
        output = output.transpose(0, 2, 1, 3)
    return output.astype(np.float64)


def pack(array):
    """(B, H, S, D) to (B, S, H * D)."""
    batch, _, length, _ = array.shape
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(
        batch, length, -1
    )


def attention(case, sequences, threads):
    """The operator of ONNX itself, opset 23."""
    feeds = [
        {"query": s.query, "key": s.key, "value": s.value} for s in sequences
    ]
    mask, causal = sequences[0].mask, case.is_causal
    if case.window_left >= 0:
        mask, causal = cases.window_mask(case), False
    if mask is not None:
        feeds[0]["mask"] = mask
    node = helper.make_node(
        "Attention", list(feeds[0]), ["output"], is_causal=int(causal)
    )
    return make(case, node, feeds, threads)


def multi_head_attention(case, sequences, threads):
    if case.group > 1:
        raise NotImplementedError("no grouped heads")
    if case.window_left >= 0:
        raise NotImplementedError("no window")
    if case.mask == "BOOL":
        raise NotImplementedError("no boolean mask")
    feeds = [
        {"query": pack(s.query), "key": pack(s.key), "value": pack(s.value)}
        for s in sequences
    ]
    names = list(feeds[0])
    if case.mask == "ADDITIVE":
        feeds[0]["mask"] = sequences[0].mask[None, None]
        names += ["", "", "mask"]  # No bias, no padding.
    node = helper.make_node(
        *("MultiHeadAttention", names, ["output"]),
        domain=MICROSOFT,
        num_heads=case.query_heads,
        unidirectional=int(case.is_causal),
    )
    return make(case, node, feeds, threads)


def group_query_attention(case, sequences, threads):
    """In decoding the new key is the last one, and the past shares the
    memory of the present, as in a model that generates."""
    if not (case.decode or case.is_causal):
        raise NotImplementedError("causal only")
    if case.ragged:
        raise NotImplementedError("no ragged sequences without padding")
    (s,) = sequences
    batch, keys = case.batch, case.key_length
    new = slice(-1, None) if case.decode else slice(None)
    feed = {
        "query": pack(s.query),
        "key": pack(s.key[:, :, new]),
        "value": pack(s.value[:, :, new]),
    }
    names = [*feed, "", ""]
    if case.decode:
        feed |= {"past_key": s.key.copy(), "past_value": s.value.copy()}
        names = list(feed)
    feed["last_key"] = np.full(batch, keys - 1, np.int32)
    feed["keys"] = np.array(keys, np.int32)
    node = helper.make_node(
        "GroupQueryAttention",
        [*names, "last_key", "keys"],
        ["output", "present_key", "present_value"],
        domain=MICROSOFT,
        num_heads=case.query_heads,
        kv_num_heads=case.kv_heads,
        local_window_size=case.window_left + 1 or -1,
    )
    shared = {"present_key": "past_key", "present_value": "past_value"}
    return make(case, node, [feed], threads, shared if case.decode else None)


WAYS = {
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    "GroupQueryAttention": group_query_attention,
}
