"""What others do: keys and values come to the process that computes.

    python -m benchmarks.sessions.peers LENGTH...

For each length, of one layer in FLOAT32: its keys and values are fetched from
another process, and PyTorch computes a decode step over them. Prints a JSON
object: of each peer the median milliseconds by length, and PyTorch's part.

mooncake  the Mooncake store, over TCP: a process with a segment of memory, and
          this one with a buffer that it has registered
lmcache   LMCache's server over gRPC, with LMCache's own client for CPUs; this
          takes the time of its RETRIEVE, and adds PyTorch's
"""

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.rpc.torch_attention import attend

HEADS, KV_HEADS, SIZE = 32, 8, 128
ROUNDS = 7
TOOLS = Path(sys.executable).parent


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@contextlib.contextmanager
def running(*command, ready, environment=None):
    """A process, once it has written `ready`."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            for _ in range(600):
                log.seek(0)
                text = log.read()
                if ready in text:
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {text[-2000:]}")
                time.sleep(0.1)
            else:
                raise RuntimeError(f"{command[0]} is not ready: {text[-2000:]}")
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def tensor(heads, tokens, seed):
    numbers = np.random.default_rng(seed).standard_normal(
        (1, heads, tokens, SIZE), np.float32
    )
    return np.ascontiguousarray(numbers)


def median_ms(step):
    step()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def torch_ms(tokens):
    query = tensor(HEADS, 1, 0)
    key, value = tensor(KV_HEADS, tokens, 1), tensor(KV_HEADS, tokens, 2)
    return median_ms(lambda: attend(query, key, value, causal=False))


def open_store(master, metadata, segment):
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    failed = store.setup(
        "127.0.0.1",
        f"http://127.0.0.1:{metadata}/metadata",
        segment,
        64 << 20,
        "tcp",
        "",
        f"127.0.0.1:{master}",
    )
    if failed:
        raise RuntimeError(f"Mooncake's setup() returned {failed}")
    return store


def hold_for_mooncake(master, metadata, tokens):
    """Puts keys and values into a segment of this process, and stays."""
    store = open_store(master, metadata, 4 << 30)
    for name, seed in [("key", 1), ("value", 2)]:
        failed = store.put(name, tensor(KV_HEADS, tokens, seed).tobytes())
        if failed:
            raise RuntimeError(f"Mooncake's put() returned {failed}")
    print("holding", flush=True)
    time.sleep(3600)


def mooncake_ms(tokens):
    master, metadata, admin = free_port(), free_port(), free_port()
    query = tensor(HEADS, 1, 0)
    with (
        running(
            TOOLS / "mooncake_master",
            f"--rpc_port={master}",
            "--rpc_address=127.0.0.1",
            f"--metrics_port={admin}",
            "--enable_http_metadata_server=true",
            "--http_metadata_server_host=127.0.0.1",
            f"--http_metadata_server_port={metadata}",
            # What is read must not be given up meanwhile.
            "--default_kv_lease_ttl=600000",
            ready="server started on port",
        ),
        running(
            sys.executable,
            "-m",
            "benchmarks.sessions.peers",
            "--hold",
            master,
            metadata,
            tokens,
            ready="holding",
        ),
    ):
        store = open_store(master, metadata, 0)
        buffers = {
            name: np.empty((1, KV_HEADS, tokens, SIZE), np.float32)
            for name in ["key", "value"]
        }
        for buffer in buffers.values():
            store.register_buffer(buffer.ctypes.data, buffer.nbytes)

        def step():
            for name, buffer in buffers.items():
                got = store.get_into(name, buffer.ctypes.data, buffer.nbytes)
                if got != buffer.nbytes:
                    raise RuntimeError(f"Mooncake's get_into() returned {got}")
            attend(query, buffers["key"], buffers["value"], causal=False)

        ms = median_ms(step)
        for name, seed in [("key", 1), ("value", 2)]:
            if not np.array_equal(
                buffers[name], tensor(KV_HEADS, tokens, seed)
            ):
                raise RuntimeError(f"Mooncake returned another {name}")
        store.close()
    return ms


def lmcache_ms(tokens):
    rpc, http = free_port(), free_port()
    block = 16
    shape = f"(2,{2 * tokens // block},{block},{KV_HEADS},{SIZE}):float32:1"
    quiet = {"LMCACHE_DISABLE_BANNER": "1", "LMCACHE_TRACK_USAGE": "false"}
    with (
        running(
            TOOLS / "lmcache",
            "server",
            "--transport=grpc",
            "--host=127.0.0.1",
            f"--port={rpc}",
            "--http-host=127.0.0.1",
            f"--http-port={http}",
            "--l1-size-gb=4",
            "--eviction-policy=LRU",
            "--supported-transfer-mode=engine_driven",
            "--disable-observability",
            ready="Application startup complete",
            environment=quiet,
        ),
        tempfile.TemporaryDirectory() as folder,
    ):
        result = Path(folder) / "result.json"
        run = subprocess.run(
            [
                TOOLS / "lmcache",
                "bench",
                "server",
                f"--rpc-url=grpc://127.0.0.1:{rpc}",
                f"--url=http://127.0.0.1:{http}",
                "--mode=cpu",
                "--transfer-mode=engine_driven",
                f"--num-tokens={tokens}",
                f"--kvcache-shape-spec={shape}",
                f"--num-blocks={2 * tokens // block}",
                "--start=0",
                f"--end={ROUNDS}",
                "--interval=0",
                "--format=json",
                f"--output={result}",
            ],
            capture_output=True,
            text=True,
            env={**os.environ, **quiet},
            check=False,
        )
        said = run.stdout + run.stderr
        if run.returncode != 0 or len(re.findall("MATCH OK", said)) != ROUNDS:
            raise RuntimeError(f"LMCache's client failed: {said[-2000:]}")
        metrics = json.loads(result.read_text())["metrics"]
        return metrics["warm_retrieve"]["warm_retrieve_p50"]


def main():
    if sys.argv[1] == "--hold":
        return hold_for_mooncake(*map(int, sys.argv[2:]))
    lengths = [int(length) for length in sys.argv[1:]]
    found = {"torch": {}, "mooncake": {}, "lmcache": {}}
    for tokens in lengths:
        torch = found["torch"][tokens] = torch_ms(tokens)
        found["mooncake"][tokens] = mooncake_ms(tokens)
        found["lmcache"][tokens] = lmcache_ms(tokens) + torch
    print(json.dumps(found))


if __name__ == "__main__":
    main()
