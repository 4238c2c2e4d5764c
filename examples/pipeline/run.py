#!/usr/bin/env python3
"""Builds and starts the whole pipeline on free ports, without containers.

    python examples/pipeline/run.py [--attention-server FILE]

It needs what embed/requirements.txt lists and client/python in the Python that runs
it, and go, cargo and npm. It prints the page's address, and ends, with all that it
started, on Ctrl-C, or when a part ends.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BUILD = REPOSITORY / "build/pipeline"
SERVER = REPOSITORY / "build/release/bin/attention_server"
GREETING = "listening on "
STOP_SECONDS = 10
PR_SET_PDEATHSIG = 1


def build():
    """The programs of front/ and search/, and the page."""

    def run(*command, folder, **environment):
        subprocess.run(
            command,
            cwd=HERE / folder,
            env=os.environ | environment,
            check=True,
            stdout=sys.stderr,
        )

    BUILD.mkdir(parents=True, exist_ok=True)
    run("go", "build", "-o", str(BUILD / "front"), ".", folder="front")
    cargo = {"CARGO_TARGET_DIR": str(REPOSITORY / "build/cargo")}
    run("cargo", "build", "--locked", "--quiet", folder="search", **cargo)
    lock, installed = HERE / "page/package-lock.json", BUILD / "page-lock.json"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        run("npm", "ci", "--no-audit", "--no-fund", folder="page")
        installed.write_bytes(lock.read_bytes())
    run("npm", "run", "--silent", "build", folder="page")


def commands(server):
    """Each part, in the order in which they are started."""
    return {
        "attention": [server, "--listen={attention}"],
        "embed": [
            *(sys.executable, HERE / "embed"),
            *("--listen={embed}", "--attention={attention}"),
        ],
        "search": [
            REPOSITORY / "build/cargo/debug/pipeline-search",
            *("--listen", "{search}", "--attention", "{attention}"),
        ],
        "front": [
            *(BUILD / "front", "--listen={front}", f"--page={HERE}/page/dist"),
            *("--attention={attention}", "--embed={embed}"),
            "--search={search}",
        ],
    }


def _die_with_parent():
    # Linux's: nothing stays behind even if this program is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Pipeline:
    """The running parts; `addresses` has one for each, by its name.

    A context manager: leaving it ends all of them.
    """

    def __init__(self, server=SERVER):
        self._commands = commands(server)
        self.addresses = {}
        self.processes = {}

    def start(self, part, *flags):
        """Starts a part: again at the address that it had, if it had one."""
        addresses = {name: "127.0.0.1:0" for name in self._commands}
        addresses |= self.addresses
        command = [
            *(str(word).format(**addresses) for word in self._commands[part]),
            *flags,
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  No threads yet.
        )
        self.processes[part] = process
        line = process.stdout.readline()
        if not line.startswith(GREETING):
            raise RuntimeError(f"{part} said {line!r}")
        address = line[len(GREETING) :].strip().removeprefix("http://")
        self.addresses[part] = address

    def stop(self, part):
        process = self.processes.pop(part)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self):
        try:
            for part in self._commands:
                self.start(part)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        for part in reversed(list(self.processes)):
            self.stop(part)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention-server", type=Path, default=SERVER)
    parser.add_argument(
        "--no-build", action="store_true", help="starts what is built already"
    )
    arguments = parser.parse_args()
    if not arguments.attention_server.is_file():
        parser.error(
            f"there is no {arguments.attention_server}: ./dev build makes it"
        )
    # SIGTERM unwinds as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not arguments.no_build:
            build()
        with Pipeline(arguments.attention_server) as pipeline:
            print(f"http://{pipeline.addresses['front']}", flush=True)
            ended = []
            while not ended:
                time.sleep(0.5)
                ended = [
                    part
                    for part, process in pipeline.processes.items()
                    if process.poll() is not None
                ]
    except KeyboardInterrupt:
        return
    sys.exit(f"{', '.join(ended)} ended")


if __name__ == "__main__":
    main()
