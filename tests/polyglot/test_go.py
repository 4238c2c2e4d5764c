"""The client in Go: its own tests, its module as it would be published, and what
its README shows."""

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from polyglot.places import CLIENTS, REPOSITORY

GO = CLIENTS / "go"
MODULE = "github.com/attention-service/attention-service/client/go"
VERSION = re.search(
    r"project\(attention_service VERSION ([0-9.]+)",
    (REPOSITORY / "CMakeLists.txt").read_text(),
)[1]
STATICCHECK = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"

# What the pieces of the README stand in, which are no programs of their own.
PIECE = """\
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc/codes"

	attention "github.com/attention-service/attention-service/client/go"
)

var _, _, _, _ = errors.As, fmt.Println, time.Second, codes.OK

func main() {
	client, err := attention.New("127.0.0.1:50051")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := piece(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

func piece(ctx context.Context, client *attention.Client) error {
%s
	return nil
}
"""


@pytest.fixture(scope="session")
def go(run):
    """Runs the go command, which is fetched where there is none."""
    folder = run(GO / "toolchain.sh").strip()

    def go(*arguments, cwd=GO, program="go", **options):
        return run(f"{folder}/{program}", *arguments, cwd=cwd, **options)

    return go


def test_version():
    source = (GO / "version.go").read_text()
    assert f'const Version = "{VERSION}"' in source


def test_format(go):
    assert go("-l", ".", program="gofmt") == ""


def test_lint(go):
    go("vet", "./...")
    go("run", STATICCHECK, "./...")


def test_own_tests(go):
    output = go(
        "test",
        "-race",
        "-count=1",
        "-v",
        "./...",
        PROTOC=f"{sys.executable} -m grpc_tools.protoc",
    )
    # All that these tests need is here, but for an address that is not loopback.
    skipped = set(re.findall(r"--- SKIP: (\S+)", output))
    assert skipped <= {"TestPlaintextTokensStayOnTheMachine"}
    assert "--- PASS: ExampleClient_Compute" in output


def test_random_vectors(go, random_vectors):
    tests = "TestDigests|TestSessionScripts"
    output = go("test", "-count=1", "-v", "-run", tests, ".", **random_vectors)
    assert output.count("--- PASS: TestDigests/random-") == 150
    assert output.count("--- PASS: TestSessionScripts/random-") >= 30


def test_scenario(go, run, scenario, tmp_path):
    flags, expected = scenario
    program = tmp_path / "scenario"
    go("build", "-o", program, "./examples/scenario")
    assert run(program, *flags) == expected


def test_loopback_is_asked_for_through_no_proxy(go, run, scenario, tmp_path):
    flags, expected = scenario
    program = tmp_path / "scenario"
    go("build", "-o", program, "./examples/scenario")
    nobody = "http://127.0.0.1:1"
    proxies = {"HTTPS_PROXY": nobody, "HTTP_PROXY": nobody}
    assert run(program, *flags, **proxies) == expected


def test_benchmark_program(go, server):
    output = go("run", "./bench", "--server", server.address, "--seconds=0.1")
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["case"], line["way"]) for line in lines] == [
        (case, way)
        for case in ("tiny", "128", "decode")
        for way in ("client", "stub")
    ]


def publish(run, folder):
    """The module as a proxy serves it: the files that are in the repository."""
    name = f"{MODULE}@v{VERSION}"
    place = folder / MODULE / "@v"
    place.mkdir(parents=True)
    (place / "list").write_text(f"v{VERSION}\n")
    info = {"Version": f"v{VERSION}", "Time": "2026-01-01T00:00:00Z"}
    (place / f"v{VERSION}.info").write_text(json.dumps(info))
    (place / f"v{VERSION}.mod").write_text((GO / "go.mod").read_text())
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
        cwd=GO,
    )  # fmt: skip
    with zipfile.ZipFile(place / f"v{VERSION}.zip", "w") as archive:
        for file in filter(None, listed.split("\0")):
            archive.write(GO / file, f"{name}/{file}")


@pytest.fixture(scope="session")
def project(go, run, tmp_path_factory):
    """An empty module that has only got the published one, and how to run the go
    command in it."""
    folder = tmp_path_factory.mktemp("go")
    publish(run, folder / "proxy")
    kept, upstream = go("env", "GOMODCACHE", "GOPROXY").split()
    variables = {
        "GOPROXY": ",".join(
            (
                (folder / "proxy").as_uri(),
                (Path(kept) / "cache/download").as_uri(),
                upstream,
            )
        ),
        # A cache of its own: another run's module has the same version.
        "GOMODCACHE": str(folder / "cache"),
        "GOFLAGS": "-modcacherw -buildvcs=false -trimpath",
        "GOSUMDB": "off",
    }
    project = folder / "project"
    project.mkdir()

    def in_project(*arguments):
        return go(*arguments, cwd=project, **variables)

    in_project("mod", "init", "example.com/mine")
    in_project("get", f"{MODULE}@v{VERSION}")
    return project, in_project


def test_licence_is_in_the_module(project):
    _, in_project = project
    folder = in_project("list", "-m", "-f", "{{.Dir}}", MODULE).strip()
    licence = (Path(folder) / "LICENSE").read_text()
    assert licence == (REPOSITORY / "LICENSE").read_text()


def test_module_holds_text_alone(project):
    _, in_project = project
    folder = Path(in_project("list", "-m", "-f", "{{.Dir}}", MODULE).strip())
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 30
    assert [file for file in files if b"\0" in file.read_bytes()] == []


BLOCKS = re.findall(
    r"```go\n(.*?)```", (GO / "README.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme(number, project, server):
    folder, in_project = project
    block = BLOCKS[number].replace("127.0.0.1:50051", server.address)
    is_program = block.startswith("package main")
    if not is_program:
        block = (PIECE % block).replace("127.0.0.1:50051", server.address)
    (folder / "main.go").write_text(block)
    in_project("mod", "tidy")
    if "attention.example" in block:  # Its files are nowhere.
        in_project("vet", "./...")
        return
    expected = re.findall(r"fmt\.Println\(.*\) +// (.*)", block)
    assert expected
    assert in_project("run", ".").splitlines() == expected
