"""Metrics, alerts, dashboard and their documentation fit together.

promtool is Prometheus' own checker (Debian package prometheus).
"""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from operations.series import Selector, families, selectors, series

REPOSITORY = Path(__file__).resolve().parents[2]
PROMETHEUS = REPOSITORY / "docker/prometheus"
DASHBOARD = REPOSITORY / "docker/grafana/attention.json"
DOCUMENTATION = REPOSITORY / "docs/operations.md"

# Labels that Prometheus itself puts on each series of a server.
TARGET = {"job": "attention", "instance": "server:9464"}


def alerts():
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return {
        rule["alert"]: rule["expr"]
        for group in groups
        for rule in group["rules"]
    }


def panels():
    """Titles and queries of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }


def test_promtool_finds_nothing_in_a_scrape(scrape, promtool):
    assert promtool("check", "metrics", text=scrape) == (0, "")


def test_promtool_would_find_something(promtool):
    text = "# TYPE calls counter\ncalls 1\n"
    status, output = promtool("check", "metrics", text=text)
    assert status != 0
    assert "counter metrics should have" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments, promtool):
    status, output = promtool(*arguments, folder=PROMETHEUS)
    assert status == 0, output


def test_every_alert_is_tested():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())
    fired = {
        case["alertname"]
        for test in tests["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == set(alerts())


def test_every_alert_is_documented():
    text = DOCUMENTATION.read_text()
    assert set(re.findall(r"^\| `(Attention\w+)`", text, re.MULTILINE)) == set(
        alerts()
    )


def parsed_by_promtool(query, promtool, tmp_path):
    rule = {"record": "checked:query", "expr": query}
    file = tmp_path / "rules.yml"
    file.write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]})
    )
    return promtool("check", "rules", str(file))


@pytest.mark.parametrize("title", panels())
def test_a_panels_query_is_valid(title, promtool, tmp_path):
    query = panels()[title].replace("$__rate_interval", "1m")
    status, output = parsed_by_promtool(query, promtool, tmp_path)
    assert status == 0, output


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(query, id=name)
        for name, query in (alerts() | panels()).items()
    ],
)
def test_a_query_selects_series_that_exist(query, scrape):
    query = query.replace("$instance", ".*")
    exist = [(name, labels | TARGET) for name, labels in series(scrape)]
    exist.append(("up", TARGET))
    wanted = selectors(query)
    assert wanted
    for selector in wanted:
        assert any(selector.selects(*one) for one in exist), selector
    # Each reason, code or kind that it names, too.
    for name, matchers in wanted:
        for label, operator, value in matchers:
            for one in value.split("|") if operator == "=~" else [value]:
                single = Selector(name, ((label, operator[:1], one),))
                if operator in ("=", "=~") and one != ".*":
                    assert any(single.selects(*s) for s in exist), single


def test_every_metric_is_documented_with_its_type(scrape):
    text = DOCUMENTATION.read_text()
    rows = re.findall(
        r"^\| `((?:attention|process)_\w+)`(?: [^|]*)? \| (\w+) \|",
        text,
        re.MULTILINE,
    )
    assert dict(rows) == families(scrape)


def test_every_value_of_a_label_is_documented(scrape):
    text = DOCUMENTATION.read_text()
    for _, labels in series(scrape):
        for label in ("reason", "phase", "kind", "result", "method"):
            if label in labels:
                assert f"`{labels[label]}`" in text, labels


@pytest.mark.parametrize(
    ("path", "status"), [("livez", 200), ("readyz", 200), ("nothing", 404)]
)
def test_endpoints(http_address, path, status):
    try:
        with urllib.request.urlopen(f"{http_address}/{path}") as response:
            got, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            got, body = error.code, error.read()
    assert got == status
    assert body == (
        b"ok\n" if status == 200 else b"there is nothing at this path\n"
    )


def test_prometheus_scrapes_what_the_compose_file_serves():
    compose = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())[
        "services"
    ]
    flags = compose["server"]["command"]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose
    assert f"--http-listen=0.0.0.0:{port}" in flags
    assert job["job_name"] == TARGET["job"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
