"""Measures rolling restarts: ./dev bench restarts [FLAG...]

Two replicas, six clients with gRPC's own round_robin and a retry policy, which
call all the time. Again and again a replica is told to stop, and is started
anew when it has. No call may be lost, and none answered twice. The exit code is
1 if one was.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc

from benchmarks.load import messages
from benchmarks.load.programs import BINARIES, REPOSITORY, SERVER, write_results

CLIENTS = 6
CAPABILITIES = "/attention.v1.AttentionService/GetCapabilities"
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
# Before a client connects again. By default a second, then longer: a restart
# would take as long.
RECONNECT_BACKOFF_MS = 100
# Terabytes would take minutes; this takes a second or two.
LONG_CALL_LENGTH = 1 << 15
PYTHON = [sys.executable, "-m", "benchmarks.load.restarts_client"]
CPP = [str(BINARIES / "restarts_client")]


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    client: list
    long_call: bool = False
    answer_rows: int = 1
    pause_ms: int = 0


SCENARIOS = [
    Scenario(f"{language}, {name}", client, **settings)
    for language, client in (("Python", PYTHON), ("C++", CPP))
    for name, settings in (
        ("small calls", {}),
        ("beside a long call", {"long_call": True}),
        ("answers of 2 MiB", {"answer_rows": 1 << 11}),
        # Their connections are idle when the server stops.
        ("now and then", {"pause_ms": 1000}),
    )
]


class Replica:
    """An attention_server that is started again and again on one port."""

    def __init__(self, binary=SERVER):
        self._binary = binary
        self._listen = "127.0.0.1:0"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                self._binary,
                f"--listen={self._listen}",
                "--http-listen=127.0.0.1:0",
                "--log-level=debug",
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._listen = self._address()
        self._http = self._address()

    def _address(self):
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.close()
            raise RuntimeError(f"server said {line!r}")
        return line.removeprefix("listening on ").strip()

    @property
    def address(self):
        return self._listen

    def terminate(self):
        self.process.terminate()

    def wait(self):
        """Until it has ended of itself."""
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        if code != 0:
            raise RuntimeError(f"the server ended with {code}")

    def wait_for_connections(self, count):
        deadline = time.monotonic() + 60
        while self._metric("attention_connections") < count:
            if time.monotonic() > deadline:
                raise RuntimeError("the clients do not connect again")
            time.sleep(0.02)

    def _metric(self, name):
        with urllib.request.urlopen(f"{self._http}/metrics") as response:
            text = response.read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])

    def answers(self):
        """Calls by code, of all its lives."""
        self._log.seek(0)
        return collections.Counter(
            re.findall(
                r"event=call rpc=ComputeAttention code=(\w+)", self._log.read()
            )
        )

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()


class Client:
    """A program that calls all the time, in the background."""

    def __init__(self, scenario, target):
        self._process = subprocess.Popen(
            [
                *scenario.client,
                f"--target={target}",
                f"--config={json.dumps(SERVICE_CONFIG)}",
                f"--backoff-ms={RECONNECT_BACKOFF_MS}",
                "--threads=2",
                f"--answer-rows={scenario.answer_rows}",
                f"--pause-ms={scenario.pause_ms}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | {"GRPC_VERBOSITY": "NONE"},
            text=True,
        )

    def outcome(self):
        """Ends it; what became of its calls."""
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise RuntimeError("a client failed")
        return json.loads(output)

    def close(self):
        self._process.kill()
        self._process.communicate()


class LongCall:
    """A call of a second or two, which the server has begun to read."""

    def __init__(self, address):
        self._channel = grpc.insecure_channel(
            address, [("grpc.use_local_subchannel_pool", 1)]
        )
        column = messages.tensor((LONG_CALL_LENGTH, 1))
        self._answer = self._channel.unary_unary(messages.METHOD).future(
            messages.request(column, column, column)
        )
        # Answered in order behind the call's headers.
        self._channel.unary_unary(CAPABILITIES)(b"")

    def finish(self):
        """Whether it was answered."""
        answered = self._answer.exception() is None
        self._channel.close()
        return answered


@dataclasses.dataclass
class Outcome:
    restarts: int = 0
    calls: int = 0
    lost: int = 0
    wrong: int = 0
    twice: int = 0
    slowest_ms: float = 0
    longest_stop_s: float = 0
    failures: dict = dataclasses.field(default_factory=dict)

    @property
    def good(self):
        return not (self.lost or self.wrong or self.twice)

    def __str__(self):
        return (
            f"{self.restarts} restarts, {self.calls} calls: {self.lost} lost, "
            f"{self.twice} answered twice, {self.wrong} wrong; slowest "
            f"{self.slowest_ms:.0f} ms, longest stop {self.longest_stop_s:.2f} s"
        )


def restart(replica, long_call, outcome):
    call = LongCall(replica.address) if long_call else None
    begin = time.monotonic()
    replica.terminate()
    replica.wait()
    outcome.longest_stop_s = max(
        outcome.longest_stop_s, time.monotonic() - begin
    )
    if call:
        outcome.calls += 1
        outcome.lost += not call.finish()
    replica.start()
    replica.wait_for_connections(CLIENTS)
    outcome.restarts += 1


def measure(scenario, rolls, binary=SERVER):
    """What became of the calls while each replica was restarted `rolls` times."""
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        replicas = [Replica(binary) for _ in range(2)]
        for replica in replicas:
            stack.callback(replica.close)
        target = "ipv4:" + ",".join(replica.address for replica in replicas)
        clients = [Client(scenario, target) for _ in range(CLIENTS)]
        for client in clients:
            stack.callback(client.close)
        for replica in replicas:
            replica.wait_for_connections(CLIENTS)
        for _ in range(rolls):
            for replica in replicas:
                restart(replica, scenario.long_call, outcome)
        for found in [client.outcome() for client in clients]:
            failed = sum(found["failures"].values())
            outcome.calls += found["ok"] + failed
            outcome.lost += failed
            outcome.wrong += found["wrong"]
            for what, count in found["failures"].items():
                outcome.failures[what] = outcome.failures.get(what, 0) + count
            outcome.slowest_ms = max(outcome.slowest_ms, found["slowest_ms"])
        for replica in replicas:
            replica.terminate()
            replica.wait()
        answers = sum(
            (replica.answers() for replica in replicas),
            start=collections.Counter(),
        )
    # A line each; the log drops lines only where nobody reads it.
    outcome.twice = max(0, answers["OK"] - (outcome.calls - outcome.lost))
    return outcome


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench restarts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rolls", type=int, default=10)
    parser.add_argument("--only", default="", help="part of a scenario's name")
    parser.add_argument("--server", default=SERVER, help="another program")
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    run, good = {}, True
    for scenario in SCENARIOS:
        if flags.only not in scenario.name:
            continue
        outcome = measure(scenario, flags.rolls, flags.server)
        print(f"{scenario.name}: {outcome}")
        for what, count in outcome.failures.items():
            print(f"  {count} x {what}")
        run[scenario.name] = dataclasses.asdict(outcome)
        good &= outcome.good
    write_results("restarts", run)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
