"""One sequence over several servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attention_client import (
    arguments,
    attend_options,
    errors,
    results,
    sessions,
    tensors,
)
from attention_client import attention_pb2 as pb
from attention_client.results import AttentionResult

if TYPE_CHECKING:
    from attention_client import _native
    from attention_client.client import Client

_LOST = "SHARD_LOST"


@dataclass(frozen=True)
class ShardedResult(AttentionResult):
    """The answer of ShardedSession.attend; `timing` is the longest of all
    servers'."""

    # Tokens that nobody answered for, (begin, end) each, ascending; none
    # without allow_missing.
    missing: tuple[tuple[int, int], ...] = ()


def missing_tokens(
    error: errors.AttentionError,
) -> tuple[tuple[int, int], ...]:
    """The tokens, (begin, end) each and ascending, that an Unavailable of
    ShardedSession.attend() is about; none of other errors."""
    if error.reason != _LOST:
        return ()
    ranges = error.metadata.get("missing", "").split(",")
    ends = [each.split("-") for each in ranges if each]
    return tuple((int(begin), int(end)) for begin, end in ends)


class ShardedSession:
    """Keys and values of one sequence, dealt out to several servers: for
    contexts that are longer than the memory of one.

        sequence = ShardedSession.create(clients, kv_heads=8, head_size=128)
        sequence.append(key, value)
        result = sequence.attend(query)

    Tokens go to the servers in runs of blocks of 256, in turn; each keeps its
    own in an ordinary session. A query goes to all, and what they answer is
    merged here, to the bits of one server that has all tokens.

    An append that covers several servers shows at once, when each has its own.
    If it fails on its way the lengths stay, and the same arrays, appended again,
    finish it; others raise Aborted until then, or until truncate().

    create() and open() make it. It needs clients with the native core, which
    keeps the leases while the object is referred to, and has no asyncio. All
    servers are asked at once; a timeout is that of the call as a whole. Its
    calls may be made by several threads; Ctrl-C waits for them, and closing one
    of the clients ends them. At the end of a `with` block it is deleted.
    """

    def __init__(
        self, clients: Sequence[Client], native: _native.Sharded
    ) -> None:
        """For create(), open() and fork() alone."""
        self._clients = tuple(clients)
        self._native = native

    @classmethod
    def create(
        cls,
        clients: Sequence[Client],
        id: str | None = None,
        layers: int = 1,
        kv_heads: int = 8,
        head_size: int = 128,
        value_head_size: int | None = None,
        data_type: Any = "float32",
        lease: float = 60.0,
        value_is_key_prefix: bool = False,
        *,
        blocks_per_run: int = 16,
        timeout: float | None = None,
    ) -> ShardedSession:
        """A sequence over the servers of these clients, one each, in this order.

        Args:
            clients: at least one.
            id: what the ids of the servers' sessions begin with; where there are
                such sessions they are taken over, with their tokens. None: one
                that nobody can guess.
            blocks_per_run: a power of two. For each run, query and head Dv + 2
                numbers come back.

        The others are as in Client.create_session(), and so are errors.
        """
        config = sessions.config_message(
            layers=layers,
            kv_heads=kv_heads,
            head_size=head_size,
            value_head_size=value_head_size,
            data_type=data_type,
            lease=lease,
            value_is_key_prefix=value_is_key_prefix,
        ).SerializeToString()
        name = sessions.id_or_new(id)
        return cls._made(clients, config, name, blocks_per_run, timeout)

    @classmethod
    def open(
        cls,
        clients: Sequence[Client],
        id: str,
        *,
        blocks_per_run: int = 16,
        timeout: float | None = None,
    ) -> ShardedSession:
        """The sequence that was created with this id over the same servers, in
        the same order, with the same blocks_per_run.

        Raises:
            NotFound: a server has no session of it, or no longer.
        """
        name = arguments.text(id, "id")
        return cls._made(clients, None, name, blocks_per_run, timeout)

    @classmethod
    def _made(
        cls,
        clients: Sequence[Client],
        config: bytes | None,
        name: str,
        blocks_per_run: int,
        timeout: float | None,
    ) -> ShardedSession:
        if not clients:
            raise ValueError("clients: got none, wanted at least one")
        run = arguments.whole_number(blocks_per_run, "blocks_per_run")
        cores = [_core_of(client) for client in clients]
        limit = clients[0]._limit(timeout)
        errors.check_time(limit, clients[0]._target)
        from attention_client import _native

        made = _native.Sharded.make(
            [core._native for core in cores], config, name, run, limit
        )
        return cls(clients, _good(clients, made))

    @property
    def ids(self) -> tuple[str, ...]:
        """Those of the servers' sessions."""
        return tuple(self._native.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each layer, as far as this object knows."""
        return tuple(self._native.lengths)

    @property
    def length(self) -> int:
        """The least of lengths: tokens that every layer has."""
        return min(self._native.lengths)

    def tokens_of(
        self, shard: int, layer: int = 0
    ) -> tuple[tuple[int, int], ...]:
        """The tokens of a layer that a server keeps, (begin, end) each."""
        return tuple(
            self._native.tokens_of(
                arguments.whole_number(shard, "shard"),
                arguments.whole_number(layer, "layer"),
            )
        )

    def append(
        self,
        key: Any,
        value: Any = None,
        layer: int = 0,
        *,
        timeout: float | None = None,
    ) -> int:
        """Adds tokens to a layer, and returns its length then. Arguments as of
        Session.append().

        Raises:
            Aborted: APPEND_UNFINISHED: another append to the layer has to be
                finished first. LENGTH_CONFLICT: somebody else has changed it.
            AttentionError, TypeError, ValueError: as Session.append().
        """
        new = tensors.sendable(key, "key")
        values = tensors.sendable_if_any(value, "value")
        number = arguments.whole_number(layer, "layer")
        return int(
            self._call(
                timeout,
                lambda limit: self._native.append(number, new, values, limit),
            )
        )

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
        allow_missing: bool = False,
        timeout: float | None = None,
    ) -> ShardedResult:
        """Attention over all tokens of a layer. Arguments as of
        Session.attend(), and:

        Args:
            allow_missing: whether to answer over what is there where servers
                are lost, unless all are; the result tells what is missing, and
                has log_sum_exp. It comes when the timeout is over where one
                does not answer.

        Raises:
            Unavailable: a server cannot be reached, does not answer within the
                timeout, or has lost its session; missing_tokens() of it are the
                tokens that it had.
            DeadlineExceeded: no server at all answered within the timeout.
            AttentionError, TypeError, ValueError: as Session.attend().
        """
        options = pb.AttentionOptions()
        attend_options.fill(
            options,
            scale=scale,
            softcap=softcap,
            causal=causal,
            window=window,
            chunk_size=chunk_size,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            math_mode=math_mode,
            softmax_precision=softmax_precision,
            return_log_sum_exp=return_log_sum_exp,
            return_scores=None,
        )
        queries = tensors.sendable(query, "query")
        hidden = tensors.sendable_mask(mask)
        selected = tensors.sendable_indices(indices)
        row_sinks = tensors.sendable_sinks(sinks)
        number = arguments.whole_number(layer, "layer")
        missing_allowed = arguments.flag(allow_missing, "allow_missing")
        answer, missing = self._call(
            timeout,
            lambda limit: self._native.attend(
                number,
                queries,
                hidden,
                selected,
                row_sinks,
                options.SerializeToString(),
                causal is None,
                missing_allowed,
                limit,
            ),
        )
        merged = results.result_of(answer[:5], answer[5])
        return ShardedResult(**vars(merged), missing=tuple(missing))

    def fork(
        self, id: str | None = None, *, timeout: float | None = None
    ) -> ShardedSession:
        """A new sequence with the tokens of this one, at the same servers, which
        take no more memory until the two part.

        Args:
            id: as in create().
        """
        name = sessions.id_or_new(id)
        fork = self._call(timeout, lambda limit: self._native.fork(name, limit))
        return ShardedSession(self._clients, fork)

    def truncate(self, length: int, *, timeout: float | None = None) -> None:
        """Forgets the last tokens of every layer, so that each has `length`, and
        none may have fewer. The tokens are given up also where a server cannot
        be reached: it is asked again before the next append."""
        wanted = arguments.whole_number(length, "length")
        self._call(timeout, lambda limit: self._native.truncate(wanted, limit))

    def refresh(self, *, timeout: float | None = None) -> None:
        """Asks the servers for the lengths: of each layer as many tokens as are
        there without a gap."""
        self._call(timeout, self._native.refresh)

    def delete(self, *, timeout: float | None = None) -> None:
        """Ends the sessions of all servers."""
        self._call(timeout, self._native.delete)

    def __enter__(self) -> ShardedSession:  # noqa: PYI034
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        try:
            self.delete()
        except errors.AttentionError:
            if kind is None:
                raise  # Else what happened first is told.

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__name__}"
        return f"<{name} over {len(self._clients)}, length {self.length}>"

    def _call(self, timeout: float | None, call: Callable[[float], Any]) -> Any:
        """What the call gives; raises what it fails with."""
        for client in self._clients:
            client._here()  # Not in a process that was forked.
        limit = self._clients[0]._limit(timeout)
        errors.check_time(limit, self._clients[0]._target)
        return _good(self._clients, call(limit))


def _core_of(client: Client) -> Any:
    from attention_client.client import Client as Known

    if not isinstance(client, Known):
        arguments.wrong_type(client, "clients", "a list of Client")
    core = client._here()
    if not hasattr(core, "_native"):
        raise NotImplementedError(
            "ShardedSession: a client has the pure core, wanted the native one, "
            "which merges what servers answer: install a wheel that has it"
        )
    return core


def _good(clients: Sequence[Client], outcome: Any) -> Any:
    from attention_client import _native

    if isinstance(outcome, _native.Failure):
        # Its text tells which server it is about.
        raise clients[0]._here()._error(outcome)
    return outcome
