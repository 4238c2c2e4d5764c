"""The description of the calls over HTTP is that of the .proto files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_description_is_current(tmp_path):
    output = tmp_path / "openapi.json"
    subprocess.run(
        [sys.executable, ROOT / "tools/openapi.py", output], check=True
    )
    assert output.read_text() == (ROOT / "docs/openapi.json").read_text(), (
        "run tools/openapi.py"
    )
