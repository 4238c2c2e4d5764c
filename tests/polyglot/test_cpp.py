"""What the C++ client tries again: docs/retries.md."""

import os
import subprocess

import pytest

from polyglot.misbehaving import CASES, Outcome, play
from polyglot.places import REPOSITORY

PROGRAM = REPOSITORY / "build/release/bin/retry_call"


# Computing alone has a call that does not block.
WAYS = [(case, "blocking") for case in CASES] + [
    (case, "async") for case in CASES if case["call"] == "compute"
]


@pytest.mark.parametrize(
    ("case", "way"), WAYS, ids=[f"{case['name']}-{way}" for case, way in WAYS]
)
def test_the_vectors(misbehaving, case, way):
    if not PROGRAM.is_file():
        pytest.fail(f"no program at {PROGRAM}: build the target retry_call")

    def call(token, timeout):
        output = subprocess.run(
            [
                PROGRAM,
                misbehaving.address,
                case["call"],
                way,
                str(round(1000 * timeout)),
            ],
            env=os.environ | {"ATTENTION_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()
        took_ms, code, reason, length = (output + ["-", "-"])[:4]
        return Outcome(
            code,
            float(took_ms),
            "" if reason == "-" else reason,
            None if length == "-" else int(length),
        )

    play(misbehaving, case, call)
