"""Measures each language's client against its generated stub, used as tutorials
do: ./dev bench rpc --languages [FLAG...]

Every language has a program that makes the same calls both ways, in turns: its
client's, and the stub's with tensors made of the language's usual arrays. What
counts is the ratio of the medians within one run of the program.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.load.programs import Server, cpu_name, write_results

REPOSITORY = Path(__file__).resolve().parents[2]
# A decode step's keys and values, which a stub copies, twice as fast.
LEAST_DECODE_SPEEDUP = 2


@dataclasses.dataclass(frozen=True)
class Language:
    folder: str
    # Commands, run in the folder.
    builds: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]

    def build(self):
        for command in self.builds:
            subprocess.run(
                command, cwd=self.path, check=True, stdout=sys.stderr
            )

    def lines(self, server, seconds):
        """What one run prints: case, way, p50_ms and calls of each line."""
        command = [*self.run, "--server", server.address]
        text = subprocess.run(
            [*command, "--seconds", str(seconds)],
            cwd=self.path,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        return [json.loads(line) for line in text.splitlines()]

    @property
    def path(self):
        return REPOSITORY / self.folder


LANGUAGES = {
    "Go": Language(
        "client/go",
        (("go", "build", "-o", "../../build/bench/go", "./bench"),),
        ("../../build/bench/go",),
    ),
    "TypeScript": Language(
        "client/typescript",
        (("npm", "ci", "--silent"), ("npm", "run", "--silent", "build")),
        ("node", "examples/bench.js"),
    ),
    "Java": Language("client/java/examples", (), ("./bench",)),
    "Rust": Language(
        "client/rust",
        (("cargo", "build", "-q", "--release", "--example", "bench"),),
        ("cargo", "run", "-q", "--release", "--example", "bench", "--"),
    ),
}


def measure(language, server, rounds, seconds):
    """Medians over the rounds, by case: of both ways, and of their ratio."""
    ways = {}
    for _ in range(rounds):
        for line in language.lines(server, seconds):
            case = ways.setdefault(line["case"], {"client": [], "stub": []})
            case[line["way"]].append(line["p50_ms"])
    found = {}
    for case, times in ways.items():
        pairs = zip(times["client"], times["stub"], strict=True)
        found[case] = {way: statistics.median(ms) for way, ms in times.items()}
        found[case]["stub_over_client"] = statistics.median(
            stub / client for client, stub in pairs
        )
    return found


def missed(name, found):
    """The bars that a language misses, in words."""
    for case, times in found.items():
        ratio = round(times["stub_over_client"], 2)
        least = LEAST_DECODE_SPEEDUP if case == "decode" else 1
        if ratio < least:
            yield f"{name}, {case}: {ratio} x as fast as the stub, wanted {least}"


def table(found):
    lines = [
        "| | tiny: client, stub ms | ratio | 128: client, stub ms | ratio | decode: client, stub ms | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cases in found.items():
        cells = []
        for case in ("tiny", "128", "decode"):
            times = cases[case]
            cells.append(f"{times['client']:.3g}, {times['stub']:.3g}")
            cells.append(f"{times['stub_over_client']:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench rpc --languages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=LANGUAGES, default=LANGUAGES
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of a case")
    flags = parser.parse_args()
    (REPOSITORY / "build/bench").mkdir(parents=True, exist_ok=True)
    found = {}
    with Server() as server:
        for name in flags.only:
            LANGUAGES[name].build()
            found[name] = measure(
                LANGUAGES[name], server, flags.rounds, flags.seconds
            )
    print(table(found))
    misses = [line for name in found for line in missed(name, found[name])]
    print("\n".join(misses) or "every bar is met")
    machine = {"cpu": cpu_name(), "cores": os.cpu_count()}
    write_results("languages", {"machine": machine, "languages": found})
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
