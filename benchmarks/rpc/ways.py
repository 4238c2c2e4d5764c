"""The ways to call: this service's, those of others, and parts of a call."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

from benchmarks.load.programs import (
    BINARIES,
    REPOSITORY,
    SERVER,
    unknown_flags,
)

RPC_BENCH = BINARIES / "rpc_bench"
PYTHON = [sys.executable, "-m"]
# Its environment has the NumPy of requirements-triton.txt.
TRITON_PYTHON = REPOSITORY / "build/rpc-triton-venv/bin/python"

# Kinds.
OURS, PEER, PART = "ours", "peer", "part"

# What the server of the rows about shared memory is started with, and a socket.
SHARED_MEMORY_FLAG = "--shared-memory"
# The others let calls wait as long as they like.
OWN_FLAGS = ("--log-level=off", "--listen=127.0.0.1:0", "--max-queue=1m")


@dataclasses.dataclass(frozen=True)
class Service:
    """A server program; it tells an address for each of `transports`."""

    command: tuple
    transports: tuple = ("tcp",)
    env: tuple = ()


@dataclasses.dataclass(frozen=True)
class Way:
    name: str
    title: str
    kind: str
    # The client program, but for the address, which comes last.
    command: tuple
    # Names of a service and of one of its transports; empty: none.
    service: str = ""
    transport: str = "tcp"
    # Whether bytes go through a socket that could lead to another machine.
    network: bool = False
    # Whether it computes, so that its answer can be checked.
    answers: bool = True
    env: tuple = ()
    # Whether many clients at once are of interest.
    many: bool = True
    # Why it cannot be measured here.
    missing: str = ""


def services(folder):
    """By name; `folder` is for their Unix sockets and other files."""

    def python(peer, attention="torch_attention", program=sys.executable):
        words = ("-m", "benchmarks.rpc.server", peer, attention)
        return Service((program, *words))

    own = (SERVER, *OWN_FLAGS)
    triton = python("triton", program=TRITON_PYTHON)
    # Where it puts itself together, some hundred megabytes.
    home = (("PYTRITON_HOME", str(folder)),)
    return {
        "attention": Service(
            (*own, f"--listen=unix:{folder}/attention"), ("tcp", "unix")
        ),
        "attention-memory": Service(
            (
                *own,
                f"--listen=unix:{folder}/memory",
                f"{SHARED_MEMORY_FLAG}=unix:{folder}/regions",
            ),
            ("tcp", "unix"),
        ),
        "bare": Service(
            (RPC_BENCH, "--serve-bare", folder),
            ("tcp", "unix", "tcp-socket", "unix-socket"),
        ),
        "flight": python("arrow_flight"),
        "flight-bare": python("arrow_flight", "nothing"),
        "grpcio": python("python_grpc"),
        "fastapi": python("raw_http"),
        "triton": dataclasses.replace(triton, env=home),
    }


def cxx(contender):
    return (RPC_BENCH, contender)


def python(peer):
    return (*PYTHON, "benchmarks.rpc.client", peer)


def python_core():
    """What the installed Python client is made of: "native" or "pure"."""
    package = Path(importlib.util.find_spec("attention_client").origin).parent
    return "native" if [*package.rglob("*.so")] else "pure"


def all_ways():
    pure = (
        ""
        if python_core() == "native"
        else "the Python client has no native core here: the rows above are it"
    )
    no_memory = (
        f"this server has no {SHARED_MEMORY_FLAG}"
        if unknown_flags([SHARED_MEMORY_FLAG])
        else ""
    )
    unix = {"service": "attention", "transport": "unix"}
    tcp = {"service": "attention", "network": True}
    # The clients share memory by themselves with a server that offers it.
    memory = {"service": "attention-memory", "transport": "unix"}
    no_python_memory = no_memory or (
        pure and "only the native core shares memory"
    )
    pure_core = {
        "many": False,
        "env": (("ATTENTION_CLIENT_CORE", "pure"),),
        "missing": pure,
    }
    own = python("own_client")
    return [
        Way("cpp-tcp", "C++ client, TCP", OURS, cxx("client"), **tcp),
        Way("cpp-unix", "C++ client, Unix socket", OURS, cxx("client"), **unix),
        Way(
            *("cpp-memory", "C++ client, shared memory, copied in", OURS),
            cxx("client"),
            **memory,
            missing=no_memory,
        ),
        Way(
            *("cpp-in-place", "C++ client, shared memory, in place", OURS),
            cxx("client_in_place"),
            **memory,
            missing=no_memory,
        ),
        Way(
            *("cpp-into", "C++ client, TCP, into given memory", OURS),
            cxx("client_into_memory"),
            many=False,
            **tcp,
        ),
        Way(
            *("cpp-async", "C++ client, TCP, asynchronous", OURS),
            cxx("client_async"),
            many=False,
            **tcp,
        ),
        Way(
            *("cpp-generated", "C++, generated classes, TCP", OURS),
            cxx("generated"),
            many=False,
            **tcp,
        ),
        Way("py-tcp", "Python client, TCP", OURS, own, **tcp),
        Way("py-unix", "Python client, Unix socket", OURS, own, **unix),
        Way(
            *("py-memory", "Python client, shared memory, copied in", OURS),
            own,
            **memory,
            missing=no_python_memory,
        ),
        Way(
            *("py-in-place", "Python client, shared memory, of empty()", OURS),
            python("own_client_in_place"),
            **memory,
            missing=no_python_memory,
        ),
        Way(
            *("py-pure-tcp", "Python client, pure core, TCP", OURS, own),
            **tcp,
            **pure_core,
        ),
        Way(
            *("py-pure-unix", "Python client, pure core, Unix socket"),
            *(OURS, own),
            **unix,
            **pure_core,
        ),
        Way(
            *("flight", "Arrow Flight", PEER, python("arrow_flight")),
            service="flight",
            network=True,
        ),
        Way(
            *("grpcio", "Python grpcio, bytes", PEER, python("python_grpc")),
            service="grpcio",
            network=True,
        ),
        Way(
            *("fastapi", "FastAPI, raw body", PEER, python("raw_http")),
            service="fastapi",
            network=True,
        ),
        Way(
            *("triton", "Triton, gRPC", PEER, python("triton")),
            service="triton",
            network=True,
        ),
        Way(
            *("triton-memory", "Triton, shared memory, in place", PEER),
            python("triton_memory"),
            service="triton",
        ),
        Way(
            *("triton-memory-copied", "Triton, shared memory, copied in"),
            *(PEER, python("triton_memory_copied")),
            service="triton",
        ),
        part("transfer", "bytes over gRPC, TCP", "transfer", "tcp"),
        part(
            "transfer-unix", "bytes over gRPC, Unix socket", "transfer", "unix"
        ),
        part("echo", "request and back over gRPC, TCP", "echo", "tcp"),
        Way(
            *("flight-bare", "Arrow Flight, nothing computed", PART),
            python("arrow_flight"),
            service="flight-bare",
            answers=False,
            many=False,
        ),
        Way(
            *("kernel", "this kernel, no server", PART, cxx("compute")),
            many=False,
        ),
        Way(
            *("torch", "PyTorch, no server", PART),
            python("torch_attention"),
            many=False,
        ),
        part("tcp", "bytes over a TCP socket", "sockets", "tcp-socket"),
        part("unix", "bytes over a Unix socket", "sockets", "unix-socket"),
        Way(
            *("memcpy", "memcpy", PART, cxx("memcpy")),
            answers=False,
            many=False,
        ),
    ]


def part(name, title, contender, transport):
    """Bytes there and back, nothing computed."""
    return Way(
        *(name, title, PART, cxx(contender), "bare", transport),
        answers=False,
        many=False,
    )
