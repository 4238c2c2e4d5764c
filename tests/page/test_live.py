"""Panel "Live" against /metrics, of the real server and made-up ones."""

import hashlib
import re
import urllib.request

import numpy as np
import pytest

from attention_client import AttentionError, Client
from e2e.server_process import ServerProcess
from page.browser import http_address
from page.conftest import Page

PHASES = ["wait", "receive", "decode", "queue", "compute", "encode", "send"]


@pytest.fixture(scope="module")
def busy_url(server_binary, tmp_path_factory):
    """Where a server tells that it has had calls of a tenant, one without a
    token, and a session."""
    tokens = tmp_path_factory.mktemp("server") / "tokens"
    lines = {"search": b"secret", "idle": b"other"}
    tokens.write_text(
        "".join(
            f"{hashlib.sha256(token).hexdigest()} {name}\n"
            for name, token in lines.items()
        )
    )
    flags = ("--http-listen=127.0.0.1:0", f"--tokens={tokens}")
    with ServerProcess(server_binary, *flags) as server:
        url = http_address(server)
        rows = np.ones((2, 300, 16), np.float32)
        with (
            Client(server.address, timeout=60) as nobody,
            pytest.raises(AttentionError),
        ):
            nobody.compute([[1.0]], [[1.0]], [[1.0]])
        with Client(server.address, timeout=60, token="secret") as client:
            for _ in range(3):
                client.compute(rows[None], rows[None], rows[None])
            with pytest.raises(AttentionError):
                client.compute([[1.0]], [[1.0, 2.0]], [[1.0]])
            with client.create_session(kv_heads=2, head_size=16) as session:
                session.append(rows, rows)
                yield url


@pytest.fixture
def live(page, busy_url):
    page.url = busy_url
    return page.open("live")


