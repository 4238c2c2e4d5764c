"""HTTP proxies that stand between a client and its server.

gRPC sends calls through the proxy that grpc_proxy, https_proxy or http_proxy
names, also those to loopback, where no proxy can reach the server.
"""

from __future__ import annotations

import os

from attention_client import targets


def proxy_of(target: str) -> str:
    """The proxy for calls to `target` as "http_proxy=host:port", without the
    user and password that may stand in it; empty if there is none."""
    name, value = _first_set("grpc_proxy", "https_proxy", "http_proxy")
    # Other schemes are none that gRPC can use.
    if not value.startswith("http://") or targets.is_local(target):
        return ""
    excepted = _first_set("no_grpc_proxy", "no_proxy")[1].lower().split(",")
    host = targets.hosts(target)[0].lower()
    if any(end and host.endswith(end) for end in excepted):
        return ""
    address = value[len("http://") :].partition("/")[0].rpartition("@")[2]
    return f"{name}={address}"


def _first_set(*names: str) -> tuple[str, str]:
    """The first of the variables that is set, as gRPC sees it: an empty one
    hides those after it."""
    for name in names:
        if name in os.environ:
            return name, os.environ[name]
    return "", ""
