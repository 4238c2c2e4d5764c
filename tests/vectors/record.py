"""Writes digests.json and sessions.json, with what a server answers.

    PYTHONPATH=tests build/venv/bin/python -m vectors.record HOST:PORT

README.md describes the files. The answers are a server's, since digests are of
bits; tests/conformance/test_digests.py holds them against the reference.
"""

import json
import sys
from pathlib import Path

from attention_client import Client
from vectors import play

HERE = Path(__file__).parent
TENSORS = ("query", "key", "value", "mask", "past_key", "past_value")


def tensor(shape, seed, data_type="FLOAT32"):
    return {
        "data_type": f"DATA_TYPE_{data_type}",
        "shape": list(shape),
        "seed": seed,
    }


def plain(query, key, value=None, data_type="FLOAT32", seed=1, **more):
    """A request of these shapes; the value's is the key's unless given."""
    return {
        "query": tensor(query, seed, data_type),
        "key": tensor(key, seed + 1, data_type),
        "value": tensor(value or key, seed + 2, data_type),
        **more,
    }


def requests():
    """Name, description, request."""
    for name in ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64"):
        yield (
            name.lower(),
            "Grouped heads, a causal mask, values wider than keys.",
            plain(
                (2, 8, 33, 32),
                (2, 2, 57, 32),
                (2, 2, 57, 48),
                data_type=name,
                options={"causal": "CAUSAL_BOTTOM_RIGHT"},
            ),
        )
    yield (
        "window",
        "The last query sees 41 keys.",
        plain(
            (2, 8, 33, 64),
            (2, 2, 57, 64),
            options={"causal": "CAUSAL_BOTTOM_RIGHT", "window": {"left": 40}},
        ),
    )
    yield (
        "chunks",
        "Queries see keys of their own sixteen positions.",
        plain(
            (1, 2, 70, 16),
            (1, 2, 70, 16),
            options={"causal": "CAUSAL_TOP_LEFT", "chunk_size": 16},
        ),
    )
    yield (
        "mask_bool",
        "A mask of one head for all.",
        plain(
            (2, 4, 17, 16),
            (2, 4, 40, 16),
            mask=tensor((2, 1, 17, 40), 9, "BOOL"),
        ),
    )
    yield (
        "mask_of_numbers",
        "Added to the scores; softcap, scale and sinks too.",
        plain(
            (1, 4, 17, 16),
            (1, 2, 40, 16),
            mask=tensor((4, 17, 40), 9),
            options={"softcap": 5, "scale": 0.5, "sinks": [0.5, -1, 0, 2]},
        ),
    )
    yield (
        "past",
        "Keys and values of before, in two tensors more.",
        plain(
            (1, 4, 3, 16),
            (1, 4, 3, 16),
            past_key=tensor((1, 4, 300, 16), 7),
            past_value=tensor((1, 4, 300, 16), 8),
            options={"causal": "CAUSAL_BOTTOM_RIGHT"},
        ),
    )
    yield (
        "valid_lengths",
        "The second batch entry has no keys: zeros.",
        plain((3, 2, 4, 8), (3, 2, 9, 8), valid_lengths=[9, 0, 5]),
    )
    yield (
        "ragged",
        "Three sequences, one of them empty, end to end.",
        plain(
            (10, 4, 8),
            (21, 2, 8),
            query_starts=[0, 4, 4, 10],
            key_starts=[0, 9, 9, 21],
            options={"layout": "LAYOUT_RAGGED", "causal": "CAUSAL_TOP_LEFT"},
        ),
    )
    yield (
        "bshd",
        "Sequence before heads.",
        plain(
            (2, 5, 4, 8),
            (2, 7, 2, 8),
            options={"layout": "LAYOUT_BSHD"},
        ),
    )
    yield (
        "packed_heads",
        "Heads beside one another in the last axis.",
        plain(
            (2, 5, 32),
            (2, 7, 16),
            options={
                "layout": "LAYOUT_PACKED",
                "query_heads": 4,
                "kv_heads": 2,
            },
        ),
    )
    yield (
        "no_keys",
        "Nothing to see: zeros.",
        plain((1, 2, 3, 8), (1, 2, 0, 8)),
    )
    yield (
        "no_queries",
        "An answer without elements.",
        plain((1, 2, 0, 8), (1, 2, 5, 8)),
    )
    yield (
        "answer_of_5_mb",
        "More than gRPC's clients take unless told to.",
        plain((1, 8, 2500, 64), (1, 8, 20, 64)),
    )
    yield (
        "decode_of_17_mb",
        "Few rows over many keys: worth a stream.",
        plain((1, 8, 1, 64), (1, 4, 8192, 64), data_type="FLOAT32"),
    )
    yield (
        "decode_of_17_mb_in_bfloat16",
        "The same of half as many bytes an element.",
        plain((1, 8, 1, 64), (1, 8, 8192, 64), data_type="BFLOAT16"),
    )
    yield (
        "large_with_mask_and_past",
        "What a stream cuts: mask, past, and the sequence before the heads.",
        plain(
            (1, 2, 8, 64),
            (1, 5000, 4, 64),
            mask=tensor((8, 2, 6000), 9),
            past_key=tensor((1, 4, 1000, 64), 7),
            past_value=tensor((1, 4, 1000, 64), 8),
            options={"layout": "LAYOUT_BSHD"},
        ),
    )


