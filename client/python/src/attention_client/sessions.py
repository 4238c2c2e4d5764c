"""Sessions: keys and values that stay in the server between calls."""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, Union

import grpc

from attention_client import (
    arguments,
    attend_options,
    errors,
    step_messages,
    tensors,
)
from attention_client import attention_pb2 as pb
from attention_client import session_pb2 as session_pb
from attention_client.leases import Lease
from attention_client.results import AttentionResult
from attention_client.step_messages import NewTokens, Queries

# The reason of errors for sessions that there are not, or no longer.
UNKNOWN = "SESSION_UNKNOWN"

# How an item of Client.step() ends: a result, or a layer's length where
# nothing was attended to, or why it failed.
ItemOutcome = Union[AttentionResult, int, errors.AttentionError]

# What the calls return: results, or what is awaited for them.
_Attended = TypeVar("_Attended")
_Length = TypeVar("_Length")
_Nothing = TypeVar("_Nothing")
_Forked = TypeVar("_Forked")


@dataclass(frozen=True)
class SessionConfig:
    """What a session holds. Unchanged while it lives."""

    # Layers of the model, numbered from 0.
    layers: int
    # Hkv.
    kv_heads: int
    # D.
    head_size: int
    # Dv.
    value_head_size: int
    # numpy's name of the type that keys and values are stored as.
    data_type: str
    # How long the session lives unused, in seconds.
    lease: float
    # Whether values are the first Dv columns of keys, and are not sent.
    value_is_key_prefix: bool
    # How many of the last tokens a query of each layer sees; 0: all. Empty: all
    # in every layer.
    retain_window: tuple[int, ...] = ()
    # How many tokens layers with a window keep beside those.
    rollback_tokens: int = 256

    def window(self, layer: int) -> int:
        """Of a layer; 0 without one."""
        if 0 <= layer < len(self.retain_window):
            return self.retain_window[layer]
        return 0


@dataclass(frozen=True)
class SessionInfo:
    """A session as the server tells of it."""

    id: str
    config: SessionConfig
    # Tokens of each layer.
    lengths: tuple[int, ...]
    # When the lease is over unless something uses the session.
    expire_time: datetime.datetime
    # The first token that each layer keeps, and the least length above 0 that
    # it can be truncated to.
    first_tokens: tuple[int, ...] = ()
    least_lengths: tuple[int, ...] = ()
    # Tells the session from every other that had or will have its id; 0: the
    # server, an older one, told none.
    incarnation: int = 0


def info_of(message: session_pb.Session) -> SessionInfo:
    config = message.config
    return SessionInfo(
        id=message.id,
        config=SessionConfig(
            layers=config.num_layers,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            value_head_size=config.value_head_size,
            data_type=tensors.type_name(config.data_type),
            lease=config.lease.ToTimedelta().total_seconds(),
            value_is_key_prefix=config.value_is_key_prefix,
            retain_window=tuple(config.retain_window),
            rollback_tokens=config.rollback_tokens,
        ),
        lengths=tuple(message.lengths),
        expire_time=message.expire_time.ToDatetime(datetime.timezone.utc),
        first_tokens=tuple(message.first_tokens),
        least_lengths=tuple(message.least_lengths),
        incarnation=message.incarnation,
    )


@dataclass(frozen=True)
class Fork:
    """A session to be made of another."""

    # Ids.
    target: str
    source: str
    # 0: whichever session has the source's id.
    source_incarnation: int = 0


@dataclass
class _Layer:
    """What a session's object knows of one layer."""

    length: int
    # Request ids used up: an append whose outcome is not known keeps its own,
    # so that it is done once when it is made again.
    appends: int = 0
    # Of an append in several pieces that failed: its digest, and how many of
    # them are there.
    unfinished: tuple[bytes, int] | None = None

    def told(self, length: int) -> None:
        """The server has said how long it is."""
        self.length = length
        self.appends += 1
        self.unfinished = None


class Calls(Protocol):
    """What a session needs of its client."""

    @property
    def target(self) -> str: ...

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        """What the caller gets of it: the result, or what is awaited."""

    def limit(self, timeout: float | None) -> float: ...

    async def step(
        self, items: Sequence[Item], limit: float
    ) -> list[ItemOutcome]: ...

    async def truncate(
        self, lease: Lease, length: int, limit: float
    ) -> SessionInfo: ...

    async def fork(self, forks: Sequence[Fork], limit: float) -> list[Any]: ...

    async def get(self, lease: Lease, limit: float) -> SessionInfo: ...

    async def delete(self, lease: Lease, limit: float) -> None: ...

    def watch(self, lease: Lease) -> None: ...