def series(url):
    """{name{labels}: value} of a scrape."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (
            line.rsplit(" ", 1) for line in lines if not line.startswith("#")
        )
    }


def table(page, host):
    """{first column: other columns} of a table of texts."""
    rows = page.tab.eval_on_selector_all(
        f"{host} tbody tr",
        "rows => rows.map(row => [...row.children].map(c => c.innerText))",
    )
    return {name: cells for name, *cells in rows}


def test_calls_and_refusals(live, busy_url):
    live.said("#live-calls", "ComputeAttention")
    calls = table(live, "#live-calls")
    # Three good ones, one with bad shapes, one without a token.
    assert calls["ComputeAttention"] == ["5", "2"]
    # The client appends by Step.
    assert calls["Step"] == ["1", "0"]
    assert table(live, "#live-refusals") == {"TOKEN_MISSING": ["1"]}


def test_sessions_by_tenant(live, busy_url):
    live.said("#live-tenants", "search")
    now = series(busy_url)
    held = now['attention_tenant_session_bytes{tenant="search"}']
    assert held > 2 * 300 * 2 * 16 * 4
    tenants = table(live, "#live-tenants")
    assert tenants["search"] == ["1", f"{held / 1024:.2f} KiB", "6"]
    assert tenants["idle"] == ["0", "0 bytes", "0"]
    assert tenants["All"][:2] == ["1", f"{held / 1024:.2f} KiB of 1 GiB"]


def test_where_calls_spend_their_time(live, busy_url):
    live.said("#live-phases-note", "since the start")
    now = series(busy_url)
    name = "attention_call_phase_duration_seconds"
    key = lambda suffix, phase: f'{name}_{suffix}{{phase="{phase}"}}'
    count = max(now[key("count", phase)] for phase in PHASES)
    parts = live.tab.eval_on_selector_all(
        "#live-phases li",
        "all => all.map(li => [li.dataset.part, Number(li.dataset.amount)])",
    )
    assert dict(parts) == pytest.approx(
        {phase: now[key("sum", phase)] / count for phase in PHASES}
    )


def test_build(live, busy_url):
    text = live.said("#live-state", "Version")
    labels = next(n for n in series(busy_url) if "build_info" in n)
    for label in ("version", "simd_target", "grpc_version"):
        assert re.search(f'{label}="([^"]*)"', labels)[1] in text


METRICS = """\
attention_build_info{{version="1",simd_target="AVX2",grpc_version="2"}} 1
attention_compute_threads 4
attention_calls_total{{method="ComputeAttention",code="OK"}} {calls}
attention_calls_total{{method="Step",code="CANCELLED"}} 0
attention_refusals_total{{reason="QUEUE_FULL"}} {refusals}
attention_request_bytes_total {taken}
attention_response_bytes_total {given}
attention_measured_bytes_per_second 2.5e+09
attention_running_calls 3
attention_waiting_calls 7
attention_queued_work_seconds 1.25
attention_memory_bytes{{kind="tensors"}} 1048576
attention_memory_bytes{{kind="pooled"}} 3145728
attention_memory_limit_bytes 2147483648
attention_tenant_sessions{{tenant="<img src=x onerror=boom()>"}} 2
process_cpu_seconds_total {cpu}
process_resident_memory_bytes 1073741824
"""


def made_up(page, *texts):
    """Answers /metrics with one text after another, then with the last."""
    left = list(texts)
    page.tab.clock.install()
    page.tab.route(
        "**/metrics",
        lambda route: route.fulfill(
            body=left.pop(0) if len(left) > 1 else left[0]
        ),
    )


def readings(page, count):
    page.tab.wait_for_function(
        "count => live.readings.length === count && !live.busy", arg=count
    )


def test_rates(page):
    numbers = {"calls": 100, "refusals": 1, "taken": 0, "given": 0, "cpu": 5}
    later = {
        "calls": 150,
        "refusals": 5,
        "taken": 2e9,
        "given": 1e9,
        "cpu": 6.5,
    }
    made_up(page, METRICS.format(**numbers), METRICS.format(**later))
    page.open("live")
    readings(page, 1)
    page.tab.clock.run_for(1000)
    readings(page, 2)
    rise = page.tab.evaluate("live.readings[1].time - live.readings[0].time")
    tiles = {
        tile: page.text(f".tile[data-tile='{tile}'] .figure")
        for tile in ("Calls", "Refused", "Tensors moved", "Processor")
    }
    assert tiles == {
        "Calls": f"{50 / rise:.1f} / s",
        "Refused": f"{4 / rise:.1f} / s",
        "Tensors moved": f"{3 / rise:.3f} GB/s",
        "Processor": f"{1.5 / rise:.2f} cores",
    }
    assert (
        page.text(".tile[data-tile='Running and waiting'] .figure") == "3 + 7"
    )
    # Four threads of 2.5 GB/s each.
    share = page.tab.evaluate(
        "document.querySelector('.tile .meter i').style.width"
    )
    assert float(share.removesuffix("%")) == pytest.approx(30 / rise, rel=1e-4)
    assert "10.0 GB/s" in page.text(".tile[data-tile='Tensors moved'] .note")
    assert "1 MiB of 2 GiB" in page.text("#live-memory-note")


def phase_texts(calls, compute, send):
    name = "attention_call_phase_duration_seconds"
    return "".join(
        f'{name}_sum{{phase="{phase}"}} {seconds}\n'
        f'{name}_count{{phase="{phase}"}} {calls}\n'
        for phase, seconds in (("compute", compute), ("send", send))
    )


def test_phases_of_each_second(page):
    """Means of 30 ms and 10 ms, then of 10 ms and 10 ms."""
    made_up(
        page,
        phase_texts(0, 0, 0),
        phase_texts(100, 3, 1),
        phase_texts(200, 4, 2),
    )
    page.open("live")
    for count in (1, 2, 3):
        readings(page, count)
        page.tab.clock.run_for(1000)
    heights = page.tab.eval_on_selector_all(
        "#live-phases rect",
        "all => all.slice(0, 4).map(r => "
        "[r.dataset.phase, Number(r.getAttribute('height'))])",
    )
    assert [phase for phase, _ in heights] == ["compute", "send"] * 2
    tall = np.array([height for _, height in heights])
    np.testing.assert_allclose(tall / tall[1], [3, 1, 1, 1], rtol=1e-9)
    assert "longest mean 40.00 ms" in page.text("#live-phases .note")


def test_texts_of_the_server_are_no_markup(page):
    zero = dict.fromkeys(["calls", "refusals", "taken", "given", "cpu"], 0)
    made_up(page, METRICS.format(**zero))
    page.open("live")
    page.said("#live-tenants", "<img src=x onerror=boom()>")
    assert page.tab.locator("main img").count() == 0


def test_reads_only_while_somebody_looks(page: Page):
    page.tab.clock.install()
    page.open("live")

    def scrapes():
        # Once this is answered, what was asked before it has been counted.
        page.tab.evaluate("fetch('/livez').then(answer => answer.text())")
        return sum("/metrics" in url for url in page.requests)

    for count in (1, 2, 3):
        readings(page, count)
        assert scrapes() == count
        page.tab.clock.run_for(1000)
    readings(page, 4)
    # Another panel.
    page.tab.evaluate("location.hash = 'masks'")
    page.tab.wait_for_selector("#panel-masks", state="visible")
    page.tab.clock.run_for(10_000)
    assert scrapes() == 4
    # Back, then the tab goes behind another.
    page.tab.evaluate("location.hash = 'live'")
    readings(page, 5)
    page.tab.evaluate(
        "Object.defineProperty(document, 'visibilityState', "
        "{value: 'hidden', configurable: true}); "
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.tab.clock.run_for(10_000)
    assert scrapes() == 5
    page.tab.evaluate(
        "delete document.visibilityState; "
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    readings(page, 6)


def test_a_server_that_is_gone_is_told_and_tried_again(page):
    answers = [503, 200]
    page.tab.clock.install()
    page.tab.route(
        "**/metrics",
        lambda route: route.fulfill(
            status=answers.pop(0), body="attention_compute_threads 4\n"
        ),
    )
    page.open("live")
    page.said("#live-state", "/metrics answered 503")
    page.errors.clear()  # Chromium's line about the 503.
    page.tab.clock.run_for(1000)
    page.said("#live-state", "4 threads")
