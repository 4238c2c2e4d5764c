"""./dev soak for some seconds, and that it finds what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import history

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_short_one_finds_nothing(server_binary, tmp_path):
    report = tmp_path / "soak.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.soak",
            "8",
            "--seed=1",
            f"--report={report}",
        ],
        cwd=REPOSITORY,
        check=True,
    )
    found = json.loads(report.read_text())
    assert found["failures"] == []
    assert found["counts_of_processes_not_killed"]["answers compared"] > 0
    assert found["processes_killed"] > 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        # What the server would have done had it lost a token, or kept one.
        ("append", lambda layer, key, value, rollback: None),
        ("truncate", lambda layer, length: None),
    ],
)
def test_what_the_model_does_not_have_is_found(
    client, monkeypatch, name, wrong
):
    found = history.History(client, seed=3)
    monkeypatch.setattr(history.Layer, name, wrong)
    with pytest.raises((history.WrongAnswerError, history.AttentionError)):
        for _ in range(1000):
            found.run_once()
    for held in found.held:
        held.session.delete()
