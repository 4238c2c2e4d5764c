"""Runs buildah, and servers in its containers."""

import os
import signal
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Here, and not where the machine keeps its images, which this leaves alone.
CACHE = REPOSITORY / "build/images"
GREETING = "listening on "
BUILDAH = [
    "buildah",
    f"--root={CACHE}/storage",
    f"--runroot={CACHE}/run",
]


def run(*command):
    """Its output; what it says on the way is shown where a test fails."""
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def buildah(*arguments):
    return run(*BUILDAH, *arguments)


def children_of(pid):
    """The processes that any thread of a process started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


class Server:
    """A server that was started by some command; `address` is what it said.

    As a context manager it ends with the server, which has to exit with 0.
    """

    def __init__(self, *command):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        if not line.startswith(GREETING):
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the server said {line!r}")
        self.address = line[len(GREETING) :].strip()

    @property
    def pid(self):
        """That of the server itself, below what started it."""
        pid = self.process.pid
        while children := children_of(pid):
            pid = children[0]
        return pid

    def stop(self):
        """Asks it to drain, and returns its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        try:
            if self.process.poll() is None:
                assert self.stop() == 0
        finally:
            self.process.stdout.close()


def run_in(container, *command, environment=None):
    """The arguments that run a command in a container, as its user."""
    variables = (environment or {}).items()
    return [
        *BUILDAH,
        "run",
        "--isolation=chroot",
        *(f"--env={name}={value}" for name, value in variables),
        container,
        "--",
        *command,
    ]
