"""Servers and clients as processes of their own.

A server prints a line "listening on ADDRESS" for each address. A client answers
each line of its standard input with a line of JSON, {"error": TEXT} if it could
not do it:

    prepare FOLDER HQ HKV S T D CAUSAL   connects, reads the tensors (cases.py)
    answer FILE                          makes a call, writes the output's numbers
    run CALLS SECONDS                    one call after the other, at least one,
                                         until there are so many or the time is
                                         over: {"ms": [...] per call, "begin" and
                                         "end" on the monotonic clock, "cpu"
                                         seconds of the process meanwhile}
"""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

from benchmarks.load.programs import REPOSITORY

# Seconds for a start or an answer; a program that needs longer is killed.
PATIENCE = 90

SHARED_MEMORY = Path("/dev/shm")


def region_name(pid, name):
    """What a client calls its shared memory."""
    return f"attention-bench-{pid}-{name}"


class ProgramFailed(RuntimeError):
    """A program did not start, died, took too long or told an error."""


class Program:
    """A process; ended with all that it started."""

    def __init__(self, command, env=()):
        # What it prints to standard error, for when it fails.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **dict(env)},
        )

    def read_line(self):
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if line:
            return line.strip()
        if late:
            raise ProgramFailed(f"no answer in {PATIENCE} s")
        raise ProgramFailed(f"ended: {self._last_words()}")

    def _last_words(self):
        self._log.seek(0)
        lines = [line for line in self._log.read()[-4000:].splitlines() if line]
        return lines[-1].strip() if lines else "said nothing"

    def _ask_to_end(self):
        self.process.terminate()

    def end(self):
        """Asks it to end; kills what of it still runs after a while."""
        family = descendants(self.process.pid)
        self._ask_to_end()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid, started in family:
            if start_time(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self._log.close()


class Server(Program):
    def __init__(self, command, addresses, env=()):
        super().__init__(command, env)
        self._count = addresses

    @functools.cached_property
    def addresses(self):
        """Waits until it has told them all."""
        return [self._address() for _ in range(self._count)]

    def _address(self):
        line = self.read_line()
        if not line.startswith("listening on "):
            raise ProgramFailed(f"said {line!r}, wanted its address")
        return line.removeprefix("listening on ")

    def _folders(self):
        pids = [self.process.pid]
        pids += [pid for pid, _ in descendants(self.process.pid)]
        return [Path(f"/proc/{pid}") for pid in pids]

    def reset_peak(self):
        for folder in self._folders():
            with contextlib.suppress(OSError):
                (folder / "clear_refs").write_text("5")

    def peak_bytes(self):
        """The most memory it had resident since reset_peak(): the sum of its
        processes' peaks, in which memory that they share counts repeatedly."""
        total = 0
        for folder in self._folders():
            with contextlib.suppress(OSError):
                peak = re.search(
                    r"VmHWM:\s+(\d+)", (folder / "status").read_text()
                )
                total += int(peak[1]) << 10 if peak else 0
        return total


class Client(Program):
    def tell(self, *words):
        try:
            print(*words, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise ProgramFailed(f"ended: {self._last_words()}") from None

    def hear(self):
        answer = json.loads(self.read_line())
        if "error" in answer:
            raise ProgramFailed(answer["error"])
        return answer

    def ask(self, *words):
        self.tell(*words)
        return self.hear()

    def _ask_to_end(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self):
        super().end()
        # Shared memory outlives who made it; this is all that one has that
        # was killed.
        for region in SHARED_MEMORY.glob(region_name(self.process.pid, "*")):
            region.unlink()


def stat_fields(pid):
    """Of /proc/PID/stat from the state on; empty if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def start_time(pid):
    """What tells a process from a later one of the same number; None: gone."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def descendants(pid):
    """(number, start time) of each process below `pid`."""
    children = {}
    for entry in Path("/proc").iterdir():
        fields = stat_fields(entry.name) if entry.name.isdigit() else []
        if fields:
            found = (int(entry.name), int(fields[19]))
            children.setdefault(int(fields[1]), []).append(found)
    family = list(children.get(pid, []))
    for child, _ in family:  # Grows meanwhile.
        family += children.get(child, [])
    return family
