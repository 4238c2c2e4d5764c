"""Random requests through the wire against the double-precision reference."""

from collections import Counter

import numpy as np
import pytest

from support import reference
from support.random_cases import random_case
from support.tolerance import assert_close, largest

SEEDS = range(300)


@pytest.mark.parametrize("seed", SEEDS)
def test_wire_agrees_with_reference(seed, client):
    case = random_case(seed)
    arguments = case.arguments
    expected = reference.compute(**arguments)
    actual = client.compute(**arguments)
    computed_in = np.float64 if case.double else np.float32

    assert actual.output.dtype == arguments["query"].dtype, case
    values = [arguments["value"], arguments.get("past_value")]
    assert_close(
        actual.output,
        expected.output,
        unit=case.growth
        * max(1, *(largest(v) for v in values if v is not None)),
        computed_in=computed_in,
    )
    if arguments["return_log_sum_exp"]:
        assert actual.log_sum_exp.dtype == computed_in
        assert_close(actual.log_sum_exp, expected.log_sum_exp, unit=case.growth)
    else:
        assert actual.log_sum_exp is None
    if arguments.get("return_scores"):
        assert actual.scores.dtype == arguments["query"].dtype
        assert_close(
            actual.scores,
            expected.scores,
            unit=case.growth,
            computed_in=computed_in,
        )
    else:
        assert actual.scores is None
    for name in ("present_key", "present_value"):
        present = getattr(actual, name)
        if arguments.get("return_present"):
            wanted = getattr(expected, name)
            # By their bits: NumPy finds no NaN of bfloat16 equal to another.
            assert present.dtype == wanted.dtype
            assert present.shape == wanted.shape
            assert present.tobytes() == wanted.tobytes()
        else:
            assert present is None


def test_the_cases_cover_what_they_are_for():
    """Random cases that never draw something prove nothing about it."""
    cases = [random_case(seed) for seed in SEEDS]
    arguments = [case.arguments for case in cases]

    def count(name, wanted):
        return sum(wanted(a[name]) for a in arguments if name in a)

    for name in ("mask", "past_key", "valid_lengths", "window", "sinks"):
        assert count(name, lambda value: value is not None) > 20, name
    assert count("chunk_size", lambda size: size > 0) > 20
    assert count("alibi_slopes", lambda slopes: slopes is not None) > 20
    assert count("layout", lambda layout: layout == "ragged") > 20
    assert count("layout", lambda layout: layout == "bshd") > 20
    assert count("query", lambda query: query.size == 0) > 5
    assert count("key", lambda key: key.size == 0) > 5
    stages = Counter(a.get("return_scores") for a in arguments)
    for stage in reference.STAGES:
        assert stages[stage] > 20, stage
    assert count("key", lambda key: not np.isfinite(key).all()) > 20
