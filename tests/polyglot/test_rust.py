"""The client in Rust: its formatter, linter and tests, the crate as it would be
published, and what its README shows."""

import json
import re
import shutil
import tarfile

import pytest

from polyglot.places import CLIENTS, REPOSITORY

CRATE = CLIENTS / "rust"
TARGET = REPOSITORY / "build/cargo"
NAME = "attention-client"

pytestmark = pytest.mark.skipif(
    shutil.which("cargo") is None,
    reason="no cargo: rustup, or the packages of tools/packages/rust.txt",
)


@pytest.fixture(scope="module")
def cargo(run):
    def cargo(*arguments, cwd=CRATE, **variables):
        return run(
            "cargo",
            *arguments,
            cwd=cwd,
            timeout=1800,
            CARGO_TARGET_DIR=str(TARGET),
            CARGO_TERM_COLOR="never",
            **variables,
        )

    return cargo


def test_format(cargo):
    if shutil.which("cargo-fmt") is None:
        pytest.skip("no rustfmt")
    cargo("fmt", "--check")


@pytest.mark.parametrize(
    "features",
    [("--all-features", "--all-targets"), ("--no-default-features", "--lib")],
    ids=["all", "none"],
)
def test_lint(cargo, features):
    if shutil.which("cargo-clippy") is None:
        pytest.skip("no clippy: Debian's packages have none")
    cargo("clippy", "--locked", *features, "--", "-D", "warnings")


def test_documentation(cargo):
    cargo(
        "doc",
        "--locked",
        "--all-features",
        "--no-deps",
        RUSTDOCFLAGS="-D warnings",
    )


def test_the_runner(cargo):
    output = cargo("test", "--locked", "--all-features", "--", "--show-output")
    assert "skipped: " not in output


def test_random_vectors(cargo, random_vectors):
    output = cargo(
        "test",
        "--locked",
        "--all-features",
        "--test",
        "service",
        "--",
        "--show-output",
        "digests",
        "scripts",
        **random_vectors,
    )
    assert "2 passed" in output
    assert "skipped: " not in output


def test_scenario(cargo, scenario):
    flags, expected = scenario
    output = cargo(
        "run",
        "-q",
        "--locked",
        "--all-features",
        "--example",
        "scenario",
        "--",
        *flags,
    )
    assert output == expected


def test_benchmark_runs(cargo, server):
    output = cargo(
        "run",
        "-q",
        "--locked",
        "--all-features",
        "--example",
        "bench",
        "--",
        f"--server={server.address}",
        "--seconds=1",
    )
    lines = [json.loads(line) for line in output.splitlines()]
    ways = [(line["case"], line["way"]) for line in lines]
    assert ways == [
        (case, way)
        for case in ("tiny", "128", "decode")
        for way in ("client", "stub")
    ]
    assert all(line["p50_ms"] > 0 and line["calls"] > 0 for line in lines)


@pytest.fixture(scope="module")
def package(cargo, tmp_path_factory):
    """The crate as it would be published, unpacked."""
    cargo("package", "--locked", "--allow-dirty", "--no-verify", "-q")
    version = re.search(
        r'^version = "(.*)"', (CRATE / "Cargo.toml").read_text(), re.MULTILINE
    )
    name = f"{NAME}-{version[1]}"
    folder = tmp_path_factory.mktemp("package")
    with tarfile.open(TARGET / f"package/{name}.crate") as crate:
        crate.extractall(folder, filter="data")
    return folder / name


def test_package_holds_what_it_needs(package):
    for ours, theirs in (
        ("LICENSE", REPOSITORY / "LICENSE"),
        (
            "proto/attention/v1/attention.proto",
            REPOSITORY / "proto/attention/v1/attention.proto",
        ),
        (
            "proto/attention/v1/session.proto",
            REPOSITORY / "proto/attention/v1/session.proto",
        ),
    ):
        assert (package / ours).read_bytes() == theirs.read_bytes(), ours
        assert not (package / ours).is_symlink()


def examples():
    """The programs of the README, each with what it prints."""
    blocks = re.findall(
        r"```rust,no_run\n(.*?)```",
        (CRATE / "README.md").read_text(),
        re.DOTALL,
    )
    programs = []
    for block in blocks:
        code = re.sub(r"^// .*\n", "", block, flags=re.MULTILINE)
        printed = re.findall(r"^// (.*)", block, re.MULTILINE)
        programs.append((code, printed))
    return programs


def test_readme_in_an_empty_project(cargo, package, server, tmp_path):
    programs = examples()
    assert len(programs) == 5
    (tmp_path / "src/bin").mkdir(parents=True)
    (tmp_path / "Cargo.toml").write_text(
        '[package]\nname = "mine"\nversion = "0.0.0"\nedition = "2024"\n\n'
        "[dependencies]\n"
        f'attention-client = {{ path = "{package}" }}\n'
        'tokio = { version = "1", features = ["macros", "rt-multi-thread"] }\n'
    )
    # The versions that are known to work, of what is fetched already.
    shutil.copy(CRATE / "Cargo.lock", tmp_path)
    for number, (code, _) in enumerate(programs):
        if "fn main" not in code:
            code += "\nfn main() {\n    connect().unwrap_err();\n}\n"
        code = code.replace("127.0.0.1:50051", server.address)
        (tmp_path / f"src/bin/example{number}.rs").write_text(code)
    cargo("build", "-q", "--offline", cwd=tmp_path)
    for number, (_, printed) in enumerate(programs):
        output = cargo(
            "run", "-q", "--offline", "--bin", f"example{number}", cwd=tmp_path
        )
        assert output.splitlines() == printed