def refused():
    yield (
        "key_of_other_size",
        "The key's last axis is not the query's.",
        plain((2, 2), (3, 4), (3, 2)),
    )
    yield (
        "value_of_other_length",
        "As many values as keys are wanted.",
        plain((2, 2), (3, 2), (2, 2)),
    )
    yield (
        "mask_too_long",
        "More columns than there are keys.",
        plain((1, 1, 2, 4), (1, 1, 3, 4), mask=tensor((2, 5), 4)),
    )
    yield (
        "types_differ",
        "Query and key are of one type.",
        plain((2, 2), (3, 2)) | {"key": tensor((3, 2), 2, "FLOAT64")},
    )
    yield (
        "valid_lengths_of_other_number",
        "One number for each batch entry.",
        plain((2, 1, 2, 4), (2, 1, 3, 4), valid_lengths=[3]),
    )
    yield (
        "softcap_negative",
        "Zero, for none, or more.",
        plain((2, 2), (2, 2), options={"softcap": -1}),
    )


def scripts():
    """Name, description, config, steps without what they are answered."""
    small = {"kv_heads": 2, "head_size": 16}

    def rows(n, seed, data_type="FLOAT32", heads=2, size=16):
        return tensor((heads, n, size), seed, data_type)

    def append(session, n, seed, layer=0, data_type="FLOAT32"):
        return {
            "do": "append",
            "session": session,
            "layer": layer,
            "key": rows(n, seed, data_type),
            "value": rows(n, seed + 1, data_type),
        }

    def attend(session, n, seed, layer=0, data_type="FLOAT32", **more):
        query = rows(n, seed, data_type, heads=4)
        return {
            "do": "attend",
            "session": session,
            "layer": layer,
            "query": query,
            **more,
        }

    def step(session, seed, n=1, layer=0, data_type="FLOAT32", **more):
        return {
            **append(session, n, seed, layer, data_type),
            **attend(session, n, seed + 2, layer, data_type, **more),
            "do": "step",
        }

    yield (
        "decode",
        "A prompt, steps, queries that see all tokens.",
        small,
        [
            append("a", 300, 1),
            *(step("a", 10 * n) for n in range(1, 6)),
            attend("a", 4, 3),
            attend("a", 4, 3, not_causal=True),
        ],
    )
    yield (
        "layers",
        "Layers have lengths of their own.",
        small | {"num_layers": 3},
        [
            append("a", 5, 1, layer=2),
            step("a", 3, layer=1, n=4),
            step("a", 7, layer=2),
            attend("a", 1, 5, layer=0),
            append("a", 1, 1, layer=3),
        ],
    )
    yield (
        "fork_and_truncate",
        "A fork shares tokens, and goes its own way.",
        small,
        [
            append("a", 7, 1),
            {"do": "fork", "session": "a", "target": "b"},
            {"do": "truncate", "session": "b", "length": 5},
            step("b", 20),
            step("a", 30),
            attend("b", 2, 5),
            attend("a", 2, 5),
            {"do": "truncate", "session": "b", "length": 99},
            {"do": "truncate", "session": "b", "length": 0},
            attend("b", 1, 5),
        ],
    )
    yield (
        "two_objects",
        "Whoever is behind is told the true length, and catches up.",
        small,
        [
            append("a", 7, 1),
            {"do": "open", "session": "a", "target": "other"},
            append("other", 2, 3),
            attend("a", 1, 5, any_length=True),
            append("a", 1, 5),
            step("a", 5),
            {"do": "refresh", "session": "a"},
            step("a", 5),
        ],
    )
    yield (
        "batch",
        "Items of several sessions in one message; one of them fails.",
        small,
        [
            append("a", 7, 1),
            {"do": "fork", "session": "a", "target": "b"},
            {"do": "fork", "session": "a", "target": "c"},
            {"do": "open", "session": "b", "target": "late"},
            step("b", 20),
            {
                "do": "batch",
                "items": [
                    step("a", 30),
                    step("late", 40),
                    attend("c", 1, 50),
                    append("c", 2, 60, layer=9),
                ],
            },
        ],
    )
    yield (
        "bfloat16",
        "Stored as bfloat16; queries of that type.",
        small | {"data_type": "DATA_TYPE_BFLOAT16"},
        [
            append("a", 20, 1, data_type="BFLOAT16"),
            step("a", 3, data_type="BFLOAT16"),
            attend("a", 1, 7),
        ],
    )
    yield (
        "window",
        "A layer that keeps its last tokens only.",
        small | {"retain_window": [64], "rollback_tokens": 0},
        [
            step("a", 1, n=400, options={"window": {"left": 63}}),
            step("a", 3, options={"window": {"left": 63}}),
            attend("a", 1, 5),
            {"do": "truncate", "session": "a", "length": 3},
        ],
    )
    yield (
        "large_append",
        "Twenty megabytes: more than a call appends.",
        {"kv_heads": 8, "head_size": 128},
        [
            {
                "do": "append",
                "session": "a",
                "layer": 0,
                "key": rows(2500, 1, heads=8, size=128),
                "value": rows(2500, 2, heads=8, size=128),
            },
            {
                "do": "attend",
                "session": "a",
                "layer": 0,
                "query": rows(1, 3, heads=8, size=128),
            },
        ],
    )
    yield (
        "gone",
        "A deleted session is unknown to the objects of it.",
        small,
        [
            append("a", 3, 1),
            {"do": "open", "session": "a", "target": "other"},
            {"do": "delete", "session": "a"},
            attend("other", 1, 3),
        ],
    )


def answered(client):
    for name, description, request in [*requests(), *refused()]:
        case = {"name": name, "description": description, "request": request}
        yield case | play.compute(client, request)


def played(client):
    for name, description, config, steps in scripts():
        yield {
            "name": name,
            "description": description,
            "config": config,
            "steps": play.script(client, config, steps),
        }


def main():
    with Client(sys.argv[1], timeout=60) as client:
        for name, cases in (("digests", answered), ("sessions", played)):
            text = json.dumps({"cases": list(cases(client))}, indent=1)
            (HERE / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