class SessionBase(Generic[_Attended, _Length, _Nothing, _Forked]):
    """Calls of Session and of aio.Session alike."""

    def __init__(self, calls: Calls, info: SessionInfo) -> None:
        """For the client alone: Client.create_session() and its siblings make
        sessions."""
        self._calls = calls
        self._config = info.config
        self._layers = [_Layer(length) for length in info.lengths]
        self._lease = Lease(info.id, info.config.lease, info.incarnation)
        # What request ids begin with: no other object has the same.
        self._nonce = secrets.token_hex(8)
        calls.watch(self._lease)

    @property
    def id(self) -> str:
        return self._lease.session_id

    @property
    def incarnation(self) -> int:
        """Tells the session from others that had or will have its id, which
        this object never touches: its calls raise NotFound where the session of
        its id is another."""
        return self._lease.incarnation

    @property
    def config(self) -> SessionConfig:
        return self._config

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer, by what this object knows: what it has appended
        and truncated itself, and what refresh() was told."""
        return tuple(layer.length for layer in self._layers)

    @property
    def length(self) -> int:
        """The least of lengths: tokens that every layer has."""
        return min(self.lengths)

    def gone(self) -> errors.AttentionError | None:
        """What its calls raise once the server has said that there is no such
        session any more; None before. One with the same id would be another."""
        if not self._lease.gone:
            return None
        return gone(self.id, self._calls.target)

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__name__}"
        return f"<{name} {self.id!r}, length {self.length}>"

    def append(
        self,
        key: Any,
        value: Any = None,
        layer: int = 0,
        *,
        timeout: float | None = None,
    ) -> _Length:
        """Adds tokens to a layer, and returns its length then.

        More than 4 MiB are sent in several messages. Where a later one fails,
        the layer has the tokens of those before: `lengths` tells how many.

        Where it failed half-way, or for want of an answer (DeadlineExceeded,
        Cancelled, Unavailable), the same arrays may be appended again, to the
        same layer with the same object: they are there once, and what is known
        to be there is not sent again.

        Args:
            key, value: (Hkv, n, D) and (Hkv, n, Dv), of any float type; rounded
                to the session's. No value with value_is_key_prefix.
            layer: in [0, layers).
            timeout: seconds; None is the client's.

        Raises:
            Aborted: somebody else has changed the layer, or an append of other
                tokens, which failed for want of an answer, was done after all.
                Its `length` is the layer's. Nothing was added.
            NotFound: the session's lease was over, or it was deleted.
            ResourceExhausted: the server holds as many bytes of sessions as it
                may.
            AttentionError, TypeError, ValueError: as Client.compute.
        """
        item = StepItem(self, key=key, value=value, layer=layer)
        return self._one(item, timeout)  # type: ignore[no-any-return]

    def attend(
        self,
        query: Any,
        layer: int = 0,
        *,
        mask: Any = None,
        scale: float | None = None,
        softcap: float = 0,
        causal: str | None = "bottom_right",
        window: tuple[int | None, int | None] | None = None,
        chunk_size: int = 0,
        alibi_slopes: Sequence[float] | None = None,
        sinks: Any = None,
        indices: Any = None,
        math_mode: str | None = None,
        softmax_precision: Any = None,
        return_log_sum_exp: bool = False,
        return_scores: str | None = None,
        mask_begin: int = 0,
        timeout: float | None = None,
    ) -> _Attended:
        """Attention over the tokens that a layer has when the call begins, T of
        them.

        Args:
            query: (Hq, S, D), Hq a multiple of Hkv, of the session's type.
            layer: in [0, layers).
            mask: broadcast to (1, Hq, S, T - mask_begin).
            sinks: Hq logits, or (Hq, S).
            indices: (S, k) or (Hq, S, k), counted from the session's first
                token.
            causal: "bottom_right": the queries are the last tokens, so that the
                last one sees all, the one before it all but the last;
                "top_left"; or None: every query sees every token.
            mask_begin: the token of the mask's first column: a multiple of 256,
                at most the first that causal and window let a query see.

        The others are as in Client.compute; what they count in B has one of it.
        The result has output (Hq, S, Dv), log_sum_exp (Hq, S) and scores
        (Hq, S, T).

        Raises:
            NotFound: the session's lease was over, or it was deleted.
            AttentionError, TypeError, ValueError: as Client.compute.
        """
        item = StepItem(
            self,
            query,
            layer=layer,
            mask=mask,
            scale=scale,
            softcap=softcap,
            causal=causal,
            window=window,
            chunk_size=chunk_size,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            indices=indices,
            math_mode=math_mode,
            softmax_precision=softmax_precision,
            return_log_sum_exp=return_log_sum_exp,
            return_scores=return_scores,
            mask_begin=mask_begin,
        )
        return self._one(item, timeout)  # type: ignore[no-any-return]

    def step(
        self,
        query: Any,
        key: Any,
        value: Any = None,
        layer: int = 0,
        *,
        mask: Any = None,
        scale: float | None = None,
        softcap: float = 0,
        causal: str | None = "bottom_right",
        window: tuple[int | None, int | None] | None = None,
        chunk_size: int = 0,
        alibi_slopes: Sequence[float] | None = None,
        sinks: Any = None,
        indices: Any = None,
        math_mode: str | None = None,
        softmax_precision: Any = None,
        return_log_sum_exp: bool = False,
        return_scores: str | None = None,
        mask_begin: int = 0,
        timeout: float | None = None,
    ) -> _Attended:
        """append(), then attend() to the layer as it is then, in one round trip:
        a decode step. Does both or, on an error, neither, but for what append()
        says of more than 4 MiB, which a layer with a window gets whole.

        Arguments and errors as of those two.
        """
        item = StepItem(
            self,
            query,
            key,
            value,
            layer,
            mask=mask,
            scale=scale,
            softcap=softcap,
            causal=causal,
            window=window,
            chunk_size=chunk_size,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            indices=indices,
            math_mode=math_mode,
            softmax_precision=softmax_precision,
            return_log_sum_exp=return_log_sum_exp,
            return_scores=return_scores,
            mask_begin=mask_begin,
        )
        return self._one(item, timeout)  # type: ignore[no-any-return]

    def fork(
        self, id: str | None = None, *, timeout: float | None = None
    ) -> _Forked:
        """A new session with the keys and values of this one, which take no
        more memory until the two part. Client.fork_sessions() forks several.

        Args:
            id: the new one's; None: one that nobody can guess.

        Raises:
            AlreadyExists: there is a session with this id.
        """
        target = id_or_new(id)
        limit = self._calls.limit(timeout)

        async def fork() -> Any:
            if error := self.gone():
                raise error
            made = await self._calls.fork([self.fork_to(target)], limit)
            return made[0]

        return self._calls.run(fork())  # type: ignore[no-any-return]

    def truncate(
        self, length: int, *, timeout: float | None = None
    ) -> _Nothing:
        """Forgets the last tokens of every layer, so that each has `length`,
        and none may have fewer.

        Raises:
            FailedPrecondition: tokens that a layer's window would cover then
                are released; its `least_length` is possible.
        """
        wanted = arguments.whole_number(length, "length")
        limit = self._calls.limit(timeout)

        async def truncate() -> None:
            self._known(await self._calls.truncate(self._lease, wanted, limit))

        return self._calls.run(truncate())  # type: ignore[no-any-return]

    def refresh(self, *, timeout: float | None = None) -> _Nothing:
        """Asks the server for the lengths: where another one appends too, or
        after an append whose answer did not come."""
        limit = self._calls.limit(timeout)

        async def refresh() -> None:
            self._known(await self._calls.get(self._lease, limit))

        return self._calls.run(refresh())  # type: ignore[no-any-return]

    def delete(self, *, timeout: float | None = None) -> _Nothing:
        """Ends the session, also where it has ended before."""
        limit = self._calls.limit(timeout)

        async def delete() -> None:
            # One with the same id would be another.
            if not self._lease.gone:
                await self._calls.delete(self._lease, limit)
                self._lease.lost()

        return self._calls.run(delete())  # type: ignore[no-any-return]

    def close(self) -> None:
        """Stops renewing the lease, as happens where the object is forgotten.
        The session stays until its lease is over. May be repeated."""
        self._lease.over = True

    def fork_to(self, target: str) -> Fork:
        """For Client.fork_sessions()."""
        return Fork(target, self.id, self.incarnation)

    def belongs_to(self, calls: Any) -> bool:
        """Whether it is one of the client that makes these calls."""
        return self._calls is calls

    def _one(self, item: StepItem, timeout: float | None) -> Any:
        """Runs one item, and raises what it fails with."""
        checked = item.checked("")
        limit = self._calls.limit(timeout)

        async def one() -> Any:
            (result,) = await self._calls.step([checked], limit)
            if isinstance(result, errors.AttentionError):
                raise result
            return result

        return self._calls.run(one())

    def _known(self, info: SessionInfo) -> None:
        for layer, length in zip(self._layers, info.lengths):
            layer.told(length)
        self._lease.used()

    def _layer(self, number: int) -> _Layer | None:
        """None: there is no such layer, as the server will say."""
        known = 0 <= number < len(self._layers)
        return self._layers[number] if known else None


class Session(SessionBase[AttentionResult, int, None, "Session"]):
    """Keys and values of one sequence, for the layers of a model, in a server.

        >>> import numpy as np
        >>> from attention_client import Client
        >>> client = Client("127.0.0.1:50051", timeout=10)
        >>> eye = np.eye(2, dtype=np.float32)[None]  # One head, two tokens.
        >>> with client.create_session(kv_heads=1, head_size=2) as session:
        ...     session.append(eye, eye)
        ...     session.step(eye[:, :1], eye[:, :1], eye[:, :1]).output
        ...     session.lengths
        2
        array([[[0.80222416, 0.19777581]]], dtype=float32)
        (3,)
        >>> client.close()

    It renews its lease by itself while it is referred to: after a process that
    held it has ended, the server deletes the session when its lease is over.
    At the end of a `with` block it is deleted at once; to forget the object, or
    close(), deletes nothing, and Client.get_session() makes another one.

    It expects that nobody else appends to the session meanwhile: append() and
    step() then raise Aborted. Its calls may be made by several threads, those
    that append to one layer by one at a time.

    Calls that are safe to send again are, where the server could not be reached
    or ended a stream: appends have a request id, and are done once. Where the
    server still works on an earlier try, they wait for it within the timeout.
    """

    def __enter__(self) -> Session:  # noqa: PYI034
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        try:
            self.delete()
        except errors.AttentionError:
            if kind is None:
                raise  # Else what happened first is told.


@dataclass(frozen=True, eq=False)
class StepItem:
    """What one session does in Client.step(): appends, where it has a key;
    attends, where it has a query; or both.

    Fields as the arguments of Session.append and Session.attend.
    """

    session: SessionBase[Any, Any, Any, Any]
    query: Any = None
    key: Any = None
    value: Any = None
    layer: int = 0
    mask: Any = None
    scale: float | None = None
    softcap: float = 0
    causal: str | None = "bottom_right"
    window: tuple[int | None, int | None] | None = None
    chunk_size: int = 0
    alibi_slopes: Sequence[float] | None = None
    sinks: Any = None
    indices: Any = None
    math_mode: str | None = None
    softmax_precision: Any = None
    return_log_sum_exp: bool = False
    return_scores: str | None = None
    mask_begin: int = 0

    def checked(self, place: str) -> Item:
        """It as it is sent; `place` stands before the names of arguments.

        Raises:
            TypeError, ValueError: something of it cannot be sent.
        """
        if not isinstance(self.session, SessionBase):
            arguments.wrong_type(self.session, place + "session", "a session")
        new = queries = None
        if self.key is not None:
            new = NewTokens(
                tensors.sendable(self.key, place + "key"),
                tensors.sendable_if_any(self.value, place + "value"),
            )
        elif self.value is not None:
            raise ValueError(f"{place}value: got it without a key")
        if self.query is not None:
            queries = self._queries(place)
        elif new is None:
            raise ValueError(
                f"{place}key: got None, and no query: wanted at least one"
            )
        layer = arguments.whole_number(self.layer, place + "layer")
        return Item(self.session, layer, new, queries)

    def _queries(self, place: str) -> Queries:
        options = pb.AttentionOptions()
        attend_options.fill(
            options,
            scale=self.scale,
            softcap=self.softcap,
            causal=self.causal,
            window=self.window,
            chunk_size=self.chunk_size,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
            math_mode=self.math_mode,
            softmax_precision=self.softmax_precision,
            return_log_sum_exp=self.return_log_sum_exp,
            return_scores=self.return_scores,
        )
        return Queries(
            tensors.sendable(self.query, place + "query"),
            tensors.sendable_mask(self.mask),
            options,
            not_causal=self.causal is None,
            mask_begin=arguments.whole_number(
                self.mask_begin, place + "mask_begin"
            ),
            indices=tensors.sendable_indices(self.indices),
            sinks=tensors.sendable_sinks(self.sinks),
        )


@dataclass(frozen=True, eq=False)
class Item:
    """A StepItem whose arguments can be sent."""

    session: SessionBase[Any, Any, Any, Any]
    layer: int
    new: NewTokens | None
    queries: Queries | None
    # Of what it is a piece, and its number.
    whole: NewTokens | None = None
    number: int = 0

    def parts(self) -> list[Item]:
        """It as items that can each be sent in one message, to be done one
        after another."""
        if self.new is None:
            return [self]
        if self.queries is not None and self.session.config.window(self.layer):
            # The queries may see what a part before the last would release.
            return [self]
        pieces = self.new.split()
        if len(pieces) == 1:
            return [self]
        last = len(pieces) - 1
        done = self._done()
        return [
            Item(
                self.session,
                self.layer,
                piece,
                self.queries if number == last else None,
                self.new,
                number,
            )
            for number, piece in enumerate(pieces)
            if number >= done
        ]

    def _done(self) -> int:
        """How many pieces an earlier try has left in the layer."""
        layer = self.session._layer(self.layer)
        if layer is None or layer.unfinished is None:
            return 0
        digest, pieces = layer.unfinished
        return pieces if digest == _digest_of(self.new) else 0

    def message(self) -> Any:
        session = self.session
        place = step_messages.Place(session.id, session.incarnation, self.layer)
        if self.new is None:
            return step_messages.item(place, None, self.queries, None, "")
        layer = session._layer(self.layer)
        if layer is None:
            return step_messages.item(place, self.new, self.queries, None, "")
        return step_messages.item(
            place,
            self.new,
            self.queries,
            layer.length,
            f"{session._nonce}-{self.layer}-{layer.appends}",
        )

    def left(self) -> None:
        """It has no answer, or failed: the pieces before it are there."""
        layer = self.session._layer(self.layer)
        if layer is not None and self.number > 0:
            layer.unfinished = (_digest_of(self.whole), self.number)

    def ended(
        self, result: step_messages.ItemResult | errors.AttentionError
    ) -> ItemOutcome:
        """What the caller gets for the server's result."""
        session = self.session
        if isinstance(result, errors.AttentionError):
            if result.reason == UNKNOWN:
                session._lease.lost()
            self.left()
            return result
        session._lease.used()
        layer = session._layer(self.layer)
        if self.new is not None and layer is not None:
            layer.told(result.length)
        return result.length if result.attended is None else result.attended


