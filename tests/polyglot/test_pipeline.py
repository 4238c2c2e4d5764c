"""examples/pipeline: all its parts, started as people start them without containers."""

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from polyglot.places import REPOSITORY
from support import reference

PIPELINE = REPOSITORY / "examples/pipeline"
PARTS = ["attention", "embed", "search", "front"]
# A loader of compose files as Docker Compose uses it.
COMPOSE = "github.com/compose-spec/compose-go/v2/cmd@v2.10.1"
MISSING = [tool for tool in ("go", "cargo", "npm") if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the parts cannot be built without {MISSING}"
)


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


runner = module("pipeline_run", PIPELINE / "run.py")
minilm = module("minilm", PIPELINE / "embed/minilm.py")
recorded = json.loads(
    (REPOSITORY / "tests/polyglot/minilm_embeddings.json").read_text()
)
EXAMPLES = re.findall(
    r'^  "(.+)",$', (PIPELINE / "page/src/main.ts").read_text(), re.MULTILINE
)


@pytest.fixture(scope="session")
def built():
    runner.build()


@pytest.fixture(scope="session")
def pipeline(built, server_binary):
    with runner.Pipeline(server_binary) as pipeline:
        yield pipeline


class Api:
    """The front's, at HOST:PORT."""

    def __init__(self, address):
        self.address = address

    def ask(self, path, body=None):
        """The status and what the JSON says."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}/api/{path}", data
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def get(self, path, body=None, **parameters):
        """What it says, where it must say something."""
        query = urllib.parse.urlencode(parameters)
        status, answer = self.ask(f"{path}?{query}" if query else path, body)
        assert status == 200, answer
        return answer


@pytest.fixture
def api(pipeline):
    return Api(pipeline.addresses["front"])


def until(condition, seconds=30):
    """Waits for what happens in another process."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def whole_model(sentence):
    """The embedding, with the reference's attention in place of the service."""
    model = minilm.MiniLM()
    _, x = model.embed(model.tokenize([sentence]))
    for layer in range(minilm.LAYERS):
        heads = [
            tensor.transpose(1, 0, 2)[None]
            for tensor in model.project(x, layer)
        ]
        output = reference.compute(*heads).output[0].transpose(1, 0, 2)
        x = model.finish(x, output.astype(np.float32), layer)
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_embeddings_are_the_models_own(api):
    answer = api.get("embeddings", {"sentences": recorded["sentences"]})
    # The bound; the service's float32 comes to 2e-7.
    np.testing.assert_allclose(
        answer["embeddings"], recorded["embeddings"], rtol=0, atol=1e-5
    )


def test_a_sentence_alone_has_the_same_embedding(api):
    for sentence, expected in zip(
        recorded["sentences"][:3], recorded["embeddings"], strict=False
    ):
        (alone,) = api.get("embeddings", {"sentences": [sentence]})[
            "embeddings"
        ]
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6)


def test_the_reference_in_place_of_the_service_gives_the_same(api):
    sentence = "Whatever was not recorded: 12.5 % of it."
    (answer,) = api.get("embeddings", {"sentences": [sentence]})["embeddings"]
    np.testing.assert_allclose(answer, whole_model(sentence), rtol=0, atol=1e-6)


def test_search_finds_what_is_meant(api):
    assert len(EXAMPLES) == 12
    api.get("sentences", {"sentences": EXAMPLES})
    kept = api.get("sentences", {"sentences": EXAMPLES[:2]})["kept"]
    assert api.get("sentences")["sentences"][:12] == EXAMPLES
    assert kept == len(api.get("sentences")["sentences"])
    for query, found in [
        ("feline animals", EXAMPLES[:2]),
        ("travel plans", EXAMPLES[7:9]),
        ("cooking", EXAMPLES[5:7]),
        ("planets", EXAMPLES[9:11]),
    ]:
        answer = api.get("search", q=query, limit=2)
        assert {m["sentence"] for m in answer["matches"]} == set(found), query
        best, second = (m["score"] for m in answer["matches"])
        assert 1 >= best >= second > 0
        assert [t["part"] for t in answer["timings"]] == [
            "embed",
            "attention, of that",
            "search",
        ]


