"""A client process of the soak: a random history of sessions, beside a model of
plain arrays that says what every answer has to be.

Run by __main__.py, which kills some of these: whatever a process has done, the
server must cope with its end at any line.
"""

import argparse
import contextlib
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np

from attention_client import (
    AttentionError,
    Cancelled,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    StepItem,
    Unavailable,
)

HKV, HQ, D = 2, 4, 32
PAGE = 256
LEASE = 5.0
MOST_SESSIONS = 5
LONGEST = 3000
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
UNANSWERED = (DeadlineExceeded, Cancelled, Unavailable)


class WrongAnswerError(Exception):
    """The server did what the model does not."""


class Layer:
    """All tokens of one layer, also those that the server has released."""

    def __init__(self, dtype, window):
        self.key = self.value = np.zeros((HKV, 0, D), dtype)
        self.window = window
        self.first = 0
        # Keys and values of an append of which nobody knows whether it was done.
        self.pending = None

    @property
    def length(self):
        return self.key.shape[1]

    @property
    def least(self):
        return self.first + self.window if self.first else 0

    def append(self, key, value, rollback):
        self.key = np.concatenate([self.key, key], axis=1)
        self.value = np.concatenate([self.value, value], axis=1)
        if self.window and key.shape[1]:
            kept = max(0, self.length - self.window - rollback)
            self.first = max(self.first, kept // PAGE * PAGE)

    def truncate(self, length):
        self.key, self.value = self.key[:, :length], self.value[:, :length]
        if length == 0:
            self.first = 0

    def copy(self):
        made = Layer(self.key.dtype, self.window)
        made.key, made.value, made.first = self.key, self.value, self.first
        return made


class Held:
    """A session and its model."""

    def __init__(self, session, layers, rollback):
        self.session = session
        self.layers = layers
        self.rollback = rollback


class History:
    def __init__(self, client, seed):
        self.client = client
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.held = []
        # Ids that are not renewed any more, and since when.
        self.left = []
        self.counts = Counter()

    def run_once(self):
        verbs = [
            (self.create, 2 if len(self.held) < MOST_SESSIONS else 0),
            (self.step, 12),
            (self.attend, 4),
            (self.fork, 1 if len(self.held) < MOST_SESSIONS else 0),
            (self.truncate, 2),
            (self.delete, 0.7),
            (self.leave, 0.3),
            (self.find_left, 0.3),
        ]
        verb = self.random.choices(*zip(*verbs))[0]
        try:
            verb()
            self.counts[verb.__name__] += 1
        except NotFound as error:
            # A renewal came late: then the session is gone, and nothing else.
            gone = [h for h in self.held if h.session.gone() is not None]
            if not gone:
                raise WrongAnswerError(f"{verb.__name__}: {error}") from error
            self.counts["expired though it was held"] += len(gone)
            self.held = [h for h in self.held if h not in gone]
        except ResourceExhausted as error:
            self.counts[f"refused: {error.reason}"] += 1

    def rows(self, heads, count, dtype):
        return self.numbers.standard_normal(
            (heads, count, D), np.float32
        ).astype(dtype)

    def timeout(self):
        """Mostly enough; else too short for an answer to be sure of."""
        if self.random.random() < 0.9:
            return 60
        return self.random.uniform(0.0005, 0.02)

    def create(self):
        dtype = self.random.choice(TYPES)
        windows = [
            self.random.choice([0, self.random.randint(1, 700)])
            for _ in range(self.random.randint(1, 2))
        ]
        rollback = self.random.randint(0, 300)
        session = self.client.create_session(
            layers=len(windows),
            kv_heads=HKV,
            head_size=D,
            data_type=np.dtype(dtype).name,
            lease=LEASE,
            retain_window=windows,
            rollback_tokens=rollback,
        )
        layers = [Layer(dtype, window) for window in windows]
        self.held.append(Held(session, layers, rollback))

    def settle(self, held):
        """Makes appends that had no answer again: the server does them once."""
        for number, layer in enumerate(held.layers):
            if layer.pending is None:
                continue
            key, value = layer.pending
            wanted = layer.length + key.shape[1]
            try:
                length = held.session.append(key, value, number, timeout=60)
            except ResourceExhausted:
                layer.pending = None
                raise
            if length != wanted:
                raise WrongAnswerError(
                    f"an append made again left {length} tokens, not {wanted}"
                )
            self.counts["appends made again"] += 1
            layer.append(key, value, held.rollback)
            layer.pending = None

    def options(self, layer, queries, length):
        """Of an attend, and of compute()."""
        options = {"causal": "bottom_right"}
        if layer.window:
            left = self.random.randint(0, layer.window - 1)
            options["window"] = (left, None)
        elif self.random.random() < 0.3:
            options["window"] = (self.random.randint(0, length), None)
        if self.random.random() < 0.2:
            options["softcap"] = 3.0
        if self.random.random() < 0.2:
            options["alibi_slopes"] = [0.1, 0.2, 0.05, 1.0]
        if self.random.random() < 0.2:
            options["sinks"] = [0.0, 1.0, -1.0, 2.0]
        if self.random.random() < 0.2:
            options["mask"] = self.numbers.random((HQ, queries, length)) < 0.9
        return options

    def expect(self, what, got, query, key, value, options):
        wanted = self.client.compute(
            query[None], key[None], value[None], timeout=60, **options
        ).output[0]
        if got.tobytes() != wanted.tobytes():
            raise WrongAnswerError(
                f"{what}: {query.shape[1]} queries over {key.shape[1]} tokens "
                f"of {key.dtype}, {options}: other bits than compute()"
            )
        self.counts["answers compared"] += 1

    def step(self):
        chosen = self.random.sample(
            self.held, min(len(self.held), self.random.randint(1, 4))
        )
        made = []
        for held in chosen:
            self.settle(held)
            number = self.random.randrange(len(held.layers))
            layer = held.layers[number]
            count = self.random.choice([1, 1, 1, 1, 2, 7, 60, 900])
            if layer.length + count > LONGEST:
                continue
            key = self.rows(HKV, count, layer.key.dtype)
            value = self.rows(HKV, count, layer.key.dtype)
            query = None
            options = {}
            if self.random.random() < 0.8:
                queries = self.random.choice([count, 1])
                query = self.rows(HQ, queries, layer.key.dtype)
                options = self.options(layer, queries, layer.length + count)
            made.append((held, number, layer, key, value, query, options))
        if not made:
            time.sleep(0.01)
            return
        results = self.client.step(
            [
                StepItem(
                    held.session,
                    query=query,
                    key=key,
                    value=value,
                    layer=number,
                    **options,
                )
                for held, number, _, key, value, query, options in made
            ],
            timeout=self.timeout(),
        )
        failed = None
        for one, result in zip(made, results):
            held, _, layer, key, value, query, options = one
            if isinstance(result, UNANSWERED):
                layer.pending = key, value
                self.counts["steps without an answer"] += 1
                continue
            if isinstance(result, ResourceExhausted):
                self.counts[f"refused: {result.reason}"] += 1
                continue
            if isinstance(result, AttentionError):
                failed = result
                continue
            layer.append(key, value, held.rollback)
            if query is not None:
                self.expect(
                    "step",
                    result.output,
                    query,
                    layer.key,
                    layer.value,
                    options,
                )
        if failed is not None:
            raise failed

    def attend(self):
        if not self.held:
            return
        held = self.random.choice(self.held)
        self.settle(held)
        number = self.random.randrange(len(held.layers))
        layer = held.layers[number]
        queries = self.random.choice([1, 1, 3, 40])
        if layer.length < queries:
            return
        query = self.rows(HQ, queries, layer.key.dtype)
        options = self.options(layer, queries, layer.length)
        seen = 0
        if "window" in options:
            seen = max(0, layer.length - queries - options["window"][0])
        try:
            result = held.session.attend(
                query, number, timeout=self.timeout(), **options
            )
        except FailedPrecondition as error:
            if error.reason != "TOKENS_RELEASED" or seen >= layer.first:
                raise
            self.counts["refused: TOKENS_RELEASED"] += 1
            return
        except UNANSWERED:
            self.counts["attends without an answer"] += 1
            return
        if seen < layer.first:
            raise WrongAnswerError(
                f"attend: an answer over tokens from {seen} on, of a layer that "
                f"keeps them from {layer.first} on"
            )
        self.expect(
            "attend", result.output, query, layer.key, layer.value, options
        )

    def fork(self):
        if not self.held:
            return
        held = self.random.choice(self.held)
        self.settle(held)
        session = held.session.fork(timeout=60)
        self.held.append(
            Held(
                session, [layer.copy() for layer in held.layers], held.rollback
            )
        )

    def truncate(self):
        if not self.held:
            return
        held = self.random.choice(self.held)
        self.settle(held)
        shortest = min(layer.length for layer in held.layers)
        least = max(layer.least for layer in held.layers)
        length = self.random.choice(
            [0, shortest, self.random.randint(max(0, shortest - 400), shortest)]
        )
        try:
            held.session.truncate(length, timeout=60)
        except FailedPrecondition as error:
            if error.least_length != least or not 0 < length < least:
                raise
            self.counts["refused: TOKENS_RELEASED"] += 1
            return
        if 0 < length < least:
            raise WrongAnswerError(f"truncated to {length}, below {least}")
        for layer in held.layers:
            layer.truncate(length)
        if held.session.lengths != tuple(h.length for h in held.layers):
            raise WrongAnswerError(f"lengths: got {held.session.lengths}")

    def take(self):
        return self.held.pop(self.random.randrange(len(self.held)))

    def delete(self):
        if self.held:
            self.take().session.delete(timeout=60)

    def leave(self):
        """A session that nobody uses any more."""
        if self.held:
            session = self.take().session
            session.close()
            self.left.append((session.id, time.monotonic()))

    def find_left(self):
        """Whose lease is over is gone."""
        while self.left and time.monotonic() - self.left[0][1] > 2 * LEASE:
            session_id, _ = self.left.pop(0)
            try:
                self.client.get_session(session_id)
            except NotFound:
                self.counts["found to have expired"] += 1
            else:
                raise WrongAnswerError(f"session {session_id} has not expired")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("token_file", type=Path)
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    token = arguments.token_file.read_text().strip()
    with Client(arguments.address, timeout=60, token=token) as client:
        history = History(client, arguments.seed)
        try:
            while not ended:
                history.run_once()
            # Some are left to their leases.
            for held in history.held[::2]:
                with contextlib.suppress(NotFound):
                    held.session.delete()
        finally:
            print(json.dumps(history.counts), flush=True)


if __name__ == "__main__":
    main()
