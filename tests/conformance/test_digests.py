"""digests.json and sessions.json: the same bits, and the right numbers."""

import json

import numpy as np
import pytest

from support import reference
from support.tolerance import assert_close, growth, largest
from vectors import generate, play

FOLDER = generate.FILE.parent


def cases(name):
    listed = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    return pytest.mark.parametrize(
        "case", listed, ids=[case["name"] for case in listed]
    )


@cases("digests")
def test_request(case, client):
    answer = play.compute(client, case["request"])
    assert answer == {
        name: case[name] for name in ("output_sha256", "error") if name in case
    }
    if "error" in case:
        return
    arguments = play.arguments(case["request"])
    output = client.compute(**arguments).output
    double = np.float64 in (output.dtype, arguments["value"].dtype)
    assert_close(
        output,
        reference.compute(**arguments).output,
        unit=growth(arguments["query"], arguments["key"], extra=2)
        * largest(arguments["value"]),
        computed_in=np.float64 if double else np.float32,
    )


@cases("sessions")
def test_script(case, client):
    asked = play.without_answers(case["steps"])
    assert play.script(client, case["config"], asked) == case["steps"]
