"""What gRPC's name for a server tells about where it leads."""

from __future__ import annotations

import ipaddress
import re


def is_unix_socket(target: str) -> bool:
    """Whether gRPC connects to a Unix socket."""
    return re.match("unix(-abstract)?:", target, re.IGNORECASE) is not None


def hosts(target: str) -> list[str]:
    """The hosts of a target that is no Unix socket, without ports and brackets:
    "dns://authority/name:port" has one, "ipv4:" and "ipv6:" may have several."""
    # "dns:50051" is a host of that name.
    places = re.sub(
        r"^(dns|ipv4|ipv6):(?!\d+$)(//[^/]*(/|$))?",
        "",
        target,
        flags=re.IGNORECASE,
    )
    return [_host(place) for place in places.split(",")]


def is_local(target: str) -> bool:
    """Whether it says that it leads to this machine: a Unix socket, localhost,
    a loopback address or one that stands for any."""
    return is_unix_socket(target) or all(map(_is_local, hosts(target)))


def is_beyond_loopback(target: str) -> bool:
    """Whether it has a numeric address that is not of the loopback interface.
    Where it has a name instead, only the connection can tell."""
    return not is_unix_socket(target) and any(map(_is_other, hosts(target)))


def _host(place: str) -> str:
    if place.startswith("["):
        return place[1:].partition("]")[0]
    # More than one colon: IPv6 without a port.
    return place if place.count(":") > 1 else place.partition(":")[0]


def _address(
    host: str,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    address = _address(host)
    if address is None:
        name = host.lower().removesuffix(".")
        return name == "localhost" or name.endswith(".localhost")
    return _is_this_machine(address) and not _holds_ipv4(address)


def _is_other(host: str) -> bool:
    address = _address(host)
    # One that holds an IPv4 address is left to the connection.
    return address is not None and not (
        _is_this_machine(address) or _holds_ipv4(address)
    )


def _is_this_machine(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> bool:
    # Connections to addresses that stand for any go there too.
    return address.is_loopback or address.is_unspecified


def _holds_ipv4(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> bool:
    return getattr(address, "ipv4_mapped", None) is not None
