"""ONNX Attention, opsets 23 to 25, through the wire: every node case."""

from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from support import onnx_cases, reference

CASES = onnx_cases.attention_cases()
COUNT_BY_OPSET = {23: 69, 24: 13, 25: 11}

# ONNX computes its expected outputs step by step in the output's own type, so
# they are themselves off by about a unit in the last place.
TOLERANCE = {
    np.dtype(np.float32): 2e-6,
    np.dtype(np.float16): 1e-3,
    np.dtype(ml_dtypes.bfloat16): 8e-3,
}

each_case = pytest.mark.parametrize(
    "case", CASES, ids=[case.name for case in CASES]
)


def check(result, case):
    for field, expected in case.expected.items():
        actual = getattr(result, field)
        tolerance = TOLERANCE[expected.dtype]
        np.testing.assert_allclose(
            np.asarray(actual, np.float64),
            np.asarray(expected, np.float64),
            rtol=tolerance,
            atol=tolerance,
            err_msg=field,
        )


@each_case
def test_reference(case):
    check(reference.compute(**case.arguments), case)


@pytest.fixture(scope="module")
def ran():
    return Counter()


@each_case
def test_wire(case, client, ran):
    result = client.compute(**case.arguments)
    check(result, case)
    for field, expected in case.expected.items():
        assert getattr(result, field).dtype == expected.dtype, field
    ran[case.opset] += 1


def test_every_case_went_through_the_wire(ran):
    assert ran == COUNT_BY_OPSET
