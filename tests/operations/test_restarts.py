"""Replicas that are restarted one after the other lose no call.

A few restarts of what ./dev bench restarts does many times.
"""

import pytest

from benchmarks.load.restarts import PYTHON, Scenario, measure


@pytest.mark.parametrize(("long_call", "rolls"), [(False, 2), (True, 1)])
def test_a_rolling_restart_loses_no_call(server_binary, long_call, rolls):
    scenario = Scenario("Python", PYTHON, long_call=long_call)
    outcome = measure(scenario, rolls, binary=server_binary)
    assert outcome.restarts == 2 * rolls
    assert outcome.calls > 0
    assert outcome.lost == 0, outcome.failures
    assert outcome.wrong == 0
    assert outcome.twice == 0