def _digest_of(new: NewTokens | None) -> bytes:
    """Tells the tokens of one append from those of another."""
    digest = hashlib.blake2b(digest_size=16)
    for data_type, array in (part for part in new or () if part is not None):
        digest.update(f"{data_type} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def config_message(
    *,
    layers: int,
    kv_heads: int,
    head_size: int,
    value_head_size: int | None,
    data_type: Any,
    lease: float,
    value_is_key_prefix: bool,
) -> session_pb.SessionConfig:
    """Arguments as of Client.create_session()."""
    config = session_pb.SessionConfig()
    config.num_layers = arguments.whole_number(layers, "layers")
    config.kv_heads = arguments.whole_number(kv_heads, "kv_heads")
    config.head_size = arguments.whole_number(head_size, "head_size")
    if value_head_size is not None:
        config.value_head_size = arguments.whole_number(
            value_head_size, "value_head_size"
        )
    config.data_type = tensors.stored_type(data_type, "data_type")
    config.value_is_key_prefix = arguments.flag(
        value_is_key_prefix, "value_is_key_prefix"
    )
    config.lease.FromNanoseconds(arguments.nanoseconds(lease, "lease"))
    return config


def id_or_new(value: str | None) -> str:
    """An id for a session. One that is made here lets a call be tried again."""
    if value is None:
        return secrets.token_hex(16)
    return arguments.text(value, "id")


def gone(session_id: str, target: str) -> errors.AttentionError:
    return errors.NotFound(
        grpc.StatusCode.NOT_FOUND,
        f"session {session_id!r} is gone: its lease was over, or it was deleted",
        target=target,
        reason=UNKNOWN,
    )