def test_a_sentence_finds_itself(api):
    api.get("sentences", {"sentences": EXAMPLES})
    best = api.get("search", q=EXAMPLES[7], limit=1)["matches"][0]
    assert best["sentence"] == EXAMPLES[7]
    assert best["score"] == pytest.approx(1, abs=1e-6)


def test_weights_are_those_of_the_reference(api):
    sentence = "Attention is all you need."
    model = minilm.MiniLM()
    encodings = model.tokenize([sentence])
    _, x = model.embed(encodings)
    query, key, value = (
        tensor.transpose(1, 0, 2)[None] for tensor in model.project(x, 0)
    )
    weights = reference.compute(
        query, key, value, return_scores="weights"
    ).scores[0]
    for head in (0, 11):
        answer = api.get("weights", sentence=sentence, layer=0, head=head)
        assert answer["tokens"] == encodings[0].tokens
        np.testing.assert_allclose(answer["weights"], weights[head], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "part", "words"),
    [
        ("search?q=", None, None, "q: wanted a sentence"),
        ("search?q=x&limit=0", None, None, "limit: wanted a number from 1"),
        ("weights?sentence=x&head=12", None, None, "head: wanted a number"),
        ("weights?sentence=x&layer=6", None, "embed", "wanted 0 to 5"),
        ("sentences", {"sentences": ["x", " "]}, None, "sentences[1]"),
        ("sentences", {"sentences": []}, "embed", "got 0, wanted 1 to 64"),
        ("sentences", {"sentences": ["x"] * 65}, "embed", "got 65"),
        ("sentences", {"sentences": "x"}, None, "the body: wanted"),
    ],
)
def test_wrong_requests(api, path, body, part, words):
    status, answer = api.ask(path, body)
    assert status == 400
    assert answer["error"]["code"] == "InvalidArgument"
    assert answer["error"].get("part") == part
    assert words in answer["error"]["message"]


def test_many_at_once_get_their_own_answers(api):
    api.get("sentences", {"sentences": EXAMPLES})

    def best(sentence):
        return api.get("search", q=sentence, limit=1)["matches"][0]["sentence"]

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(best, EXAMPLES * 2)) == EXAMPLES * 2


@pytest.mark.parametrize("part", PARTS[:3])
def test_a_part_that_is_gone_is_named_and_found_again(pipeline, api, part):
    pipeline.stop(part)
    try:
        status, states = api.ask("ready")
        assert status == 503
        assert {p for p, s in states.items() if s != "SERVING"} == {part}
        status, answer = api.ask("search?q=cat")
        assert status == 503, answer
        error = answer["error"]
        assert error["code"] == "Unavailable"
        # The front calls the embedder, which calls the attention service.
        assert error["part"] == ("search" if part == "search" else "embed")
        assert pipeline.addresses[part] in error["message"]
    finally:
        pipeline.start(part)
    until(lambda: api.ask("ready")[0] == 200)
    # grpcio waits a second or two before it connects again.
    until(lambda: api.ask("search?q=cat")[0] == 200)


class Hanging(grpc.GenericRpcHandler):
    """An attention service that never answers, but knows who gave up."""

    def __init__(self):
        self.remaining = None
        self.called, self.ended = threading.Event(), threading.Event()
        self.over = threading.Event()

    def service(self, details):
        def hang(_, context):
            self.remaining = context.time_remaining()
            context.add_callback(self.ended.set)
            self.called.set()
            self.over.wait(60)
            return b""

        return grpc.unary_unary_rpc_method_handler(hang)


@contextlib.contextmanager
def with_hanging(pipeline, part, *flags):
    """The handler, and the API of a pipeline in which one part calls it."""
    hanging = Hanging()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), [hanging])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    other = runner.Pipeline()
    replaced = {part, "front"}
    other.addresses = {
        name: where
        for name, where in pipeline.addresses.items()
        if name not in replaced
    }
    try:
        other.addresses["attention"] = address
        other.start(part, *flags)
        if part != "front":
            other.start("front")
        yield hanging, Api(other.addresses["front"])
    finally:
        hanging.over.set()
        other.__exit__()
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("part", "path", "most_seconds"),
    [
        # The front's deadline of 10 s, handed on.
        ("embed", "search?q=cat", 10),
        ("front", "weights?sentence=cat", 10),
        # The client's own: tonic ends the handler, and so the call, at the front's.
        ("search", "search?q=cat", 60),
    ],
)
def test_who_gives_up_ends_the_work_everywhere(
    pipeline, part, path, most_seconds
):
    with with_hanging(pipeline, part) as (hanging, api):
        connection = http.client.HTTPConnection(api.address)
        connection.request("GET", f"/api/{path}")
        assert hanging.called.wait(30)
        assert 0 < hanging.remaining <= most_seconds
        assert not hanging.ended.is_set()
        connection.close()
        assert hanging.ended.wait(5), "the call went on"


