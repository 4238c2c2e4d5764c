"""A client of replicas, as a program: calls them until its input ends.

It has gRPC's own round_robin and retry policy and nothing else. What became of
its calls goes to standard output as JSON. restarts_client.cc is the same in
C++.
"""

import argparse
import collections
import json
import struct
import sys
import threading
import time

import grpc

from benchmarks.load import messages

TIMEOUT_SECONDS = 30
# Of an answer, which has FLOAT32 numbers.
COLUMNS = 256


class Caller(threading.Thread):
    """Makes one call after the other. Each has a number of its own, which is
    what its answer consists of."""

    def __init__(self, channel, first_number, flags, stop):
        super().__init__()
        self._method = channel.unary_unary(messages.METHOD)
        self._numbers = first_number
        self._rows = flags.answer_rows
        self._pause = flags.pause_ms / 1000
        self._stopped = stop
        self.failures = collections.Counter()
        self.ok = self.wrong = 0
        self.slowest = 0.0

    def run(self):
        while not self._stopped.wait(self._pause):
            self._numbers += 1
            # A single key has all the weight: the answer is its value.
            row = struct.pack("<f", self._numbers) * COLUMNS
            request = messages.request(
                messages.tensor((self._rows, 1)),
                messages.tensor((1, 1)),
                messages.tensor((1, COLUMNS), row),
            )
            begin = time.monotonic()
            try:
                answer = self._method(request, timeout=TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                self.failures[f"{error.code().name}: {error.details()}"] += 1
            else:
                self.ok += 1
                self.wrong += row * self._rows not in answer
            self.slowest = max(self.slowest, time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target")
    parser.add_argument("--config", help="a service config")
    parser.add_argument("--backoff-ms", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--answer-rows", type=int)
    parser.add_argument("--pause-ms", type=int, help="between calls")
    flags = parser.parse_args()
    options = [
        ("grpc.service_config", flags.config),
        ("grpc.initial_reconnect_backoff_ms", flags.backoff_ms),
        ("grpc.max_reconnect_backoff_ms", flags.backoff_ms),
        ("grpc.max_receive_message_length", -1),
    ]
    stop = threading.Event()
    with grpc.insecure_channel(flags.target, options) as channel:
        # Numbers that FLOAT32 holds exactly, far more than there are calls.
        callers = [
            Caller(channel, 1 + (i << 20), flags, stop)
            for i in range(flags.threads)
        ]
        for caller in callers:
            caller.start()
        sys.stdin.read()
        stop.set()
        for caller in callers:
            caller.join()
    failures = sum(
        (caller.failures for caller in callers), start=collections.Counter()
    )
    print(
        json.dumps(
            {
                "ok": sum(caller.ok for caller in callers),
                "wrong": sum(caller.wrong for caller in callers),
                "failures": failures,
                "slowest_ms": max(1000 * caller.slowest for caller in callers),
            }
        )
    )


if __name__ == "__main__":
    main()
