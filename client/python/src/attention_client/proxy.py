"""HTTP proxies that stand between a client and its server.

gRPC sends calls through the proxy that grpc_proxy, https_proxy or http_proxy
names, also those to loopback, where no proxy can reach the server.
"""

from __future__ import annotations

import ipaddress
import os
import re


def is_local(target: str) -> bool:
    """Whether gRPC's name for a server says that it is on this machine: a Unix
    socket, localhost or a loopback address."""
    if re.match("unix(-abstract)?:", target, re.IGNORECASE):
        return True
    return all(map(_is_loopback, map(_host, _place(target).split(","))))


def proxy_of(target: str) -> str:
    """The proxy for calls to `target` as "http_proxy=host:port", without the
    user and password that may stand in it; empty if there is none."""
    name, value = _first_set("grpc_proxy", "https_proxy", "http_proxy")
    # Other schemes are none that gRPC can use.
    if not value.startswith("http://") or is_local(target):
        return ""
    excepted = _first_set("no_grpc_proxy", "no_proxy")[1].lower().split(",")
    host = _host(_place(target)).lower()
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


def _place(target: str) -> str:
    """The part of "dns://authority/name:port" that says where the server is;
    several of it, separated by commas, after "ipv4:" and "ipv6:"."""
    # "dns:50051" is a host of that name.
    return re.sub(
        r"^(dns|ipv4|ipv6):(//[^/]*/)?(?!\d+$)",
        "",
        target,
        flags=re.IGNORECASE,
    )


def _host(place: str) -> str:
    """Without port and brackets."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place if place.count(":") > 1 else place.partition(":")[0]


def _is_loopback(host: str) -> bool:
    host = host.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(host)
        # Addresses that stand for any lead to this machine.
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
