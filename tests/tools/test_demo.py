"""./dev demo: it stops its server, and with --stay only when told to."""

import contextlib
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "tools" / "demo.sh"


def test_ends_by_itself(server_binary):
    ended = subprocess.run(
        [DEMO, server_binary.parent],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert "0.767648  0.232352" in ended.stdout
    assert ended.stdout.endswith("\nStopping the server.\n")


@contextlib.contextmanager
def staying(server_binary):
    """The demo once its server stays, and what it told until then."""
    with subprocess.Popen(
        [DEMO, server_binary.parent, "--stay"],
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        told = ""
        while "Ctrl+C stops it." not in told:
            told += demo.stdout.readline()
            assert demo.poll() is None, told
        yield demo, told


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stays_until_it_is_stopped(server_binary, stop):
    with staying(server_binary) as (demo, told):
        address = re.search(r"http://\S+/", told)[0]
        with urllib.request.urlopen(address) as page:
            assert b"<title>Attention server</title>" in page.read()
        demo.send_signal(stop)
        assert demo.stdout.read() == "\nStopping the server.\n"
    assert demo.returncode == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


def test_stays_elsewhere_if_the_port_is_taken(server_binary):
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # By somebody else, then.
            taken.bind(("127.0.0.1", 50051))
            taken.listen()
        with staying(server_binary) as (demo, told):
            demo.send_signal(signal.SIGTERM)
            assert demo.stdout.read() == "\nStopping the server.\n"
        assert demo.returncode == 0
    assert re.search(r"stays, at 127\.0\.0\.1:\d+\.", told)
    assert "127.0.0.1:50051" not in told


def test_other_words_are_errors(server_binary):
    ended = subprocess.run(
        [DEMO, server_binary.parent, "--say"],
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr == "demo: got '--say', wanted --stay or nothing\n"
