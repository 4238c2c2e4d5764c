"""What tests ask the misbehaving server, and hold its cases against."""

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import urllib.request
from dataclasses import dataclass

from polyglot.places import REPOSITORY, VECTORS

CASES = [
    case
    for case in json.loads((VECTORS / "retries.json").read_text())["cases"]
    # The C++ and the Python client take an output of another shape, and their
    # runners make no steps of two messages or sessions.
    if case["call"] not in ("step_again", "batch")
    and not case["name"].endswith("malformed")
]


class Misbehaving:
    """The addresses of misbehaving_server.py, gRPC's and HTTP's."""

    def __init__(self, process):
        self.address = process.stdout.readline().split()[-1]
        self.http_address = process.stdout.readline().split("//")[-1].strip()

    def attempts(self, token, method):
        url = f"http://{self.http_address}/attempts?token={token}"
        with urllib.request.urlopen(url) as answer:
            calls = json.load(answer)
        return [call for call in calls if call["method"] == method]


@contextlib.contextmanager
def running():
    with subprocess.Popen(
        [sys.executable, "-m", "polyglot.misbehaving_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")},
    ) as process:
        yield Misbehaving(process)
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@dataclass
class Outcome:
    """How a call ended, code "OK" if well, and how long it took."""

    code: str
    took_ms: float
    reason: str = ""
    length: int | None = None


def play(server, case, call):
    """Plays a case with `call`, which gets the token and the seconds that the
    call may take, and returns its Outcome."""
    token = f"{case['name']}.{secrets.token_hex(8)}"
    outcome = call(token, case.get("timeout_ms", 10000) / 1000)
    assert outcome.code == case["result"], outcome
    if outcome.code != "OK":
        assert outcome.reason == case.get("reason", "")
        assert outcome.length == case.get("length")
    assert outcome.took_ms <= case.get("most_ms", 20000)
    attempts = server.attempts(token, case["method"])
    assert len(attempts) == case["attempts"], attempts
    times = [attempt["ms"] for attempt in attempts]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    for gap, least in zip(gaps, case.get("least_gaps_ms", ())):
        # The server's clock counts from when it reads a call.
        assert gap >= least - 1, gaps
    if case.get("same_request_id"):
        (request_id,) = {attempt["request_id"] for attempt in attempts}
        assert request_id
