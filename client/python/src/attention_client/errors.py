"""What a call that failed raises: AttentionError, one subclass a code.

Arguments that cannot be put into a request at all (an unknown layout's name,
an array of strings) raise ValueError or TypeError before anything is sent.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

# The reason of an append of which an earlier try still runs.
UNDER_WAY = "APPEND_UNDER_WAY"

_DETAILS_KEY = "grpc-status-details-bin"
_LONGEST_SECONDS = 315_576_000_000
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_DOMAIN = "attention"
# What gRPC's library says of its own limits.
_LOCAL_REASONS = {
    "message larger than max": "CLIENT_LIMIT",
    "metadata size exceeds": "HEADERS_TOO_LARGE",
}


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field of a request."""

    # Path in the request as in attention.proto: "key.shape".
    field: str
    # What came and what was wanted.
    description: str


class AttentionError(Exception):
    """A call that failed, with the status it ended with.

    Attributes:
        code: the canonical code.
        message: the server's text; of a server that was not reached, gRPC's.
        target: the address the client was made for.
        field_violations: the wrong fields, of an INVALID_ARGUMENT.
        reason: why the call failed, in capitals: the server's reason, such as
            "QUEUE_FULL", or one of gRPC's library on this side,
            "CLIENT_LIMIT" or "HEADERS_TOO_LARGE"; "" if nobody says.
            client/README.md of the repository lists the reasons; more may
            come.
        retry_delay: how long to wait before trying again, where the server
            says so; else None.
        forbids_retry: whether the server says that the call must not be tried
            again.
        metadata: what else the server says for programs, by name.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        target: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        reason: str = "",
        retry_delay: datetime.timedelta | None = None,
        forbids_retry: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.target = target
        self.field_violations = field_violations
        self.reason = reason
        self.retry_delay = retry_delay
        self.forbids_retry = forbids_retry
        self.metadata: Mapping[str, str] = metadata or {}

    def __str__(self) -> str:
        at = f" (server {self.target})" if self.target else ""
        return f"{self.code.name}: {self.message}{at}"


class InvalidArgument(AttentionError):
    """A field of the request is wrong; trying again cannot help."""


class ResourceExhausted(AttentionError):
    """Over a size limit, or the server is busy (then retry_delay is set)."""


class Unavailable(AttentionError):
    """The server cannot be reached, or is shutting down."""


class DeadlineExceeded(AttentionError):
    """The timeout passed before the answer came."""


class Cancelled(AttentionError):
    """The call was cancelled."""


class Unimplemented(AttentionError):
    """The server does not have what was asked for."""


class NotFound(AttentionError):
    """What the request names does not exist."""


class AlreadyExists(AttentionError):
    """What the request would create exists, and is another."""


class Aborted(AttentionError):
    """Somebody else's change came first."""

    @property
    def length(self) -> int | None:
        """The true length of a session's layer, where it is not the expected
        one."""
        length = self.metadata.get("length", "")
        return int(length) if length.isdecimal() else None


class OutOfRange(AttentionError):
    """The request goes past what exists."""


class FailedPrecondition(AttentionError):
    """The server is not in a state that allows the call."""

    @property
    def least_length(self) -> int | None:
        """What a session could not be truncated below."""
        length = self.metadata.get("least_length", "")
        return int(length) if length.isdecimal() else None


class Unauthenticated(AttentionError):
    """The credentials are missing or wrong."""


class PermissionDenied(AttentionError):
    """The caller may not do this."""


class Internal(AttentionError):
    """A bug of the server, or an answer that cannot be read."""


