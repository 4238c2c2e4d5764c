"""The real server, started once a session, and a client of it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from attention_client import Client

REPOSITORY = Path(__file__).resolve().parents[1]
BINARY = Path(
    os.environ.get(
        "ATTENTION_SERVER_BIN",
        REPOSITORY / "build/release/bin/attention_server",
    )
)
GREETING = "listening on "


@pytest.fixture(scope="session")
def server_binary():
    """The program attention_server. Fails where none is built."""
    if not BINARY.is_file():
        pytest.fail(
            f"no server at {BINARY}: build it (./dev build) or name another "
            "with ATTENTION_SERVER_BIN"
        )
    return BINARY


@pytest.fixture(scope="session")
def server_address(server_binary):
    """Address of a running attention_server."""
    with subprocess.Popen(
        [server_binary, "--listen=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(GREETING), f"the server said {line!r}"
            yield line[len(GREETING) :].strip()
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=60)
    assert status == 0, f"the server ended with status {status}"


@pytest.fixture(scope="session")
def client(server_address):
    with Client(server_address, timeout=60) as client:
        yield client
