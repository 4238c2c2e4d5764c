"""The clients in Go and Node that client/README.md shows."""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest

from e2e.server_process import ServerProcess
from interop.places import PROTOS, REPOSITORY, TOOLS

README = (REPOSITORY / "client/README.md").read_text()
HERE = Path(__file__).resolve().parent

GO_HEAD = """\
package main

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	pb "interop/attention"
)

"""
NODE_HEAD = f"""\
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protoFolder = {str(PROTOS)!r};
"""
NODE_END = "module.exports = {connect, compute};\n"


def block(language, start):
    """The only block of code in that language that begins so."""
    blocks = re.findall(
        rf"```{language}\n({re.escape(start)}.*?)```", README, re.DOTALL
    )
    assert len(blocks) == 1
    return blocks[0]


SERVICE_CONFIG = block("json", '{"methodConfig"')


@pytest.fixture(scope="session")
def go_client(tool):
    folder = TOOLS / "go"
    shutil.copy(HERE / "client.go", folder)
    (folder / "readme.go").write_text(GO_HEAD + block("go", "func connect"))
    stubs = folder / "attention"
    stubs.mkdir(exist_ok=True)
    proto = "attention/v1/attention.proto"
    tool(
        "protoc",
        f"--proto_path={PROTOS}",
        *(f"--plugin={TOOLS}/bin/{name}" for name in PLUGINS),
        *(f"--{kind}_opt=M{proto}=interop/attention" for kind in KINDS),
        *(f"--{kind}_opt=module=interop" for kind in KINDS),
        *(f"--{kind}_out={folder}" for kind in KINDS),
        proto,
    )
    tool("go", "build", "-mod=mod", "-o", "client", ".", cwd=folder)
    return [folder / "client"]


KINDS = ("go", "go-grpc")
PLUGINS = ("protoc-gen-go", "protoc-gen-go-grpc")


@pytest.fixture(scope="session")
def node_client():
    folder = TOOLS / "node"
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / "client.js", folder)
    text = NODE_HEAD + block("js", "function connect") + NODE_END
    (folder / "readme.js").write_text(text)
    return ["node", folder / "client.js"]


@pytest.fixture(params=["go_client", "node_client"])
def call(request, tool):
    """Calls a server with a request of a given size; tells how it ended."""
    command = request.getfixturevalue(request.param)

    def run(address, size):
        process = tool(*command, address, SERVICE_CONFIG, size)
        return json.loads(process.stdout)

    return run


def test_answers_above_4_megabytes_come(call, address):
    assert call(address, "large") == {
        "code": 0,
        "bytes": 2048 * 600 * 4,
        "first": 1.5,
    }


def test_the_service_config_makes_it_try_four_times(call, server_binary):
    limits = [f"--max-{name}-bytes=4KiB" for name in ("request", "response")]
    with ServerProcess(
        server_binary, "--http-listen=127.0.0.1:0", *limits
    ) as server:
        http = server.process.stdout.readline().split()[-1]
        assert call(server.address, "1024")["code"] == 0
        assert call(server.address, "8192") == {"code": 8}  # RESOURCE_EXHAUSTED
        with urllib.request.urlopen(f"{http}/metrics") as response:
            metrics = response.read().decode()
    ended = re.findall(
        r'attention_calls_total\{code="(\w+)",method="ComputeAttention"\} (\d+)',
        metrics,
    )
    assert {code: int(count) for code, count in ended if count != "0"} == {
        "OK": 1,
        "RESOURCE_EXHAUSTED": 4,
    }
