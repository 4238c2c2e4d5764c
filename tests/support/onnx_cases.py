"""The Attention node cases that the onnx package generates, as our calls."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

from support import reference

# Named by the operator's specification, the same in opsets 23, 24 and 25 of
# onnx 1.23: 0 is scale * QK^T, 1 after softcap, 2 after the bias, 3 after the
# softmax. (onnx 1.18 had 1 and 2 the other way round.)
_STAGE_OF_MODE = reference.STAGES

_ARGUMENTS = {
    "Q": "query",
    "K": "key",
    "V": "value",
    "attn_mask": "mask",
    "past_key": "past_key",
    "past_value": "past_value",
    "nonpad_kv_seqlen": "valid_lengths",
}
_FIELDS = {
    "Y": "output",
    "present_key": "present_key",
    "present_value": "present_value",
    "qk_matmul_output": "scores",
}
_PRECISIONS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


@dataclass
class Case:
    name: str
    opset: int
    # Keyword arguments of compute().
    arguments: dict
    # Arrays by the result's field.
    expected: dict


def attention_cases():
    """All of them; the "_expanded" twins, whose graph holds other operators,
    are left out."""
    return [
        _case(case)
        for case in collect_testcases("Attention")
        if not case.name.endswith("_expanded")
    ]


def _case(case):
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    input_names = [name for name in node.input if name]
    output_names = [name for name in node.output if name]
    arguments = {
        _ARGUMENTS[name]: array
        for name, array in zip(input_names, inputs, strict=True)
    }
    expected = {
        _FIELDS[name]: np.asarray(array)
        for name, array in zip(output_names, outputs, strict=True)
    }
    arguments.update(_options(node, expected))
    return Case(
        case.name, case.model.opset_import[0].version, arguments, expected
    )


def _options(node, expected):
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in node.attribute
    }
    mode = attributes.pop("qk_matmul_output_mode", 0)
    options = {
        "causal": "top_left" if attributes.pop("is_causal", 0) else None,
        "window": (
            attributes.pop("left_window_size", -1),
            attributes.pop("right_window_size", -1),
        ),
        "query_heads": attributes.pop("q_num_heads", None),
        "kv_heads": attributes.pop("kv_num_heads", None),
        "scale": attributes.pop("scale", None),
        "softcap": attributes.pop("softcap", 0.0),
        "softmax_precision": _PRECISIONS.get(
            attributes.pop("softmax_precision", None)
        ),
        "return_scores": _STAGE_OF_MODE[mode] if "scores" in expected else None,
        "return_present": "present_key" in expected,
    }
    assert not attributes, f"unknown attributes: {attributes}"
    return options
