"""The scenario of README.md, with the Python client.

PYTHONPATH=tests build/venv/bin/python -m polyglot.scenario --server=HOST:PORT
    --misbehaving=HOST:PORT --misbehaving-http=HOST:PORT
"""

import argparse
import asyncio
import json
import secrets
import urllib.request

from attention_client import AttentionError, Cancelled, Client, aio
from vectors.pattern import digest, fill


def tensor(*shape, seed, data_type="FLOAT32"):
    return fill(
        {
            "data_type": f"DATA_TYPE_{data_type}",
            "shape": shape,
            "seed": seed,
        }
    )


def attend_rows(seed):
    return tensor(4, 1, 16, seed=seed)


def compute(client):
    output = client.compute(
        tensor(2, 8, 33, 64, seed=1),
        tensor(2, 2, 57, 64, seed=2),
        tensor(2, 2, 57, 64, seed=3),
        causal="bottom_right",
        window=(40, None),
    ).output
    print("compute f32", digest(output))
    query, key, value = (
        tensor(1, 4, 16, 32, seed=seed, data_type="BFLOAT16")
        for seed in (4, 5, 6)
    )
    print("compute bf16", digest(client.compute(query, key, value).output))


def refused(client):
    try:
        client.compute(
            tensor(2, 2, seed=1), tensor(3, 4, seed=2), tensor(2, 2, seed=3)
        )
    except AttentionError as error:
        field = error.field_violations[0].field
        print("refused", error.code.name, error.reason, field)


def busy(address, http_address):
    token = f"busy_then_ok.{secrets.token_hex(8)}"
    row = tensor(1, 4, seed=1)
    with Client(address, token=token, timeout=10) as client:
        client.compute(row, row, row)
    url = f"http://{http_address}/attempts?token={token}"
    with urllib.request.urlopen(url) as answer:
        print("busy OK", len(json.load(answer)))


def session(client):
    first = client.create_session(kv_heads=2, head_size=16)
    length = first.append(tensor(2, 7, 16, seed=7), tensor(2, 7, 16, seed=8))
    print("session append", length)
    result = first.step(
        attend_rows(11), tensor(2, 1, 16, seed=9), tensor(2, 1, 16, seed=10)
    )
    print("session step", first.length, digest(result.output))
    with first.fork() as fork:
        before = fork.length
        fork.truncate(5)
        output = fork.attend(attend_rows(12)).output
        print(f"session fork {before} truncate {fork.length}", digest(output))
    second = client.get_session(first.id)
    second.append(tensor(2, 1, 16, seed=13), tensor(2, 1, 16, seed=14))
    try:
        first.append(tensor(2, 1, 16, seed=15), tensor(2, 1, 16, seed=16))
    except AttentionError as error:
        name = error.code.name
        print("session conflict", name, error.reason, error.length)
    first.refresh()
    output = first.attend(attend_rows(12)).output
    print("session parent", first.length, digest(output))
    first.delete()


async def cancel(address):
    row = tensor(1, 4, seed=1)
    token = f"hang.{secrets.token_hex(8)}"
    async with aio.Client(address, token=token) as client:
        call = asyncio.ensure_future(client.compute(row, row, row))
        await asyncio.sleep(0.1)
        call.cancel()
        try:
            await call
        except (asyncio.CancelledError, Cancelled):
            print("cancel CANCELLED")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--misbehaving", required=True)
    parser.add_argument("--misbehaving-http", required=True)
    flags = parser.parse_args()
    with Client(flags.server, timeout=60) as client:
        compute(client)
        refused(client)
        busy(flags.misbehaving, flags.misbehaving_http)
        session(client)
    asyncio.run(cancel(flags.misbehaving))


if __name__ == "__main__":
    main()
