"""How the client connects: TLS, and the token of each call."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from attention_client import targets

# For how long what a token's file said is used without looking again.
_READ_AGAIN_AFTER = 1.0  # seconds
# Longer than any token, and short enough for a header.
_LONGEST_TOKEN = 16 << 10
_WHITE_SPACE = " \t\r\n\v\f"


@dataclass(frozen=True)
class Security:
    """What secures a connection; as the arguments of Client."""

    credentials: grpc.ChannelCredentials | None
    # Whether any of the four was given.
    tls: bool
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    # At most one of both.
    token: str | None = field(repr=False)
    token_file: str | None
    allow_plaintext_token: bool

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ValueError(
                "token_file: got a token as well, wanted only one of both"
            )
        if self.credentials is not None and self.tls:
            raise ValueError(
                "credentials: got TLS options as well, wanted only one of both"
            )

    @property
    def plaintext(self) -> bool:
        return not self.tls and self.credentials is None

    @property
    def token_stays_local(self) -> bool:
        """Whether only connections on this machine are made, and none through a
        proxy, for the token's sake."""
        return (
            self.has_token and self.plaintext and not self.allow_plaintext_token
        )

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None


@dataclass(frozen=True)
class Connection:
    """How to make a channel, and what every call on it sends beside its
    request."""

    target: str
    # None: plain text.
    credentials: grpc.ChannelCredentials | None
    options: Sequence[tuple[str, Any]]
    # Gives the headers of a call.
    metadata: Callable[[], tuple[tuple[str, str], ...]]

    def open(self, grpc_module: ModuleType) -> Any:
        """A channel of grpc or grpc.aio, which connects with its first
        call."""
        if self.credentials is None:
            return grpc_module.insecure_channel(self.target, self.options)
        return grpc_module.secure_channel(
            self.target, self.credentials, self.options
        )


def connection_to(
    target: str, security: Security, options: Sequence[tuple[str, Any]]
) -> Connection:
    """How to connect to `target`.

    The token is part of the channel's credentials where those encrypt, or are
    the caller's own; gRPC then sends it over nothing else. Where they do not
    it is a header of each call, on a channel that gRPC lets lead to loopback
    or a Unix socket only.
    """
    credentials = security.credentials
    if security.tls:
        credentials = grpc.ssl_channel_credentials(*check(security))
    token = token_source(security.token, security.token_file)
    if token is None:
        return Connection(target, credentials, options, tuple)

    def header() -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token()}"),)

    if security.allow_plaintext_token:
        return Connection(target, credentials, options, header)
    if credentials is not None:
        composite = grpc.composite_channel_credentials(
            credentials, grpc.metadata_call_credentials(_Bearer(header))
        )
        return Connection(target, composite, options, tuple)
    if targets.is_beyond_loopback(target):
        raise ValueError(plaintext_token(target))
    local = grpc.local_channel_credentials(
        grpc.LocalConnectionType.UDS
        if targets.is_unix_socket(target)
        else grpc.LocalConnectionType.LOCAL_TCP
    )
    return Connection(target, local, _no_proxy(options), header)


