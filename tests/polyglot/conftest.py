"""The servers that clients in every language are tested against: README.md."""

import os
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import sync_playwright

from e2e.server_process import ServerProcess
from page.browser import start_chromium
from polyglot.misbehaving import running
from polyglot.places import REPOSITORY, VECTORS


@pytest.fixture(scope="session")
def server(server_binary):
    with ServerProcess(server_binary, "--http-listen=127.0.0.1:0") as process:
        line = process.process.stdout.readline()
        process.http_address = line.removeprefix("listening on http://").strip()
        yield process


@pytest.fixture(scope="session")
def misbehaving():
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def environment(server, server_binary, misbehaving):
    """What the tests of a language's own runner find the servers by."""
    return os.environ | {
        "ATTENTION_TEST_SERVER": server.address,
        "ATTENTION_TEST_SERVER_HTTP": server.http_address,
        "ATTENTION_TEST_SERVER_BINARY": str(server_binary),
        "ATTENTION_TEST_MISBEHAVING": misbehaving.address,
        "ATTENTION_TEST_MISBEHAVING_HTTP": misbehaving.http_address,
        "ATTENTION_TEST_VECTORS": str(VECTORS),
    }


@pytest.fixture(scope="session")
def run(environment):
    """Runs a program, and fails with its output if it ends otherwise than it
    should. Returns its standard output."""

    def run(*command, cwd=REPOSITORY, timeout=600, status=0, **variables):
        process = subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env=environment | variables,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == status, process.stdout + process.stderr
        return process.stdout

    return run


@pytest.fixture(scope="session")
def random_vectors(run, server, tmp_path_factory):
    """Where the runners find other vectors: random ones, with what the Python client
    makes of them."""
    folder = tmp_path_factory.mktemp("vectors")
    shutil.copytree(VECTORS, folder, dirs_exist_ok=True)
    run(
        sys.executable,
        "-m",
        "polyglot.random_vectors",
        server.address,
        "20261201",
        folder,
        PYTHONPATH=str(REPOSITORY / "tests"),
    )
    return {"ATTENTION_TEST_VECTORS": str(folder)}


@pytest.fixture(scope="session")
def scenario(server, misbehaving):
    """Flags of a scenario, and what it has to print."""
    expected = (REPOSITORY / "tests/polyglot/scenario.txt").read_text()
    flags = (
        f"--server={server.address}",
        f"--misbehaving={misbehaving.address}",
        f"--misbehaving-http={misbehaving.http_address}",
    )
    return flags, expected


@pytest.fixture(scope="session")
def browser():
    """Chromium, once for all: a process has one Playwright at a time."""
    with sync_playwright() as playwright:
        browser = start_chromium(playwright)
        yield browser
        browser.close()
