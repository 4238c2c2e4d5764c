"""The call by curl of docs/kserve.md."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from e2e.server_process import ServerProcess

PAGE = (Path(__file__).parents[2] / "docs/kserve.md").read_text()


def test_the_call_by_curl(server_binary):
    (command,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    with ServerProcess(server_binary, "--http-listen=127.0.0.1:0") as server:
        url = (
            server.process.stdout.readline()
            .removeprefix("listening on ")
            .strip()
        )
        said = subprocess.run(
            ["bash", "-c", command.replace("http://127.0.0.1:9464", url)],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    (output,) = json.loads(said)["outputs"]
    assert (output["name"], output["datatype"]) == ("output", "FP32")
    assert output["shape"] == [1, 2]
    assert output["data"] == pytest.approx([1.6604769, 2.6604769])