def _no_proxy(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Options with which neither themselves nor the environment choose a proxy:
    one on loopback could send the call elsewhere."""
    others = [pair for pair in options if "http_proxy" not in pair[0]]
    # Of no address; gRPC complains of it where the variable is not set.
    if "GRPC_ADDRESS_HTTP_PROXY" in os.environ:
        others.append(("grpc.address_http_proxy", ""))
    return [("grpc.enable_http_proxy", 0), *others]


def plaintext_token(target: str) -> str:
    """What is said where the token may not go."""
    return (
        f"allow_plaintext_token: the token would travel to {target} in plain "
        "text, beyond loopback and Unix sockets: use TLS, or set this option"
    )


def token_source(
    token: str | None, token_file: str | None
) -> Callable[[], str] | None:
    """A function that gives the token, of at most one of both; None where
    there is none."""
    if token is not None:
        try:
            _check_token(token)
        except ValueError as error:
            raise ValueError(f"token: {error}") from None
        return lambda: token
    return None if token_file is None else _FileToken(token_file)


class _Bearer(grpc.AuthMetadataPlugin):
    """Adds the token to the calls of a channel."""

    def __init__(
        self, header: Callable[[], tuple[tuple[str, str], ...]]
    ) -> None:
        self._header = header

    def __call__(self, context: Any, callback: Any) -> None:
        callback(self._header(), None)


class _FileToken:
    """The token of a file that may be replaced while calls are made.

    A file that cannot be read any more, or holds no token, leaves the last one
    in use, as it may be half written: the server tells once that one has run
    out. What is not a regular file (a pipe) is read once only.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stays = not os.path.isfile(path)
        self._lock = threading.Lock()
        self._token = self._read()
        self._read_at = time.monotonic()

    def __call__(self) -> str:
        if self._stays:
            return self._token
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= _READ_AGAIN_AFTER:
                self._read_at = now
                try:
                    self._token = self._read()
                except ValueError:
                    pass
            return self._token

    def _read(self) -> str:
        try:
            data = _read_file(self._path, 2 * _LONGEST_TOKEN)
            token = data.decode("latin-1").strip(_WHITE_SPACE)
            _check_token(token)
        except ValueError as error:
            raise ValueError(f"token_file: {self._path}: {error}") from None
        return token


def _check_token(token: str) -> None:
    """Refuses what cannot stand in a header as one word; the error shows none
    of it."""
    if not token:
        raise ValueError("is empty, wanted a token")
    if len(token) > _LONGEST_TOKEN:
        raise ValueError(f"is longer than {_LONGEST_TOKEN} bytes")
    if any(character in _WHITE_SPACE for character in token):
        raise ValueError("has white space within the token, wanted one word")
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("has characters that are not printable ASCII")


def _read_file(path: str, most_bytes: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"cannot open: {error.strerror}") from None
    if len(data) > most_bytes:
        raise ValueError(f"is larger than {most_bytes} bytes")
    return data


def check(
    security: Security,
) -> tuple[bytes | None, bytes | None, bytes | None]:
    """What the files of TLS hold: authorities, key and certificate.

    Raises:
        ValueError: a file, or the token, cannot be used.
    """
    if security.token is not None:
        token_source(security.token, None)
    if bool(security.tls_cert) != bool(security.tls_key):
        given, lacking = (
            ("tls_cert", "tls_key")
            if security.tls_cert
            else ("tls_key", "tls_cert")
        )
        raise ValueError(f"{given}: needs {lacking} as well")
    certificate = _pem("tls_cert", security.tls_cert, "CERTIFICATE-----")
    key = _pem("tls_key", security.tls_key, "PRIVATE KEY-----")
    roots = _pem("tls_ca", security.tls_ca, "CERTIFICATE-----")
    # gRPC would tell none of this, nor what is wrong.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if security.tls_ca:
        _try("tls_ca", security.tls_ca, context.load_verify_locations)
    if security.tls_cert:

        def load(path: str) -> None:
            # A password would be asked for on the terminal.
            context.load_cert_chain(path, security.tls_key, password="")

        _try("tls_cert", security.tls_cert, load)
    return roots, key, certificate


def _pem(option: str, path: str | None, block: str) -> bytes | None:
    if path is None:
        return None
    try:
        # Every authority there is takes 1 MB.
        pem = _read_file(path, 16 << 20)
        if block.encode() not in pem:
            raise ValueError(f"has no PEM block {block!r}")
    except ValueError as error:
        raise ValueError(f"{option}: {path}: {error}") from None
    return pem


def _try(option: str, path: str, load: Callable[[str], None]) -> None:
    try:
        load(path)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise ValueError(f"{option}: {path}: cannot be used: {why}") from None
