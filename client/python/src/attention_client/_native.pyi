"""The C++ client (client/python/native)."""

from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer, TypeAlias

Tensors: TypeAlias = tuple[tuple[Any, ...] | None, ...]
# output, log_sum_exp, scores, present_key, present_value; then the times of
# Timing.
Answer: TypeAlias = tuple[Any, ...]

class Failure:
    """Why a call failed."""

    @property
    def code(self) -> int: ...
    @property
    def message(self) -> str: ...
    @property
    def field_violations(self) -> list[tuple[str, str]]: ...
    @property
    def reason(self) -> str: ...
    @property
    def error_info(self) -> bytes:
        """A serialized google.rpc.ErrorInfo; empty if there is none."""

    @property
    def retry_delay_us(self) -> int | None: ...
    @property
    def forbids_retry(self) -> bool: ...
    @property
    def too_large(self) -> int:
        """The bytes of a request that no message can hold; else 0."""

class Call:
    """A call that was started."""

    def cancel(self) -> None: ...

class Stream:
    def exchange(self, pieces: list[Any], limit: float) -> Buffer | Failure: ...
    def start_exchange(
        self, pieces: list[Any], done: Callable[[Buffer | Failure], None]
    ) -> Call: ...

class Core:
    def __init__(
        self,
        target: str,
        tls: bool,
        tls_ca: bytes,
        tls_cert: bytes,
        tls_key: bytes,
        token: str,
        token_file: bytes,
        allow_plaintext_token: bool,
        use_shared_memory: bool,
        max_attempts: int,
        options: dict[str, int | str],
    ) -> None: ...
    def compute(
        self, tensors: Tensors, others: bytes, limit: float
    ) -> Answer | Failure: ...
    def call(
        self, method: str, message: bytes, limit: float
    ) -> bytes | Failure: ...
    def start_compute(
        self,
        tensors: Tensors,
        others: bytes,
        limit: float,
        done: Callable[[Answer | Failure | BaseException], None],
    ) -> Call: ...
    def start_call(
        self,
        method: str,
        message: bytes,
        limit: float,
        done: Callable[[bytes | Failure], None],
    ) -> Call: ...
    def open_stream(self, method: str, waits: bool) -> Stream: ...
    def allocate(self, size: int) -> Buffer: ...
    def close(self) -> None: ...

class Sharded:
    """A sequence over the servers of several cores."""

    @staticmethod
    def make(
        cores: list[Core],
        config: bytes | None,
        id: str,
        blocks_per_run: int,
        limit: float,
    ) -> Sharded | Failure: ...
    @property
    def ids(self) -> list[str]: ...
    @property
    def lengths(self) -> list[int]: ...
    def tokens_of(self, shard: int, layer: int) -> list[tuple[int, int]]: ...
    def append(
        self,
        layer: int,
        key: tuple[int, Any],
        value: tuple[int, Any] | None,
        limit: float,
    ) -> int | Failure: ...
    def attend(
        self,
        layer: int,
        query: tuple[int, Any],
        mask: tuple[Any, ...] | None,
        indices: tuple[int, Any] | None,
        sinks: tuple[int, Any] | None,
        options: bytes,
        not_causal: bool,
        allow_missing: bool,
        limit: float,
    ) -> tuple[Answer, list[tuple[int, int]]] | Failure: ...
    def fork(self, id: str, limit: float) -> Sharded | Failure: ...
    def truncate(self, length: int, limit: float) -> Failure | None: ...
    def refresh(self, limit: float) -> Failure | None: ...
    def delete(self, limit: float) -> Failure | None: ...
