"""Random traffic of three tenants against one server: ./dev soak [SECONDS]

Processes of each tenant make random histories of sessions (history.py), check
the bits of every answer, fill the budget, give up calls half-way, and are
killed. In the end the accounts of the server must be at zero and its memory as
it was. The exit code is 1 if anything is not as it should be;
--report (build/soak.json) has the figures.
"""

import argparse
import hashlib
import json
import os
import random
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from tests.soak.history import LEASE

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = os.environ.get(
    "ATTENTION_SERVER_BIN", REPOSITORY / "build/release/bin/attention_server"
)
REPORT = REPOSITORY / "build/soak.json"

# The session bytes of each; the budget of all is less than their sum.
TENANTS = {"one": "6MiB", "two": "3MiB", "three": "-"}
BUDGET = "12MiB"
PROCESSES = 2  # of each tenant
MOST_SESSIONS = {"one": 40, "two": 40, "three": 8}
# Seconds between two kills of some process.
KILL_EVERY = 4
# The server's resident memory may differ by so much between the second and the
# last quarter: pools and arenas settle, a leak does not. Shorter runs say
# nothing of it.
LEAST_SECONDS = 300
MOST_GROWTH = 0.10
MOST_GROWTH_BYTES = 16 << 20


class Traffic:
    """The processes of one tenant after another."""

    def __init__(self, address, token_files, seed):
        self._address = address
        self._files = token_files
        self._random = random.Random(seed)
        self._running = []
        self.kills = 0
        self.failures = []
        self.counts = Counter()
        for tenant in TENANTS:
            for _ in range(PROCESSES):
                self._start(tenant)

    def _start(self, tenant):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.soak.history",
                self._address,
                self._files[tenant],
                str(self._random.randrange(1 << 30)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self._running.append((tenant, process))

    def _ended(self, tenant, process, *signals):
        """`signals` are those that it may have ended by."""
        output, errors = process.communicate(timeout=120)
        if output.strip():
            self.counts.update(json.loads(output))
        if process.returncode != 0 and -process.returncode not in signals:
            last = errors.strip()[-2000:]
            self.failures.append(f"{tenant}: {process.returncode}: {last}")

    def replace_ended(self):
        """A process that ends by itself has found something."""
        for tenant, process in list(self._running):
            if process.poll() is not None:
                self._running.remove((tenant, process))
                self._ended(tenant, process)
                self._start(tenant)

    def kill_one(self):
        tenant, process = self._running.pop(
            self._random.randrange(len(self._running))
        )
        process.kill()
        self.kills += 1
        self._ended(tenant, process, signal.SIGKILL)
        self._start(tenant)

    def stop(self):
        for _, process in self._running:
            process.terminate()
        for tenant, process in self._running:
            # Before it has a handler for it, by this one.
            self._ended(tenant, process, signal.SIGTERM)

    def kill_all(self):
        for _, process in self._running:
            process.kill()
            process.wait()


def metrics_of(http):
    text = urllib.request.urlopen(f"{http}/metrics", timeout=30).read().decode()
    found = re.findall(
        r"^([a-z_]+)(\{[^}]*\})? ([-+0-9.e]+|NaN)$", text, re.MULTILINE
    )
    return {name + labels: float(value) for name, labels, value in found}


def held(metrics):
    """What must be nothing in the end."""
    names = ("attention_session", "attention_tenant_session")
    calls = ("attention_waiting_calls", "attention_running_calls")
    return {
        name: value
        for name, value in metrics.items()
        if (name.startswith(names) and "limit" not in name) or name in calls
    }


def await_traffic(http):
    """The processes take some seconds to start."""
    end = time.monotonic() + 60
    while time.monotonic() < end and not metrics_of(http)["attention_sessions"]:
        time.sleep(0.1)


def await_nothing(http):
    """What is still held once all leases are over."""
    end = time.monotonic() + 6 * LEASE
    while True:
        left = {k: v for k, v in held(metrics_of(http)).items() if v != 0}
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


def growth(samples):
    """Of the median memory from the second quarter to the last, in bytes."""
    quarter = max(1, len(samples) // 4)
    before = statistics.median(samples[quarter : 2 * quarter] or samples)
    after = statistics.median(samples[-quarter:])
    return before, after


def run(seconds, seed, folder):
    files, lines = {}, []
    for tenant, session_bytes in TENANTS.items():
        token = secrets.token_hex(32)
        files[tenant] = folder / tenant
        files[tenant].write_text(token)
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines.append(
            f"{digest} {tenant} 1 - - {session_bytes} {MOST_SESSIONS[tenant]}\n"
        )
    (folder / "tokens").write_text("".join(lines))
    server = subprocess.Popen(
        [
            SERVER,
            "--listen=127.0.0.1:0",
            "--http-listen=127.0.0.1:0",
            "--log-level=off",
            f"--max-session-bytes={BUDGET}",
            f"--tokens={folder / 'tokens'}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    failures, resident, most_held = [], [], 0
    traffic = None
    try:
        address = server.stdout.readline().split()[-1]
        http = server.stdout.readline().split()[-1]
        traffic = Traffic(address, files, seed)
        await_traffic(http)
        begun = time.monotonic()
        next_kill = begun + KILL_EVERY
        while time.monotonic() < begun + seconds and server.poll() is None:
            time.sleep(0.5)
            metrics = metrics_of(http)
            resident.append(metrics["process_resident_memory_bytes"])
            most_held = max(most_held, metrics["attention_session_bytes"])
            traffic.replace_ended()
            if time.monotonic() > next_kill:
                traffic.kill_one()
                next_kill += KILL_EVERY
        traffic.stop()
        failures += traffic.failures
        if server.poll() is None:
            left = await_nothing(http)
            if left:
                failures.append(f"still held: {left}")
            metrics = metrics_of(http)
        before, after = growth(resident)
        most = before * (1 + MOST_GROWTH) + MOST_GROWTH_BYTES
        if seconds >= LEAST_SECONDS and after > most:
            failures.append(
                f"memory grew from {before:.0f} to {after:.0f} bytes"
            )
    finally:
        if traffic is not None:
            traffic.kill_all()
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    if code != 0:
        failures.append(f"the server ended with {code}")
    if not traffic.counts["answers compared"]:
        failures.append("no answer was compared")
    return {
        "seconds": seconds,
        "seed": seed,
        "processes_killed": traffic.kills,
        "counts_of_processes_not_killed": dict(traffic.counts.most_common()),
        "most_session_bytes": most_held,
        "resident_bytes": {
            "second_quarter": before,
            "last_quarter": after,
            "most": max(resident),
        },
        "calls": {
            name: value
            for name, value in metrics.items()
            if name.startswith(("attention_calls_total", "attention_refusals"))
            and value
        },
        "failures": failures,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seconds", type=float, nargs="?", default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 30))
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    print(f"{arguments.seconds:g} s, seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = run(arguments.seconds, arguments.seed, Path(folder))
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, number in value.items():
                print(f"  {number:14.0f}  {key}")
        elif name != "failures":
            print(f"{name}: {value:g}")
    for failure in report["failures"]:
        print(f"FAILED: {failure}")
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
