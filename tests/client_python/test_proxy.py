"""Proxies that the environment names."""

import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2

import attention_client
from attention_client import Client, proxy, targets

VARIABLES = (
    "grpc_proxy",
    "https_proxy",
    "http_proxy",
    "no_grpc_proxy",
    "no_proxy",
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refusing():
    """An address that refuses connections: taken, and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1",
        "127.1.2.3:1",
        "LocalHost.:1",
        "a.localhost:1",
        "[::1]:1",
        "::1",
        "unix:/x",
        "unix-abstract:x",
        "dns:///localhost:1",
        "dns:localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
    ],
)
def test_this_machine(target):
    assert targets.is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:1",
        "server:1",
        "127.server.example:1",
        "mylocalhost:1",
        "[::2]:1",
        "dns:///server:1",
        "dns:1",
        "dns://127.0.0.1/server:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
    ],
)
def test_other_machines(target):
    assert not targets.is_local(target)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ""),
        ({"http_proxy": "http://a:1"}, "http_proxy=a:1"),
        (
            {"http_proxy": "http://a:1", "https_proxy": "http://u:pw@b:2/"},
            "https_proxy=b:2",
        ),
        ({"http_proxy": "http://a:1", "grpc_proxy": ""}, ""),
        ({"http_proxy": "socks5://a:1"}, ""),
        ({"http_proxy": "http://a:1", "no_proxy": "x,.Example.org"}, ""),
        ({"http_proxy": "http://a:1", "no_proxy": "x,"}, "http_proxy=a:1"),
        (
            {
                "http_proxy": "http://a:1",
                "no_proxy": ".org",
                "no_grpc_proxy": "x",
            },
            "http_proxy=a:1",
        ),
    ],
)
def test_the_proxy_of_a_server(monkeypatch, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy.proxy_of("server.example.org:1") == found
    assert proxy.proxy_of("127.0.0.1:1") == ""


def test_loopback_is_not_called_through_it(monkeypatch, server, refusing):
    monkeypatch.setenv("http_proxy", f"http://{refusing}")
    server.answers["Check"] = lambda request, context: (
        health_pb2.HealthCheckResponse(status="SERVING")
    )
    with Client(server.address, timeout=60) as client:
        assert client.health() == "SERVING"


def test_it_is_named_where_a_call_through_it_fails(monkeypatch, refusing):
    monkeypatch.setenv("http_proxy", f"http://{refusing}")
    # Reserved for no name; the proxy is asked instead of it.
    with (
        Client("server.invalid:50051", timeout=60) as client,
        pytest.raises(attention_client.Unavailable) as caught,
    ):
        client.health()
    assert f"through the proxy of http_proxy={refusing}" in str(caught.value)
    direct = [("grpc.enable_http_proxy", 0)]
    with (
        Client("server.invalid:50051", channel_options=direct) as client,
        pytest.raises(attention_client.Unavailable) as caught,
    ):
        client.health()
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert "proxy" not in str(caught.value)