def test_a_deadline_that_passes(pipeline):
    with with_hanging(pipeline, "front", "--timeout=3s") as (hanging, api):
        status, answer = api.ask("weights?sentence=cat")
        assert status == 504
        assert answer["error"]["code"] == "DeadlineExceeded"
        assert answer["error"]["part"] == "attention"
        assert 0 < hanging.remaining <= 3
        assert hanging.ended.wait(5)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "SIGKILL", "a part ends"])
def test_nothing_stays_behind(built, server_binary, how):
    command = [sys.executable, PIPELINE / "run.py", "--no-build"]
    process = subprocess.Popen(
        [*command, f"--attention-server={server_binary}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        assert len(children) == len(PARTS)
        assert all(map(alive, children))
        if how == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)
        elif how == "a part ends":
            os.kill(children[1], signal.SIGKILL)
        else:
            process.send_signal(signal.Signals[how])
        _, log = process.communicate(timeout=30)
        expected = {"SIGKILL": -signal.SIGKILL, "a part ends": 1}
        assert process.returncode == expected.get(how, 0), log
        assert ("embed ended" in log) == (how == "a part ends")
        until(lambda: not any(map(alive, children)))


@pytest.fixture
def tab(browser, pipeline, api):
    """The page, with the examples in it. Fails if its script does."""
    api.get("sentences", {"sentences": EXAMPLES})
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    tab = context.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"http://{api.address}/")
    tab.wait_for_selector("#weights td[data-weight]")
    yield tab
    context.close()
    assert errors == []


def numbers(tab):
    cells = tab.locator("#weights td[data-weight]")
    return cells.evaluate_all(
        "cells => cells.map(c => Number(c.dataset.weight))"
    )


def test_page_searches(tab):
    tab.fill("#query", "feline animals")
    tab.get_by_role("button", name="Search").click()
    first = tab.locator("#matches li").first
    first.wait_for()
    assert first.inner_text().split(maxsplit=1)[1] in EXAMPLES[:2]
    assert "attention, of that" in tab.inner_text("#search-timings")


def test_page_adds_sentences(tab):
    tab.fill("#new", "Snow fell on the pass.\n\nIt hailed all night.\n")
    tab.get_by_role("button", name="Add", exact=True).click()
    tab.get_by_text("It hailed all night.", exact=True).wait_for()
    tab.fill("#query", "winter in the mountains")
    tab.get_by_role("button", name="Search").click()
    tab.locator("#matches", has_text="Snow fell on the pass.").wait_for()


def test_page_shows_the_weights_of_a_head(tab, api):
    sentence = "Attention is all you need."
    tab.fill("#sentence", sentence)
    tab.get_by_role("button", name="Show").click()
    tab.locator("#weights th[scope=row]", has_text="attention").wait_for()
    for layer, head in [("3", "7"), ("5", "0")]:
        tab.select_option("#layer", layer)
        tab.select_option("#head", head)
        weights = api.get("weights", sentence=sentence, layer=layer, head=head)
        expected = np.ravel(weights["weights"]).tolist()
        until(lambda expected=expected: numbers(tab) == expected)


def test_page_says_what_failed_and_recovers(tab, pipeline):
    search = tab.get_by_role("button", name="Search")
    pipeline.stop("search")
    try:
        search.click()
        error = tab.get_by_role("alert")
        error.wait_for()
        assert error.inner_text().startswith("search: ")
        assert "(Unavailable)" in error.inner_text()
    finally:
        pipeline.start("search")
    until(lambda: search.click() or not error.is_visible())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.get_by_role("button", name="Search").click()
    tab.wait_for_selector("#matches li")
    found = Axe().run(tab).response["violations"]
    assert found == [], json.dumps(found, indent=1)