_BY_CODE: dict[grpc.StatusCode, type[AttentionError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INTERNAL: Internal,
}

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MAYBE_FROM_PROXY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def from_status(
    code: int,
    message: str,
    *,
    target: str,
    field_violations: Iterable[tuple[str, str]] = (),
    reason: str = "",
    retry_delay: datetime.timedelta | None = None,
    forbids_retry: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> AttentionError:
    """The exception for a call that ended with the code of this number."""
    named = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    return _BY_CODE.get(named, AttentionError)(
        named,
        message or "no message",
        target=target,
        field_violations=tuple(
            FieldViolation(field, description)
            for field, description in field_violations
        ),
        reason=reason,
        retry_delay=retry_delay,
        forbids_retry=forbids_retry,
        metadata=metadata,
    )


def check_time(limit: float, target: str) -> None:
    """Raises DeadlineExceeded where no time is left, before anything is
    sent: whether gRPC would find out in time is chance."""
    if limit <= 0:
        raise DeadlineExceeded(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "no time is left for the call",
            target=target,
        )


def malformed(what: str, target: str) -> AttentionError:
    """The exception for an answer that cannot be read."""
    return Internal(
        grpc.StatusCode.INTERNAL, f"malformed answer: {what}", target=target
    )


def from_rpc_error(
    error: grpc.RpcError, target: str, message: str = "", proxy: str = ""
) -> AttentionError:
    """The exception for a call that ended with `error`; `message`, if there is
    one, stands in for gRPC's text. It went through `proxy`, if that is not
    empty."""
    details, pushback = _trailers(error)
    status = status_of(details)
    message = message or error.details() or "no message"
    if proxy and error.code() in _MAYBE_FROM_PROXY:
        info = error_details_pb2.ErrorInfo()
        if not (_unpack(status, info) and info.reason):
            message += (
                f"; the call went through the proxy of {proxy}: if that is "
                "wrong, name the server in no_proxy"
            )
    return from_details(
        error.code().value[0],
        message,
        status,
        target=target,
        local_reason=_local_reason(error),
        pushback=pushback,
    )


def from_details(
    code: int,
    message: str,
    status: status_pb2.Status,
    *,
    target: str,
    local_reason: str = "",
    pushback: str | None = None,
) -> AttentionError:
    """The exception for a code and the details that `status` has; a status
    without ErrorInfo has `local_reason`. `pushback` is the trailer of that
    name, which goes before the details."""
    bad_request = error_details_pb2.BadRequest()
    error_info = error_details_pb2.ErrorInfo()
    retry_info = error_details_pb2.RetryInfo()
    _unpack(status, bad_request)
    has_error_info = _unpack(status, error_info)
    retry_delay = (
        _told_delay(retry_info.retry_delay)
        if _unpack(status, retry_info)
        else None
    )
    forbids_retry = False
    if pushback is not None:
        retry_delay = _pushback_delay(pushback)
        forbids_retry = retry_delay is None
    return from_status(
        code,
        message,
        target=target,
        field_violations=[
            (violation.field, violation.description)
            for violation in bad_request.field_violations
        ],
        reason=_reason(error_info) if has_error_info else local_reason,
        retry_delay=retry_delay,
        forbids_retry=forbids_retry,
        metadata=metadata_of(error_info),
    )


def metadata_of(error_info: error_details_pb2.ErrorInfo) -> dict[str, str]:
    return dict(error_info.metadata) if error_info.domain == _DOMAIN else {}


def _reason(error_info: error_details_pb2.ErrorInfo) -> str:
    # A proxy's reasons are not the server's.
    return error_info.reason if error_info.domain == _DOMAIN else ""


def _local_reason(error: grpc.RpcError) -> str:
    """Why gRPC's library ended a call by itself. It tells by words only."""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        for words, reason in _LOCAL_REASONS.items():
            if words in (error.details() or ""):
                return reason
    return ""


def _trailers(error: grpc.RpcError) -> tuple[bytes, str | None]:
    """The details, and the trailer that tells when to try again."""
    trailers: Any = error.trailing_metadata()
    found: dict[str, Any] = {}
    for key, value in trailers or ():  # grpc.aio's are no mapping to dict().
        found.setdefault(key, value)
    return found.get(_DETAILS_KEY, b""), found.get(_PUSHBACK_KEY)


def _told_delay(delay: Any) -> datetime.timedelta | None:
    """Of a google.protobuf.Duration; what protobuf does not allow says
    nothing."""
    if not 0 <= delay.seconds <= _LONGEST_SECONDS or delay.nanos < 0:
        return None
    told: datetime.timedelta = delay.ToTimedelta()
    return told


def _pushback_delay(pushback: str) -> datetime.timedelta | None:
    """None: it is negative or no whole number, and means: never."""
    if not (pushback.isascii() and pushback.isdigit()):
        return None
    # Of more a timedelta can make nothing.
    return datetime.timedelta(milliseconds=min(int(pushback), 2**56))


def status_of(details: bytes) -> status_pb2.Status:
    """The status with its details; empty where it cannot be read."""
    try:
        return status_pb2.Status.FromString(details)
    except DecodeError:
        return status_pb2.Status()


def _unpack(status: status_pb2.Status, detail: Message) -> bool:
    """Fills `detail` from the first one of its type, if there is one."""
    for packed in status.details:
        try:
            if packed.Unpack(detail):
                return True
        except DecodeError:
            continue
    return False
