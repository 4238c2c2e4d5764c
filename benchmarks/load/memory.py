"""Measures what callers can make the server hold: ./dev bench memory [FLAG...]

Each case runs against a server with a budget: its peak of resident memory is
held to 64 MiB + 1.1 x --max-inflight-bytes, and what is left five seconds
after the last call to 128 MiB + --max-pooled-bytes. Honest small calls run
beside each case. A server that dies is said to have died, and the next case
gets a new one. The exit code is 1 if a bar was missed.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable

import grpc

from benchmarks.load import messages
from benchmarks.load.hostile import Swarm, Upload
from benchmarks.load.programs import (
    MIB,
    Bench,
    PeakWatch,
    Server,
    cpu_name,
    write_results,
)

# The honest calls beside each case: few and small.
HONEST = ["--shape=S=16", "--rate=50", "--timeout=2s", "--warmup=0"]
IDLE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Limits:
    """MiB of the flags of the same names."""

    message: int
    inflight: int
    pooled: int = 32

    @property
    def flags(self):
        return [
            f"--max-request-bytes={self.message}MiB",
            f"--max-response-bytes={self.message}MiB",
            f"--max-inflight-bytes={self.inflight}MiB",
            f"--max-pooled-bytes={self.pooled}MiB",
            "--http-listen=127.0.0.1:0",
        ]

    @property
    def peak_bar(self):
        return int((64 + 1.1 * self.inflight) * MIB)

    @property
    def idle_bar(self):
        return (128 + self.pooled) * MIB


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    limits: Limits
    # Does its worst to the server at an address for some seconds; returns what
    # became of it, in words.
    attack: Callable[[str, float], str]
    seconds: float
    # Whether the address is that of --http-listen.
    http: bool = False


# Attacks.


def largest_requests(address, seconds):
    """32 clients with a call of 312 MiB each, one after the other."""
    client = Bench(
        address,
        "--shape=S=1,T=39936,H=8,D=128",
        "--clients=32",
        "--warmup=0",
        f"--duration={seconds}",
        f"--timeout={seconds}",
        "--no-check",
    )
    found = client.result()
    if not found:
        return "no answers"
    codes = found["total"]["by_code"]
    return ", ".join(f"{name} {count}" for name, count in codes.items())


def swarm(connections, make_uploads):
    def attack(address, seconds):
        with Swarm(address, connections, make_uploads) as peers:
            time.sleep(seconds)
            return peers.describe()

    return attack


def unfinished(streams):
    """Messages of 4 MiB of which the last KiB never comes."""
    size = 4 * MIB
    return lambda: [Upload(size, size - 1024) for _ in range(streams)]


def oversized():
    """One message of 600 MiB, all of it."""
    return [Upload(600 * MIB, 600 * MIB)]


def unread(streams):
    """Calls with an answer of 4 MiB and a request of 64 KiB."""
    rows = 16384
    message = messages.request(
        messages.tensor([rows, 1]),
        messages.tensor([1, 1]),
        messages.tensor([1, 64]),
    )
    return lambda: [
        Upload(len(message), len(message), head=message) for _ in range(streams)
    ]


def one_call(message):
    def attack(address, seconds):
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options=options) as channel:
            call = channel.unary_unary(messages.METHOD)
            try:
                answer = call(message, timeout=seconds)
            except grpc.RpcError as error:
                text = re.sub(r"\s+", " ", error.details() or "")
                return f"{error.code().name}: {text[:60]}"
            return f"OK, {len(answer)} bytes"

    return attack


def several_calls(message, count):
    """`count` calls at once, each on a connection of its own."""

    def attack(address, seconds):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with contextlib.ExitStack() as stack:
            calls = []
            for _ in range(count):
                channel = stack.enter_context(
                    grpc.insecure_channel(address, options=options)
                )
                call = channel.unary_unary(messages.METHOD)
                calls.append(call.future(message, timeout=seconds))
            names = [call.code().name for call in calls]
        return ", ".join(f"{n} {names.count(n)}" for n in sorted(set(names)))

    return attack


def http_head(body_bytes):
    return (
        "POST /v1/attention:compute HTTP/1.1\r\nHost: test\r\n"
        f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    ).encode()


def http_numbers(most):
    """A request of short numbers, of about so many bytes: what JSON takes most
    memory for."""
    row = [1] * 64
    rows = most // (3 * len(json.dumps(row))) - 1
    matrix = [row] * rows
    text = json.dumps(
        {"query": matrix, "key": matrix[:1], "value": matrix[:1]}
        | {"mask": [[0]] * rows}
    )
    return text.encode().ljust(most)


def http_calls(clients, body_bytes):
    """Bodies one after another, whose answers are read."""

    def attack(address, seconds):
        host, port = address.split(":")
        body = http_numbers(body_bytes)
        end = time.monotonic() + seconds
        statuses = collections.Counter()

        def call():
            while time.monotonic() < end:
                connection = http.client.HTTPConnection(host, int(port), 30)
                try:
                    connection.request(
                        "POST",
                        "/v1/attention:compute",
                        body,
                        {"Content-Type": "application/json"},
                    )
                    answer = connection.getresponse()
                    answer.read()
                    statuses[str(answer.status)] += 1
                except (OSError, http.client.HTTPException) as error:
                    statuses[type(error).__name__] += 1
                finally:
                    connection.close()

        threads = [threading.Thread(target=call) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ", ".join(f"{n} {statuses[n]}" for n in sorted(statuses))

    return attack


def http_silent(clients, body, sent):
    """Connections that send `sent` bytes of a body, and read nothing."""

    def attack(address, seconds):
        host, port = address.split(":")
        with contextlib.ExitStack() as stack:
            cut = 0
            for _ in range(clients):
                peer = stack.enter_context(
                    socket.create_connection((host, int(port)), 5)
                )
                try:
                    peer.sendall(http_head(len(body)) + body[:sent])
                except OSError:
                    cut += 1
            time.sleep(seconds)
        return f"{cut} of {clients} cut while sending"

    return attack


def absurd_shapes():
    """Name to request. Some are right, though of no use to anybody."""
    tensor, request = messages.tensor, messages.request
    million = 1_000_000
    huge = 1 << 40
    starts = [0] * (million + 1)
    counted = range(million + 1)
    return {
        "no keys, Dv 80 million": request(
            tensor([1, 1]), tensor([0, 1]), tensor([0, 80 * million])
        ),
        "no rows, D 2^40": request(
            tensor([0, huge]), tensor([0, huge]), tensor([0, 1])
        ),
        "no keys, D and Dv 2^40": request(
            tensor([0, huge]), tensor([0, huge]), tensor([0, huge])
        ),
        "D 0": request(tensor([5, 0]), tensor([7, 0]), tensor([7, 1])),
        "no heads": request(
            *3 * [tensor([1, 0, 1, 1])],
            layout="bhsd",
        ),
        "packed, 2^40 heads of nothing": request(
            *3 * [tensor([1, 1, 0])], layout="packed", heads=(huge, huge)
        ),
        "2^40 heads, no rows": request(
            *3 * [tensor([1, huge, 0, 1])], layout="bhsd"
        ),
        "B 10^9, empty rows": request(
            *3 * [tensor([10**9, 1, 0, 1])], layout="bhsd"
        ),
        "B 10^6, empty rows, valid lengths": request(
            *3 * [tensor([million, 1, 0, 1])],
            layout="bhsd",
            valid_lengths=[0] * million,
        ),
        "ragged, 10^6 empty sequences": request(
            *3 * [tensor([0, 1, 1])],
            layout="ragged",
            query_starts=starts,
            key_starts=starts,
        ),
        "ragged, 10^6 sequences of one": request(
            *3 * [tensor([million, 1, 1])],
            layout="ragged",
            query_starts=counted,
            key_starts=counted,
        ),
        "D 4 million, one row": request(
            tensor([1, 4 * million]), tensor([1, 4 * million]), tensor([1, 1])
        ),
        "Dv 8 million, one row": request(
            tensor([1, 1]), tensor([1, 1]), tensor([1, 8 * million])
        ),
    }


SMALL = Limits(message=40, inflight=128)
SMALL_HTTP = Limits(message=40, inflight=256)
# So large that no limit of a message refuses what a shape asks for.
LARGE = Limits(message=320, inflight=1024, pooled=64)


def all_cases():
    tiny = Limits(message=8, inflight=64)
    cases = [
        Case(
            "32 clients, 312 MiB each",
            LARGE,
            largest_requests,
            10,
        ),
        Case(
            "1000 unfinished uploads, 10 connections",
            tiny,
            swarm(10, unfinished(100)),
            12,
        ),
        Case(
            "1000 unfinished uploads, 1000 connections",
            tiny,
            swarm(1000, unfinished(1)),
            12,
        ),
        Case(
            "one message of 600 MiB, limit 8 MiB",
            Limits(message=8, inflight=24),
            swarm(1, oversized),
            6,
        ),
        Case("1000 answers never read", tiny, swarm(10, unread(100)), 10),
    ]
    # As large as the budget lets them be, a fortieth of it.
    for limits, title in ((tiny, "1.6 MiB"), (SMALL_HTTP, "6.4 MiB")):
        largest = limits.inflight * MIB // 40
        body = http_numbers(largest)
        cases += [
            Case(
                f"32 clients over HTTP, numbers of {title} in JSON",
                limits,
                http_calls(32, largest),
                8,
                http=True,
            ),
            Case(
                f"60 bodies of {title} over HTTP that never end",
                limits,
                http_silent(60, body, len(body) - 1),
                6,
                http=True,
            ),
            Case(
                f"60 answers to bodies of {title} over HTTP that nobody reads",
                limits,
                http_silent(60, body, len(body)),
                6,
                http=True,
            ),
        ]
    absurd = absurd_shapes()
    first = "no keys, Dv 80 million"
    cases.append(Case(first, LARGE, one_call(absurd.pop(first)), 5))
    cases += [Case(n, SMALL, one_call(m), 2) for n, m in absurd.items()]
    name = "D 4 million, one row"
    attack = several_calls(absurd[name], 8)
    return [*cases, Case(f"8 x: {name}", SMALL, attack, 5)]


# Measuring.


def honest_figures(found):
    if not found:
        return None
    total = found["total"]
    return {
        "calls": total["calls"],
        "failed": total["calls"] - total["ok"],
        "by_code": total["by_code"],
        "p50_ms": total["accepted"]["p50_ms"],
        "p99_ms": total["accepted"]["p99_ms"],
    }


def measure(case, server):
    """One case; what is left is measured by measure_idle()."""
    server.reset_peak()
    with PeakWatch(server):
        honest = Bench(server.address, *HONEST, f"--duration={case.seconds}")
        try:
            address = server.http_address if case.http else server.address
            outcome = case.attack(address, case.seconds)
        except (OSError, grpc.RpcError) as error:
            outcome = f"{type(error).__name__}: {error}"[:80]
        found = honest_figures(honest.result())
    peak = server.peak_bytes()
    return {
        "name": case.name,
        "flags": case.limits.flags,
        "outcome": outcome,
        "died": server.ended,
        "peak": peak,
        "peak_bar": case.limits.peak_bar,
        "idle_bar": case.limits.idle_bar,
        "honest": found,
    }


def measure_idle(entry, server):
    time.sleep(IDLE_SECONDS)
    entry["idle"] = server.resident_bytes() if not server.ended else None
    entry["died"] = entry["died"] or server.ended


def misses(entry):
    """The bars that were missed, in words."""
    missed = []
    if entry["died"]:
        missed.append(f"DIED ({entry['died']})")
    if entry["peak"] > entry["peak_bar"]:
        missed.append("peak")
    idle = entry.get("idle")
    if idle is not None and idle > entry["idle_bar"]:
        missed.append("idle")
    honest = entry["honest"]
    if not honest:
        missed.append("no honest call served")
    elif honest["failed"]:
        missed.append(f"{honest['failed']} honest calls failed")
    return missed


def line(entry):
    honest = entry["honest"]
    served = "-"
    if honest and honest["p50_ms"] is not None:
        served = f"{honest['p50_ms']:.2g} / {honest['p99_ms']:.3g}"
    if honest:
        served += f", {honest['failed']}/{honest['calls']} failed"
    idle = entry.get("idle")
    left = "-" if idle is None else f"{idle // MIB}"
    cells = [
        f"{entry['name']:42}",
        f"{entry['peak'] // MIB:5} of {entry['peak_bar'] // MIB:4}",
        f"{left:>5} of {entry['idle_bar'] // MIB:4}",
        f"{served:28}",
        f"{', '.join(misses(entry)) or 'ok':8}",
        entry["outcome"],
    ]
    return " | ".join(cells)


HEADER = " | ".join(
    [
        f"{'case':42}",
        f"{'peak, MiB':13}",
        f"{'after 5 s':13}",
        f"{'honest p50 / p99 ms':28}",
        f"{'bars':8}",
        "what became of it",
    ]
)


def run_cases(cases):
    """A new server for each, so that none inherits another's memory."""
    for case in cases:
        with Server(*case.limits.flags) as server:
            entry = measure(case, server)
            measure_idle(entry, server)
        print(line(entry))
        yield entry


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", default="", metavar="REGEX")
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    # A thousand connections, here and, since it is inherited, in the server.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(HEADER)
    chosen = [case for case in all_cases() if re.search(flags.cases, case.name)]
    entries = list(run_cases(chosen))
    missed = [entry["name"] for entry in entries if misses(entry)]
    print(f"{len(missed)} of {len(entries)} cases miss a bar")
    machine = {"cpu": cpu_name(), "cores": os.cpu_count()}
    write_results("memory", {"machine": machine, "cases": entries})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
