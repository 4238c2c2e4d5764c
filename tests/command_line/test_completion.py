"""The completion scripts, in real shells that a user types into."""

import os
import re
import selectors
import subprocess
import time

import pytest

# Far more than a shell needs; what hangs must fail.
TIMEOUT = 60
PROMPT = "READY> "

# The programs themselves are not run: functions of their names show the command
# line that was completed.
SHOW = """
attention_client() { printf 'GOT'; printf '<%s>' "$@"; echo; }
attention_server() { attention_client "$@"; }
"""

BASHRC = """
PS1='{prompt}'
bind 'set bell-style none'
source <('{client}' completion bash)
source <('{server}' completion bash)
"""

# One script loaded as zsh finds installed ones, one as a user tries it.
ZSHRC = """
PS1='{prompt}'
unsetopt beep
'{client}' completion zsh >'{folder}/_attention_client'
fpath=('{folder}' $fpath)
autoload -Uz compinit && compinit -u -D
source <('{server}' completion zsh)
"""


class Shell:
    """An interactive shell in a terminal of its own."""

    def __init__(self, command, folder, **environment):
        self._terminal, other_end = os.openpty()
        self._process = subprocess.Popen(
            # With the terminal as its own, as the shells want it.
            ["setsid", "--ctty", *command],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            cwd=folder,
            env={**os.environ, "TERM": "dumb", **environment},
        )
        os.close(other_end)
        self._output = ""
        self._read_prompt()

    def complete(self, keys):
        """The arguments after these keys have been typed and Enter."""
        os.write(self._terminal, keys.encode() + b"\r")
        output = self._read_prompt()
        found = re.findall(r"^GOT(.*)\r$", output, re.MULTILINE)
        assert found, repr(output)
        return re.findall("<(.*?)>", found[-1])

    def close(self):
        os.write(self._terminal, b"exit\r")
        self._process.wait(timeout=TIMEOUT)
        os.close(self._terminal)

    def _read_prompt(self):
        """What comes until the next prompt."""
        deadline = time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(self._terminal, selectors.EVENT_READ)
            # Without what sets the terminal's modes.
            while not re.sub(r"\x1b\[[?\d]*\w", "", self._output).endswith(
                PROMPT
            ):
                left = deadline - time.monotonic()
                assert left > 0 and selector.select(left), self._output
                self._output += os.read(self._terminal, 4096).decode()
        output, self._output = self._output, ""
        return output


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(request, server_binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    names = {
        "client": server_binary.with_name("attention_client"),
        "server": server_binary,
        "folder": folder,
        "prompt": PROMPT,
    }
    (folder / "a query.npy").touch()
    if request.param == "bash":
        setup = folder / "bashrc"
        setup.write_text(BASHRC.format(**names) + SHOW)
        command = ["bash", "--noprofile", "--rcfile", str(setup), "-i"]
    else:
        (folder / ".zshrc").write_text(ZSHRC.format(**names) + SHOW)
        command = ["zsh", "-o", "no_global_rcs", "-i"]
    shell = Shell(command, folder, ZDOTDIR=str(folder))
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("keys", "arguments"),
    [
        ("attention_client comput\t", ["compute"]),
        ("attention_client completion z\t", ["completion", "zsh"]),
        # The value can be typed on at once.
        (
            "attention_client compute --caus\tt\t",
            ["compute", "--causal=top-left"],
        ),
        ("attention_client compute --expl\t", ["compute", "--explain"]),
        (
            "attention_client compute --causal=t\t",
            ["compute", "--causal=top-left"],
        ),
        (
            "attention_client compute --causal t\t",
            ["compute", "--causal", "top-left"],
        ),
        (
            "attention_client compute --explain --causal=t\t--layout=ra\t",
            ["compute", "--explain", "--causal=top-left", "--layout=ragged"],
        ),
        (
            "attention_client compute --query=a\t",
            ["compute", "--query=a query.npy"],
        ),
        (
            "attention_client compute --query a\t",
            ["compute", "--query", "a query.npy"],
        ),
        ("attention_client bench --conc\t4", ["bench", "--concurrency=4"]),
        ("attention_client session cre\t", ["session", "create"]),
        (
            "attention_client session create --kv\t2",
            ["session", "create", "--kv-heads=2"],
        ),
        (
            "attention_client session attend --causal=t\t",
            ["session", "attend", "--causal=top-left"],
        ),
        # It is no flag of this command.
        ("attention_client health --conc\t", ["health", "--conc"]),
        ("attention_server --shutdown\t5", ["--shutdown-grace=5"]),
        ("attention_server --log-level=w\t", ["--log-level=warning"]),
        (
            "attention_server --threads=2 --log-level w\t",
            ["--threads=2", "--log-level", "warning"],
        ),
        ("attention_server completion b\t", ["completion", "bash"]),
    ],
)
def test_completes(shell, keys, arguments):
    assert shell.complete(keys) == arguments


@pytest.mark.parametrize("shell", ["bash"], indirect=True)
def test_offers_all_there_is(shell):
    # Escape and asterisk insert all completions, in bash.
    assert shell.complete("attention_client compute --causal=\x1b*") == [
        "compute",
        "--causal=bottom-right",
        "top-left",
    ]
    assert sorted(shell.complete("attention_client \x1b*")) == [
        "--help",
        "--version",
        "bench",
        "completion",
        "compute",
        "health",
        "info",
        "session",
    ]
