"""Measures StreamAttention: ./dev bench stream [FLAG...]

A decode over many GiB of keys and values, in FLOAT32 and BFLOAT16, goes through
a server whose calls may hold 512 MiB together: the peak of its resident memory
is held to a bar. Beside it, the time of smaller ones, streamed and in one
message. The exit code is 1 if a bar was missed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.load.bars import Bar, verdict
from benchmarks.load.programs import BINARIES, MIB, Server

CLIENT = BINARIES / "stream_client"
# What a server of this size has without a call (30), its budget's part that a
# stream takes (48), and what the allocator keeps.
PEAK_BAR_MIB = 160


def stream(server, *flags):
    """What stream_client says."""
    result = subprocess.run(
        [CLIENT, f"--target={server.address}", *flags],
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{result.stderr}{server.log()}")
    return json.loads(result.stdout)


def huge(gibibytes):
    """Peaks of memory, and rates, for each type."""
    for kind in ["f32", "bf16"]:
        with Server(
            "--max-inflight-bytes=512MiB",
            "--max-request-bytes=64MiB",
            "--max-response-bytes=64MiB",
            "--default-deadline=1h",
        ) as server:
            result = stream(
                server, f"--type={kind}", f"--bytes={gibibytes << 30}"
            )
            seconds = result["seconds"][0]
            print(
                f"{kind}: {result['tokens']} tokens,"
                f" {result['bytes'] / 2**30:.2f} GiB in {seconds:.2f} s,"
                f" {result['bytes'] / seconds / 1e9:.2f} GB/s",
                flush=True,
            )
            yield Bar(
                f"peak of resident memory, {gibibytes} GiB of {kind}",
                server.peak_bytes() / MIB,
                PEAK_BAR_MIB,
                "MiB",
            )


CASES = {
    "decode 64 MiB f32": ["--bytes=67108864"],
    "decode 256 MiB bf16": ["--bytes=268435456", "--type=bf16"],
    "prefill S=T=2048 H 32/8 f32": ["--bytes=16777216", "--rows=2048"],
    "S=T=16 one head": [
        "--bytes=8192",
        "--rows=16",
        "--heads=1",
        "--kv-heads=1",
        "--head-size=64",
    ],
}


def compare():
    """Medians in ms of the same work, streamed and in one message."""
    with Server() as server:
        for name, flags in CASES.items():
            repeat = "--repeat=200" if "S=T=16" in name else "--repeat=9"
            medians = [
                1e3
                * statistics.median(
                    stream(server, repeat, *flags, *how)["seconds"]
                )
                for how in (["--unary"], [])
            ]
            print(
                f"{name:32} unary {medians[0]:9.3f} ms,"
                f" streamed {medians[1]:9.3f} ms,"
                f" ratio {medians[1] / medians[0]:.2f}",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gibibytes", type=int, default=8)
    arguments = parser.parse_args()
    begin = time.monotonic()
    compare()
    bars = list(huge(arguments.gibibytes))
    return verdict("stream", bars, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
