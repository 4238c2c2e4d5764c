"""examples/README.md shows what the example of several servers prints.

usage: sharded_example_test.py SERVER EXAMPLE [unittest arguments]
"""

import pathlib
import re
import subprocess
import sys
import unittest

SERVER, EXAMPLE = "", ""
README = pathlib.Path(__file__).resolve().parents[2] / "examples/README.md"


class ShardedExampleTest(unittest.TestCase):
    def test_prints_what_the_readme_shows(self):
        (shown,) = re.findall(
            r"^```\n(100000 tokens.*?)^```",
            README.read_text(),
            re.MULTILINE | re.DOTALL,
        )
        run = subprocess.run(
            [EXAMPLE, SERVER],
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stdout, shown)


if __name__ == "__main__":
    SERVER, EXAMPLE = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
