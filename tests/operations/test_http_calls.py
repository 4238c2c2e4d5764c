"""docs/http.md, as its reader would try it."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from e2e.server_process import ServerProcess

PAGE = (Path(__file__).parents[2] / "docs/http.md").read_text()


@pytest.fixture(scope="module")
def url(server_binary):
    with ServerProcess(server_binary, "--http-listen=127.0.0.1:0") as server:
        line = server.process.stdout.readline()
        yield line.removeprefix("listening on ").strip()


def shell(code, url):
    """What a piece of shell prints, each line of it JSON."""
    process = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            code.replace("http://127.0.0.1:9464", url),
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


def examples():
    return re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_first_call(url):
    (answer,) = shell(examples()[0], url)
    assert answer["output"]["shape"] == ["1", "2"]
    assert answer["output"]["floatValues"] == pytest.approx(
        [1.6604769, 2.6604769]
    )
    shown = json.loads(
        re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1].replace(
            "{...}", "{}"
        )
    )
    assert shown["output"] == answer["output"]


def test_options(url):
    (answer,) = shell(examples()[1], url)
    first, second = 1 / (1 + np.exp([-0.5, 0.5]))
    assert answer["scores"]["floatValues"] == pytest.approx([first, second])
    assert answer["output"]["floatValues"] == pytest.approx(
        [first + 3 * second, 2 * first + 4 * second]
    )


def test_a_session(url):
    created, appended, attended, deleted = shell(examples()[2], url)
    assert created["session"]["lengths"] == ["0"]
    assert appended == {"length": "2"}
    assert attended["output"]["floatValues"] == pytest.approx(
        [1.6604769, 2.6604769]
    )
    assert deleted == {}


def test_every_path_is_described(url):
    described = json.loads(
        (Path(__file__).parents[2] / "docs/openapi.json").read_text()
    )["paths"]
    calls = {
        (method.upper(), path)
        for path, item in described.items()
        for method in item
    }
    assert len(calls) == 10
    for method, path in calls:
        # With a body that is no JSON, or none: known, whatever it says to that.
        process = subprocess.run(
            [
                "curl",
                "-s",
                "-X",
                method,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
            ]
            + [
                "-H",
                "Content-Type: application/json",
                "-d",
                "{" * (method == "POST"),
            ]
            + [f"{url}{path.replace('{id}', 'none')}"],
            capture_output=True,
            check=True,
            text=True,
        )
        wanted = {"POST": {"400"}, "GET": {"200", "404"}, "DELETE": {"200"}}[
            method
        ]
        assert process.stdout in wanted, (method, path)
