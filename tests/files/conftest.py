"""The client program's readers of files, asked many files at once."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
READER = Path(
    os.environ.get(
        "ATTENTION_READ_TENSORS_BIN",
        REPOSITORY / "build/release/bin/read_tensors",
    )
)


@pytest.fixture
def read(tmp_path):
    """read(contents, suffix, names="") writes each of `contents` to a file and
    returns what the reader prints of each; None of what it refuses."""
    if not READER.is_file():
        pytest.fail(
            f"no {READER}: build it or name another with "
            "ATTENTION_READ_TENSORS_BIN"
        )

    def read(contents, suffix, name=""):
        arguments = []
        for i, content in enumerate(contents):
            path = tmp_path / f"{i}{suffix}"
            path.write_bytes(content)
            arguments.append(f"{path}{name}\n")
        run = subprocess.run(
            [READER],
            input="".join(arguments),
            capture_output=True,
            text=True,
            check=True,
        )
        lines = run.stdout.split("\n")[:-1]
        assert len(lines) == len(contents)
        return [None if line.startswith("error: ") else line for line in lines]

    return read
