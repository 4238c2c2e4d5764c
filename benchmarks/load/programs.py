"""The built server and `attention_client bench`, started and watched."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARIES = REPOSITORY / "build/release/bin"
SERVER = BINARIES / "attention_server"
OWN_SERVER = [SERVER, "--listen=127.0.0.1:0", "--log-level=off"]
CLIENT = BINARIES / "attention_client"
RESULTS = REPOSITORY / "build/bench"

MIB = 1 << 20


def known_flags():
    """The server's flags, as its --help has them."""
    text = subprocess.run(
        [SERVER, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"--[a-z][a-z-]*", text))


def unknown_flags(flags):
    """Those of `flags` that this server does not have."""
    names = {flag.partition("=")[0] for flag in flags}
    return sorted(names - known_flags())


def halves():
    """This process's cores in two parts, as taskset takes them."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("server and callers cannot be kept apart: there is one core")
    middle = len(cores) // 2
    return tuple(
        ",".join(map(str, half)) for half in (cores[:middle], cores[middle:])
    )


def on_cores(cores):
    """The beginning of a command that runs on these only; None: on all."""
    return ["taskset", "--cpu-list", cores] if cores else []


class Server:
    """A running attention_server on a free port; a context manager.

    It may die: `ended` then says how, and the other methods give what was last
    seen. Leaving the context ends it, and kills it if it does not end.

    `apart`: it has a half of this machine's cores for itself, and its callers
    should run on `callers_cores`, so that neither takes the other's time.
    """

    def __init__(self, *flags, apart=False, program=None):
        """`program`: another server's command, in place of attention_server."""
        cores, self.callers_cores = halves() if apart else (None, None)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *on_cores(cores),
                *(program or OWN_SERVER),
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"server said {line!r}: {self.log()}")
        self.address = line.removeprefix("listening on ").strip()
        # Of --http-listen.
        self.http_address = None
        if any(flag.startswith("--http-listen") for flag in flags):
            line = self.process.stdout.readline()
            self.http_address = line.removeprefix(
                "listening on http://"
            ).strip()
        self._proc = Path(f"/proc/{self.process.pid}")
        self._peak = self._rss = 0

    def log(self):
        self._log.seek(0)
        return self._log.read()[-2000:]

    @property
    def ended(self):
        """None while it runs, else "SIGABRT" or "exit 1"."""
        code = self.process.poll()
        if code is None:
            return None
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    def cpu_seconds(self):
        """User and system time so far; 0 once it has ended."""
        with contextlib.suppress(OSError):
            fields = (self._proc / "stat").read_text().rpartition(")")[2]
            ticks = sum(int(field) for field in fields.split()[11:13])
            return ticks / os.sysconf("SC_CLK_TCK")
        return 0.0

    def _read_memory(self):
        with contextlib.suppress(OSError):
            text = (self._proc / "status").read_text()
            peak = re.search(r"VmHWM:\s+(\d+)", text)
            rss = re.search(r"VmRSS:\s+(\d+)", text)
            if peak and rss:
                self._peak, self._rss = int(peak[1]) << 10, int(rss[1]) << 10

    def peak_bytes(self):
        """The most memory it had resident since reset_peak()."""
        self._read_memory()
        return self._peak

    def resident_bytes(self):
        self._read_memory()
        return self._rss

    def reset_peak(self):
        with contextlib.suppress(OSError):
            (self._proc / "clear_refs").write_text("5")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.stop()


class PeakWatch:
    """Reads the server's memory all the time, for it may die."""

    def __init__(self, server):
        self._stopped = threading.Event()

        def watch():
            while not self._stopped.wait(0.02):
                server.peak_bytes()

        self._thread = threading.Thread(target=watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._stopped.set()
        self._thread.join()


class Bench:
    """`attention_client bench` in the background; what it measured as JSON."""

    def __init__(self, address, *flags, cores=None):
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *on_cores(cores),
                CLIENT,
                "bench",
                f"--server={address}",
                "--json=-",
                *flags,
            ],
            stdout=self._out,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self, timeout=120):
        """None if it measured nothing, such as when the server had died."""
        try:
            _, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.end()
            return None
        self._out.seek(0)
        text = self._out.read()
        self._out.close()
        if not text:
            print(f"  {errors.strip()}")
            return None
        found = json.loads(text)
        if not found["answers"]["good"]:
            print(f"  WRONG ANSWERS: {found['answers']['wrong']}")
        return found

    def end(self):
        self.process.kill()
        self.process.communicate()
        self._out.close()


def bench(address, *flags):
    return Bench(address, *flags).result()


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def write_results(name, run):
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    print(path.relative_to(REPOSITORY))
