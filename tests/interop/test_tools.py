"""What people call a gRPC server with, against this one. The tools know nothing
but what reflection tells them."""

import contextlib
import http.cookiejar
import json
import re
import subprocess
import urllib.request

import pytest

from e2e.server_process import ServerProcess
from interop.places import REPOSITORY, TOOLS

SERVICES = [
    "attention.v1.AttentionService",
    "attention.v1.SessionService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
]
# Of the request in request_json.
ANSWER = [0.669762, 0.330238, 0.330238, 0.669762]
COMPUTE = "attention.v1.AttentionService.ComputeAttention"


def test_grpcurl_lists_every_service(grpcurl):
    assert grpcurl("list").split() == SERVICES


def test_grpcurl_describes_every_service_and_all_that_it_names(grpcurl):
    seen, wanted = set(), list(SERVICES)
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        text = grpcurl("describe", name)
        assert text.startswith(f"{name} is a"), text
        # grpcurl writes types by their full names, with a leading dot.
        wanted += re.findall(r"(?<![\w.])\.([a-z]\w*(?:\.\w+)+)", text)
    assert {
        "attention.v1.ComputeAttentionRequest",
        "attention.v1.Tensor",
        "attention.v1.DataType",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
        "grpc.reflection.v1.ErrorResponse",
        "grpc.reflection.v1alpha.ErrorResponse",
    } <= seen


@pytest.mark.parametrize(
    "name", ["Status", "BadRequest", "ErrorInfo", "RetryInfo"]
)
def test_grpcurl_describes_the_details_of_errors(grpcurl, name):
    text = grpcurl("describe", f"google.rpc.{name}")
    assert text.startswith(f"google.rpc.{name} is a message"), text


def test_grpcurl_calls_by_name(grpcurl, request_json):
    answer = json.loads(grpcurl(COMPUTE, flags=["-d", request_json]))
    assert answer["output"]["shape"] == ["2", "2"]
    assert answer["output"]["floatValues"] == pytest.approx(ANSWER, abs=1e-6)


def test_grpcurl_shows_the_details_of_an_error(grpcurl, request_json):
    request = json.loads(request_json)
    request["key"] = {"shape": [1, 3], "floatValues": [1, 0, 0]}
    flags = ["-format-error", "-d", json.dumps(request)]
    status = json.loads(grpcurl(COMPUTE, flags=flags, status=64 + 3))
    assert status["code"] == 3
    assert status["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [
                {
                    "field": "key.shape",
                    "description": "got (1, 3), wanted query's head size 2",
                }
            ],
        },
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "domain": "attention",
            "reason": "INVALID_FIELD",
        },
    ]


def test_grpcurl_asks_for_health(grpcurl):
    answers = grpcurl("grpc.health.v1.Health/List")
    assert json.loads(answers) == {
        "statuses": {
            "": {"status": "SERVING"},
            SERVICES[0]: {"status": "SERVING"},
        }
    }


def test_ghz_runs(tool, address, request_json):
    report = json.loads(
        tool(
            "ghz",
            "--insecure",
            "--format=json",
            "--total=500",
            "--concurrency=5",
            f"--call={COMPUTE}",
            f"--data={request_json}",
            address,
        ).stdout
    )
    assert report["count"] == 500
    assert report["statusCodeDistribution"] == {"OK": 500}


@pytest.mark.parametrize("service", ["", SERVICES[0]])
def test_grpc_health_probe_finds_it_serving(tool, address, service):
    probe = tool("grpc-health-probe", f"-addr={address}", f"-service={service}")
    assert "status: SERVING" in probe.stderr


def test_grpc_health_probe_of_an_unknown_service(tool, address):
    probe = tool(
        "grpc-health-probe", f"-addr={address}", "-service=no.such", status=3
    )
    assert 'got "no.such", wanted "" or' in probe.stderr.replace("\\", "")


def test_grpcurl_watches_the_drain(server_binary):
    with (
        ServerProcess(server_binary) as server,
        subprocess.Popen(
            [
                TOOLS / "bin/grpcurl",
                "-plaintext",
                server.address,
                "grpc.health.v1.Health/Watch",
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as watch,
    ):
        assert json.loads(read_message(watch.stdout)) == {"status": "SERVING"}
        server.terminate()
        told = json.loads(read_message(watch.stdout))
        assert told == {"status": "NOT_SERVING"}


def read_message(output):
    """One message of those that grpcurl prints, each from { to }."""
    lines = []
    for line in output:
        lines.append(line)
        if line.startswith("}"):
            break
    return "".join(lines)


@contextlib.contextmanager
def running_grpcui(address):
    with subprocess.Popen(
        [
            TOOLS / "bin/grpcui",
            "-plaintext",
            "-port=0",
            "-open-browser=false",
            address,
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def test_grpcui_calls_by_name(address, request_json):
    cookies = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPCookieProcessor(cookies),
    )
    with running_grpcui(address) as url:
        page = browser.open(url).read().decode()
        assert SERVICES[0] in page
        (token,) = (cookie.value for cookie in cookies)
        body = json.dumps({"metadata": [], "data": [json.loads(request_json)]})
        answer = browser.open(
            urllib.request.Request(
                f"{url}invoke/{COMPUTE}",
                data=body.encode(),
                headers={
                    "Content-Type": "application/json",
                    "x-grpcui-csrf-token": token,
                },
            )
        )
        (response,) = json.load(answer)["responses"]
        # It leaves fields the names that they have in the .proto file.
        output = response["message"]["output"]["float_values"]
        assert output == pytest.approx(ANSWER, abs=1e-6)


def test_the_commands_of_docs_sessions(grpcurl):
    text = (REPOSITORY / "docs/sessions.md").read_text()
    calls = re.findall(r"-d '([^']*)' \\\n  127\.0\.0\.1:50051 (\S+)", text)
    assert [method.split("/")[1] for _, method in calls] == [
        "CreateSession",
        "AppendKeyValues",
        "Attend",
    ]
    answers = [
        json.loads(grpcurl(method, flags=("-d", data)))
        for data, method in calls
    ]
    assert answers[1] == {"length": "2"}
    # The first row of what two keys give, as in the README.
    assert answers[2]["output"]["floatValues"] == pytest.approx(
        ANSWER[:2], abs=1e-6
    )
