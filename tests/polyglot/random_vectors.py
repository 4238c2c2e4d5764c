"""Writes digests.json and sessions.json of random requests and scripts, with what the
Python client makes of them:

    PYTHONPATH=tests build/venv/bin/python -m polyglot.random_vectors HOST:PORT SEED FOLDER

The runners of the other languages play them as they play those of tests/vectors.
"""

import json
import random
import sys
from pathlib import Path

from attention_client import AttentionError, Client
from vectors import play
from vectors.record import tensor

TYPES = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")
REQUESTS = 150
SCRIPTS = 30


class Random(random.Random):
    def often(self, share):
        return self.random() < share


def options_of(draw, query_heads):
    options = {}
    if draw.often(0.3):
        options["causal"] = draw.choice(
            ("CAUSAL_TOP_LEFT", "CAUSAL_BOTTOM_RIGHT")
        )
    if draw.often(0.2):
        options["window"] = {
            side: draw.randrange(-1, 300)
            for side in ("left", "right")
            if draw.often(0.7)
        }
    if draw.often(0.1):
        options["chunk_size"] = draw.randrange(1, 40)
    if draw.often(0.1):
        options["softcap"] = draw.choice((0.5, 5, 30))
    if draw.often(0.1):
        options["scale"] = draw.choice((0, 0.125, 1.5, -1))
    if draw.often(0.1):
        options["sinks"] = [
            draw.randrange(-8, 8) / 4 for _ in range(query_heads)
        ]
    return options


def shapes_of(draw, layout, sizes):
    """Of query, key and value."""
    b, hq, hkv, s, n, d, dv = sizes
    if layout == "MATRIX":
        return (s, d), (n, d), (n, dv)
    if layout == "PACKED":
        return (b, s, hq * d), (b, n, hkv * d), (b, n, hkv * dv)
    if layout == "BHSD":
        return (b, hq, s, d), (b, hkv, n, d), (b, hkv, n, dv)
    if layout == "BSHD":
        return (b, s, hq, d), (b, n, hkv, d), (b, n, hkv, dv)
    return (s, hq, d), (n, hkv, d), (n, hkv, dv)


def starts_of(draw, parts, total):
    return [0, *sorted(draw.randint(0, total) for _ in range(parts - 1)), total]


def request_of(draw):
    layout = draw.choice(("MATRIX", "PACKED", "BHSD", "BSHD", "RAGGED"))
    matrix = layout == "MATRIX"
    b = 1 if matrix else draw.randint(1, 3)
    hkv = 1 if matrix else draw.randint(1, 3)
    hq = 1 if matrix else hkv * draw.randint(1, 3)
    s = draw.choice((0, 1, 1, 2, 7, 33))
    n = draw.choice((0, 1, 5, 256, 257, 600))
    d = draw.choice((1, 3, 16, 64))
    dv = draw.choice((d, d, 1, 24))
    if draw.often(0.15):  # Worth a stream.
        s, n, d = 1, 9000 // (b * hkv) * 2, 128
    name = draw.choice(TYPES)
    seed = draw.randrange(1, 1000)
    shapes = shapes_of(draw, layout, (b, hq, hkv, s, n, d, dv))
    query, key, value = shapes
    request = {
        "query": tensor(query, seed, name),
        "key": tensor(key, seed + 1, name),
        "value": tensor(value, seed + 2, name),
    }
    options = options_of(draw, hq)
    keys = n
    if layout == "RAGGED":
        request["query_starts"] = starts_of(draw, b, s)
        request["key_starts"] = starts_of(draw, b, n)
    else:
        if draw.often(0.2):
            past = draw.choice((0, 1, 40, 700))
            keys += past
            request["past_key"] = tensor((b, hkv, past, d), seed + 3, name)
            request["past_value"] = tensor((b, hkv, past, dv), seed + 4, name)
        if draw.often(0.2):
            mask = (draw.choice((1, b)), draw.choice((1, hq)), s, keys)
            request["mask"] = tensor(
                mask[draw.randrange(3) :] if b == 1 else mask,
                seed + 5,
                draw.choice(("BOOL", name, "FLOAT32")),
            )
        if draw.often(0.15):
            request["valid_lengths"] = [draw.randint(0, keys) for _ in range(b)]
    if layout != "BHSD" and (layout in ("BSHD", "RAGGED") or draw.often(0.5)):
        options["layout"] = f"LAYOUT_{layout}"
    if layout == "PACKED":
        options |= {"query_heads": hq, "kv_heads": hkv}
    if draw.often(0.15):  # Something is wrong, perhaps.
        shape = request[draw.choice(("query", "key", "value"))]["shape"]
        shape[draw.randrange(len(shape))] += draw.choice((1, 2))
    return request | ({"options": options} if options else {})


