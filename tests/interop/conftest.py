"""A server for the tools that tests/interop/install.sh has installed."""

import json
import os
import subprocess

import pytest

from e2e.server_process import ServerProcess
from interop.places import TOOLS


@pytest.fixture(scope="session")
def server(server_binary, tmp_path_factory):
    """A running server, which fails the tests if it does not end well."""
    memory = tmp_path_factory.mktemp("shared") / "memory"
    with ServerProcess(
        server_binary,
        "--http-listen=127.0.0.1:0",
        f"--shared-memory=unix:{memory}",
    ) as process:
        yield process


@pytest.fixture(scope="session")
def address(server):
    return server.address


@pytest.fixture(scope="session")
def http_address(server):
    line = server.process.stdout.readline()
    return line.removeprefix("listening on http://").strip()


@pytest.fixture(scope="session")
def tool():
    """Runs a program, and fails with its output if it ends otherwise than it
    should."""
    environment = os.environ | {"PATH": f"{TOOLS}/bin:{os.environ['PATH']}"}

    def run(name, *arguments, status=0, cwd=None):
        process = subprocess.run(
            [name, *map(str, arguments)],
            capture_output=True,
            env=environment,
            cwd=cwd,
            timeout=120,
            check=False,
            text=True,
        )
        assert process.returncode == status, process.stdout + process.stderr
        return process

    return run


@pytest.fixture(scope="session")
def grpcurl(tool, address):
    """What grpcurl prints of the server."""

    def run(*arguments, flags=(), status=0):
        process = tool(
            "grpcurl", "-plaintext", *flags, address, *arguments, status=status
        )
        return process.stdout if status == 0 else process.stderr

    return run


def tensor(values, *shape):
    return {"shape": list(shape), "floatValues": values}


@pytest.fixture(scope="session")
def request_json():
    """The request of client/README.md, whose answer it tells."""
    eye = tensor([1, 0, 0, 1], 2, 2)
    return json.dumps({"query": eye, "key": eye, "value": eye})