def luminance(colour):
    """Relative luminance as WCAG has it, of #RRGGBB."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(
        parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_on_the_hottest_cell_can_be_read(scheme):
    # axe does not compute color-mix().
    style = (PIPELINE / "page/src/style.css").read_text()
    text, hot = (
        luminance(
            re.search(rf"--{n}: light-dark\((.*), (.*)\)", style)[scheme + 1]
        )
        for n in ("text", "hot")
    )
    assert (max(text, hot) + 0.05) / (min(text, hot) + 0.05) >= 4.5


def test_page_fits_a_phone(tab):
    tab.set_viewport_size({"width": 360, "height": 700})
    tab.get_by_role("button", name="Search").click()
    tab.wait_for_selector("#matches li")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_page_gets_all_from_the_front(tab, api):
    with urllib.request.urlopen(f"http://{api.address}/") as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_front_is_formatted_vetted_and_generated(run, tmp_path):
    assert run("gofmt", "-l", PIPELINE / "front") == ""
    run("go", "vet", "./...", cwd=PIPELINE / "front")
    protoc = f"{sys.executable} -m grpc_tools.protoc"
    run(PIPELINE / "front/generate.sh", tmp_path, PROTOC=protoc)
    # But for the version of protoc, which each machine has its own.
    for path in (PIPELINE / "front/pipelinepb").iterdir():
        kept, made = (
            re.sub(r"(?m)^// .*protoc +v.*$", "", file.read_text())
            for file in (path, tmp_path / path.name)
        )
        assert kept == made, path.name


def test_search_is_formatted_and_tested(run):
    target = {"CARGO_TARGET_DIR": str(REPOSITORY / "build/cargo")}
    search = PIPELINE / "search"
    if shutil.which("cargo-fmt"):
        run("cargo", "fmt", "--check", cwd=search)
    if shutil.which("cargo-clippy"):
        lint = ["cargo", "clippy", "--locked", "-q", "--all-targets"]
        run(*lint, "--", "-D", "warnings", cwd=search, **target)
    run("cargo", "test", "--locked", "-q", cwd=search, **target)


def test_page_is_formatted_and_typed(built, run):
    run("npm", "run", "--silent", "check", cwd=PIPELINE / "page")


def test_packages_are_those_of_the_tests():
    def pins(path):
        lines = re.findall(r"(?m)^[\w.-]+==\S+", path.read_text())
        return set(lines)

    assert pins(PIPELINE / "embed/requirements.txt") <= pins(
        REPOSITORY / "tests/requirements.txt"
    )


def test_compose_file(run):
    file = PIPELINE / "compose.yaml"
    told = run("go", "run", COMPOSE, "-format=json", file, cwd=PIPELINE)
    services = json.loads(told)["services"]
    assert sorted(services) == sorted(PARTS)
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        context = service["build"]["context"]
        assert os.path.samefile(context, REPOSITORY), name
    published = [p for s in services.values() for p in s.get("ports", [])]
    assert [p["host_ip"] for p in published] == ["127.0.0.1"]


@pytest.mark.parametrize("part", PARTS[1:])
def test_dockerfiles(part):
    """Pinned, not root, watched, and without files that are not there.

    Nothing here builds them: that needs images from a registry.
    """
    text = (PIPELINE / part / "Dockerfile").read_text()
    images = re.findall(r"(?m)^ARG \w+_IMAGE=(.*)$", text)
    assert images
    assert all(re.search(r":\d|:bookworm-\d", image) for image in images)
    assert re.findall(r"(?m)^USER (.*)$", text) == ["65532:65532"]
    assert "HEALTHCHECK" in text
    sent = (PIPELINE / part / "Dockerfile.dockerignore").read_text()
    sent = re.findall(r"(?m)^!(.*)$", sent)

    def is_sent(path):
        return any(f"{path}/".startswith(f"{s}/") for s in sent)

    for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", text):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert is_sent(source), source
            for file in (REPOSITORY / source).rglob("*.proto"):
                target = file.resolve().relative_to(REPOSITORY)
                assert is_sent(target), f"{file} leads to {target}"