class Script:
    """A script while it is drawn: the names of its sessions."""

    def __init__(self, draw):
        self.draw = draw
        self.layers = draw.randint(1, 3)
        self.heads = draw.randint(1, 2)
        self.size = draw.choice((8, 16, 64))
        self.type = draw.choice((*TYPES, "INT8"))
        # Of each object, which session it is one of.
        self.of = {"a": "a"}

    @property
    def names(self):
        return list(self.of)

    def config(self):
        config = {
            "num_layers": self.layers,
            "kv_heads": self.heads,
            "head_size": self.size,
            "data_type": f"DATA_TYPE_{self.type}",
        }
        return config

    def rows(self, heads, n):
        name = "FLOAT32" if self.type == "INT8" else self.type
        size = self.size + self.draw.often(0.04)
        return tensor((heads, n, size), self.draw.randrange(1, 1000), name)

    def item(self):
        draw = self.draw
        kind = draw.choice(("append", "attend", "step", "step"))
        item = {
            "do": kind,
            "session": draw.choice(self.names),
            "layer": draw.randrange(self.layers + draw.often(0.05)),
        }
        if kind != "attend":
            n = draw.choice((0, 1, 1, 1, 3, 300))
            item["key"] = self.rows(self.heads, n)
            item["value"] = self.rows(self.heads, n)
        if kind != "append":
            item["query"] = self.rows(2 * self.heads, draw.choice((0, 1, 1, 5)))
            if draw.often(0.2):
                item["options"] = {"window": {"left": draw.randrange(200)}}
            elif draw.often(0.2):
                item["not_causal"] = True
            if kind == "attend" and draw.often(0.4):
                item["any_length"] = True
        return item

    def step(self):
        draw = self.draw
        kind = draw.choice(
            ("item",) * 8
            + ("batch", "fork", "open", "truncate", "refresh", "delete")
        )
        if kind == "item":
            return self.item()
        if kind == "batch":
            # A layer that something is appended to is named once.
            items = {
                (self.of[item["session"]], item["layer"]): item
                for item in (self.item() for _ in range(4))
            }
            return {"do": kind, "items": list(items.values())}
        step = {"do": kind, "session": draw.choice(self.names)}
        if kind in ("fork", "open"):
            if len(self.names) == 5:
                return self.item()
            step["target"] = "abcde"[len(self.names)]
        if kind == "truncate":
            step["length"] = draw.choice((0, 0, 1, 2, 300))
        if kind == "delete" and draw.often(0.7):
            return self.item()
        return step

    def is_behind(self, client, sessions, step):
        """Whether an attend of the step would be refused elsewhere: by the length that
        its object knows."""
        return any(
            item["do"] == "attend"
            and "any_length" not in item
            and sessions[item["session"]].lengths != true_lengths
            for item in self.items_of(step)
            if (true_lengths := self.lengths(client, sessions, item))
            is not None
        )

    @staticmethod
    def items_of(step):
        return step.get("items", [step])

    @staticmethod
    def lengths(client, sessions, item):
        try:
            return client.get_session(sessions[item["session"]].id).lengths
        except AttentionError:
            return None

    def steps(self, client):
        """Drawn and played one after the other: only sessions that there are have names."""
        session = client.create_session(
            layers=self.layers,
            kv_heads=self.heads,
            head_size=self.size,
            data_type=self.type.lower(),
        )
        sessions = {"a": session}
        try:
            for _ in range(25):
                step = self.step()
                if self.is_behind(client, sessions, step):
                    # Whoever does not append sees all there is in Python alone.
                    name = self.items_of(step)[0]["session"]
                    step = {"do": "refresh", "session": name}
                step |= play.play(client, sessions, step)
                if "target" in step:
                    if "error" in step:
                        continue
                    source, target = step["session"], step["target"]
                    opened = step["do"] == "open"
                    self.of[target] = self.of[source] if opened else target
                yield step
        finally:
            for made in sessions.values():
                made.delete()


def main(address, seed, folder):
    draw = Random(int(seed))
    with Client(address, timeout=60) as client:
        digests = []
        for number in range(REQUESTS):
            request = request_of(draw)
            case = {"name": f"random-{number}", "request": request}
            digests.append(case | play.compute(client, request))
        sessions = []
        for number in range(SCRIPTS):
            script = Script(draw)
            sessions.append(
                {
                    "name": f"random-{number}",
                    "config": script.config(),
                    "steps": list(script.steps(client)),
                }
            )
    for name, cases in (("digests", digests), ("sessions", sessions)):
        text = json.dumps({"cases": cases}, indent=1)
        (Path(folder) / f"{name}.json").write_text(text + "\n")
    kinds = [case.get("error", {}).get("code", "OK") for case in digests]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))})


if __name__ == "__main__":
    main(*sys.argv[1:])
