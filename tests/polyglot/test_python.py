"""The scenario with the Python client, which all others print the same as."""

import os
import sys

import pytest

from polyglot.places import REPOSITORY


@pytest.mark.parametrize("core", ["native", "pure"])
def test_scenario(core, run, scenario):
    if core == "native" and not has_native_core():
        pytest.skip("the installed client has no native core")
    flags, expected = scenario
    output = run(
        sys.executable,
        "-m",
        "polyglot.scenario",
        *flags,
        PYTHONPATH=os.fspath(REPOSITORY / "tests"),
        ATTENTION_CLIENT_CORE=core,
    )
    assert output == expected


def has_native_core():
    try:
        import attention_client._native  # noqa: F401
    except ImportError:
        return False
    return True
