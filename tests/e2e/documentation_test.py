"""What README.md and docs/ show is what the programs print.

Every console block is run: a line "$ attention_client ..." against a server of
the test's own, what follows being its output and errors together.
"""

import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import unittest

from server_process import ServerProcess

SERVER, CLIENT = "", ""
ROOT = pathlib.Path(__file__).resolve().parents[2]


def examples(path):
    """Pairs of command line and output."""
    text = path.read_text()
    for block in re.findall(
        r"^( *)```console\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL
    ):
        for example in textwrap.dedent(block[1]).split("$ ")[1:]:
            command, _, output = example.partition("\n")
            yield command, output


class DocumentationTest(unittest.TestCase):
    def check(self, name, count):
        found = list(examples(ROOT / name))
        self.assertEqual(len(found), count)
        with ServerProcess(SERVER) as server:
            for command, output in found:
                program, *arguments = shlex.split(command)
                self.assertEqual(program, "attention_client")
                verbs = 2 if arguments[0] == "session" else 1
                arguments.insert(verbs, f"--server={server.address}")
                run = subprocess.run(
                    [CLIENT, *arguments],
                    check=False,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                with self.subTest(command):
                    self.assertEqual(run.stdout, output)

    def test_readme(self):
        self.check("README.md", 2)

    def test_attention(self):
        self.check("docs/attention.md", 4)

    def test_sessions(self):
        self.check("docs/sessions.md", 5)

    def test_every_flag_is_documented_once_with_its_default(self):
        help_text = subprocess.run(
            [SERVER, "--help"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        # A long name has a line of its own; its text follows.
        flags = re.sub(r"\n {20,}", " ", help_text)
        defaults = re.findall(
            r"^ +--([a-z-]+)(?: [^ ]+)? .*?Default: (.*)$", flags, re.MULTILINE
        )
        # But for --help and --version.
        all_flags = re.findall(r"^ +--[a-z-]+", flags, re.MULTILINE)
        self.assertEqual(len(defaults), len(all_flags) - 1)
        rows = re.findall(
            r"^\| `--([a-z-]+)` \| (.*?) \|",
            (ROOT / "docs/operations.md").read_text(),
            re.MULTILINE,
        )
        self.assertEqual(
            sorted(name for name, _ in rows),
            sorted(name for name, _ in defaults),
        )
        for name, default in defaults:
            with self.subTest(name):
                # "10000, or what descriptors allow": the number must agree.
                self.assertEqual(
                    dict(rows)[name].split(",")[0],
                    default.split(",")[0].strip(),
                )


if __name__ == "__main__":
    SERVER, CLIENT = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
