"""What a real server serves over HTTP, scraped once a session."""

import hashlib
import subprocess
import urllib.request

import pytest

from attention_client import AttentionError, Client
from e2e.server_process import ServerProcess


@pytest.fixture(scope="session")
def http_address(server_binary, tmp_path_factory):
    """Where a server that has answered a good and a bad call of a tenant serves
    HTTP."""
    tokens = tmp_path_factory.mktemp("server") / "tokens"
    tokens.write_text(f"{hashlib.sha256(b'secret').hexdigest()} tenant\n")
    with ServerProcess(
        server_binary, "--http-listen=127.0.0.1:0", f"--tokens={tokens}"
    ) as server:
        prefix, line = "listening on ", server.process.stdout.readline()
        assert line.startswith(prefix + "http://"), line
        with Client(server.address, timeout=60, token="secret") as client:
            client.compute([[1.0]], [[1.0]], [[2.0]])
            with pytest.raises(AttentionError):
                client.compute([[1.0]], [[1.0, 2.0]], [[2.0]])
        yield line[len(prefix) :].strip()


@pytest.fixture(scope="session")
def scrape(http_address):
    with urllib.request.urlopen(f"{http_address}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return response.read().decode()


@pytest.fixture(scope="session")
def promtool():
    """Runs Prometheus' own checker; its output is shown where it fails."""

    def run(*arguments, text=None, folder=None):
        process = subprocess.run(
            ["promtool", *arguments],
            input=text,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
        return process.returncode, process.stdout

    return run
