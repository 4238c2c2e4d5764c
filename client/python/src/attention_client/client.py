"""The client. Start here."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from attention_client import (
    arguments,
    attend_options,
    connection,
    core,
    results,
    retries,
    sessions,
    tensors,
    wire,
)
from attention_client import attention_pb2 as pb
from attention_client import session_pb2 as session_pb
from attention_client.results import AttentionResult, Capabilities
from attention_client.session_calls import SessionCalls, WaitingCalls
from attention_client.sessions import (
    ItemOutcome,
    Session,
    SessionBase,
    SessionInfo,
    StepItem,
)

_LAYOUTS = arguments.names_of(pb.Layout)
_CAPABILITIES = "/attention.v1.AttentionService/GetCapabilities"
_HEALTH = "/grpc.health.v1.Health/Check"

_AnyCore = TypeVar("_AnyCore")
# What the calls return: results, or what is awaited for them.
_Result = TypeVar("_Result")
_Capabilities = TypeVar("_Capabilities")
_Health = TypeVar("_Health")
_Session = TypeVar("_Session")
_Sessions = TypeVar("_Sessions")
_Infos = TypeVar("_Infos")
_Steps = TypeVar("_Steps")


class _Here(Generic[_AnyCore]):
    """A core, for the process that made it."""

    def __init__(self, made: _AnyCore) -> None:
        self.core = made
        self._process = os.getpid()

    def is_here(self) -> bool:
        return os.getpid() == self._process

    def __call__(self) -> _AnyCore:
        if not self.is_here():
            raise RuntimeError(
                f"the client was made in process {self._process}, before a "
                "fork, which gRPC does not survive: make one in this process"
            )
        return self.core


class ClientBase(
    Generic[
        _AnyCore,
        _Result,
        _Capabilities,
        _Health,
        _Session,
        _Sessions,
        _Infos,
        _Steps,
    ]
):
    """Arguments and calls of Client and of aio.Client alike: what one returns
    the other returns an awaitable for."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls: bool = False,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        allow_plaintext_token: bool = False,
        use_shared_memory: bool = True,
        max_attempts: int = retries.DEFAULT_MAX_ATTEMPTS,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Does not connect yet.

        Plain text, unless one of tls, tls_ca, tls_cert and tls_key or
        credentials is given. The files are PEM, and are read now.

        Args:
            target: an address as gRPC takes it: "host:port", "unix:/path",
                "dns:///name:port".
            timeout: seconds that a call may take unless it says otherwise, all
                of its tries together; None is no limit.
            token: who calls; sent with each call as "authorization: Bearer
                TOKEN". Nothing that this package says or shows holds it.
            token_file: instead of token, a file that holds it on one line. It
                is read now, and again with a call when the last time is a
                second ago, so that it may be replaced.
            tls: whether to encrypt, and trust the authorities that gRPC trusts
                by default.
            tls_ca: encrypt, and trust the authorities in this file instead.
            tls_cert, tls_key: the client's own certificate (with its chain)
                and key, for servers that ask for one; both or neither.
            credentials: gRPC's own, in place of the four above.
            allow_plaintext_token: whether the token may travel without TLS
                where others can read it. False: only to loopback addresses
                and Unix sockets, by what gRPC connects to and not by its name,
                and through no HTTP proxy. Anything else is a ValueError here,
                or FailedPrecondition from a call, and nothing is sent.
            use_shared_memory: whether tensors go to a server on this machine
                through shared memory, if it offers that (its flag
                --shared-memory); with the native core only.
            max_attempts: how often a call is tried at most, where the server
                is busy or drains, or the connection is lost: by the rules of
                docs/retries.md of the repository. 1: once, and its error is
                the caller's to decide about.
            channel_options: further gRPC channel arguments. gRPC itself sends a
                call again only if the server has not seen it, unless a service
                config given here asks for more: with one that does, set
                max_attempts to 1, else both try again. With
                ("grpc.enable_http_proxy", 0) no call goes through the proxy
                that grpc_proxy, https_proxy or http_proxy names; those to
                this machine never do.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument, or what its file holds, cannot be used.
        """
        self._target = arguments.address(target, "target")
        limit = arguments.seconds(timeout, "timeout")
        self._timeout = math.inf if limit is None else limit
        settings = core.Settings(
            self._target,
            connection.Security(
                credentials=arguments.credentials(credentials, "credentials"),
                tls=arguments.flag(tls, "tls")
                or any(
                    file is not None for file in (tls_ca, tls_cert, tls_key)
                ),
                tls_ca=arguments.path(tls_ca, "tls_ca"),
                tls_cert=arguments.path(tls_cert, "tls_cert"),
                tls_key=arguments.path(tls_key, "tls_key"),
                token=arguments.secret(token, "token"),
                token_file=arguments.path(token_file, "token_file"),
                allow_plaintext_token=arguments.flag(
                    allow_plaintext_token, "allow_plaintext_token"
                ),
            ),
            arguments.channel_options(channel_options, "channel_options"),
            arguments.flag(use_shared_memory, "use_shared_memory"),
            arguments.attempts(max_attempts, "max_attempts"),
        )
        self._core = self._make_core(settings)
        self._home = _Here(self._core)
        self._calls = self._make_calls(settings)

    def _make_core(self, settings: core.Settings) -> _AnyCore:
        raise NotImplementedError

    def _make_calls(self, settings: core.Settings) -> SessionCalls:
        raise NotImplementedError

    def compute(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        mask: Any = None,
        past_key: Any = None,
        past_value: Any = None,
        valid_lengths: Sequence[int] | None = None,
        query_starts: Sequence[int] | None = None,
        key_starts: Sequence[int] | None = None,
        layout: str | None = None,
        query_heads: int | None = None,
        kv_heads: int | None = None,
        scale: float | None = None,
        softcap: float = 0,
        causal: str | None = None,
        window: tuple[int | None, int | None] | None = None,
        chunk_size: int = 0,
        alibi_slopes: Sequence[float] | None = None,
        sinks: Any = None,
        indices: Any = None,
        math_mode: str | None = None,
        softmax_precision: Any = None,
        return_log_sum_exp: bool = False,
        return_scores: str | None = None,
        return_present: bool = False,
        timeout: float | None = None,
    ) -> _Result:
        """softmax(scale * query key^T + bias) value, on the server.

        Letters: B batch, Hq query heads, Hkv key/value heads (Hq is a multiple
        of Hkv), S query length, L new key/value length, P past length,
        T = P + L, D head size of query and key, Dv head size of value.

        Arrays may have any strides and byte order; float32, float16, bfloat16
        (of ml_dtypes) or float64. Lists of numbers become float32.

        Args:
            query, key, value: shape by the layout:
                "matrix" (S, D), (L, D), (L, Dv);
                "packed" (B, S, Hq*D), (B, L, Hkv*D), (B, L, Hkv*Dv);
                "bhsd" (B, Hq, S, D), (B, Hkv, L, D), (B, Hkv, L, Dv);
                "bshd" (B, S, Hq, D), (B, L, Hkv, D), (B, L, Hkv, Dv);
                "ragged" (sum S, Hq, D), (sum L, Hkv, D), (sum L, Hkv, Dv).
                key has the query's type; value may have another.
            mask: bool (True attends) or numbers of any integer or float type,
                which are added to the scores: integers 0 and 1 hide nothing
                (a warning says so), .astype(bool) makes them a mask that does.
                Broadcast to (B, Hq, S, T) by numpy's rules. A last axis
                shorter than T is padded with masked keys. Or a PackedMask, of
                one bit for each element.
            past_key, past_value: (B, Hkv, P, D) and (B, Hkv, P, Dv), before
                key and value; both or neither.
            valid_lengths: B numbers in [0, T]; later keys are masked.
            query_starts, key_starts: ragged only, B + 1 numbers each; sequence
                b owns rows [starts[b], starts[b + 1]).
            layout: one of the names above; None is by rank: 2 matrix,
                3 packed, 4 bhsd.
            query_heads, kv_heads: Hq and Hkv; needed with "packed".
            scale: factor of the dot products; None is 1 / sqrt(D).
            softcap: scores become softcap * tanh(score / softcap); 0 is none.
            causal: "top_left" (query i sees keys j <= i + P, PyTorch's and
                ONNX's), "bottom_right" (the last query sees the last key,
                FlashAttention's) or None.
            window: (left, right), how many keys before and after its own
                position a query sees; None or -1 is no bound.
            chunk_size: a query sees keys of its own chunk of so many positions
                only; 0 is none.
            alibi_slopes: Hq numbers.
            sinks: Hq logits that take part in the softmax's sum, or one for
                each row: an array (B, Hq, S), "ragged" (sum S, Hq).
            indices: integers (B, S, k), or (B, Hq, S, k) for each query head,
                "ragged" (sum S, k) or (sum S, Hq, k): the keys that a query
                sees, in any order; -1 is none. The server reads only these.
            math_mode: "reproducible" (same bits on every server; the default)
                or "fast".
            softmax_precision: least type to compute in: "float32", "float64".
            return_log_sum_exp: whether to return log_sum_exp.
            return_scores: a stage to return as scores: "raw", "capped",
                "biased" or "weights".
            return_present: whether to return present_key and present_value.
            timeout: seconds; None is the client's.

        Raises:
            AttentionError: a subclass for each code, see errors.
            TypeError: an argument is of a type that means nothing there: a
                string for a number, a masked or sparse array. The text names
                the argument, what came and what was wanted; so it does for
            ValueError: of the right type, but nothing that can be sent: an
                unknown name, rows of different length.
        """
        # At this depth of calls: it warns of its caller's caller.
        mask_array = tensors.sendable_mask(mask)
        # Field by field: messages made of keywords cost a small call a tenth of
        # its time.
        others = pb.ComputeAttentionRequest()
        options = others.options
        options.SetInParent()
        if layout is not None:
            options.layout = arguments.enum(layout, "layout", _LAYOUTS)
        if query_heads is not None:
            options.query_heads = arguments.whole_number(
                query_heads, "query_heads"
            )
        if kv_heads is not None:
            options.kv_heads = arguments.whole_number(kv_heads, "kv_heads")
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
            return_scores=return_scores,
        )
        options.return_present = arguments.flag(
            return_present, "return_present"
        )
        for name, numbers, field in (
            ("valid_lengths", valid_lengths, others.valid_lengths),
            ("query_starts", query_starts, others.query_starts),
            ("key_starts", key_starts, others.key_starts),
        ):
            if numbers is not None:
                field.extend(arguments.whole_numbers(numbers, name))
        request = wire.Request(
            (
                tensors.sendable(query, "query"),
                tensors.sendable(key, "key"),
                tensors.sendable(value, "value"),
                mask_array,
                tensors.sendable_if_any(past_key, "past_key"),
                tensors.sendable_if_any(past_value, "past_value"),
                tensors.sendable_indices(indices),
                tensors.sendable_sinks(sinks),
            ),
            others.SerializeToString(),
        )
        return self._calls.run(  # type: ignore[no-any-return]
            self._calls.compute(request, self._limit(timeout))
        )

    def capabilities(self, *, timeout: float | None = None) -> _Capabilities:
        """What the server can do, and its limits."""
        return self._calls.run(  # type: ignore[no-any-return]
            self._calls.ask(
                _CAPABILITIES,
                b"",
                self._limit(timeout),
                results.capabilities_of,
            )
        )

    def health(
        self, service: str = "", *, timeout: float | None = None
    ) -> _Health:
        """The health of a service by its full name, or of the whole server:
        "SERVING" or "NOT_SERVING".

        Raises:
            NotFound: the server has no such service.
        """
        request = health_pb2.HealthCheckRequest(
            service=arguments.text(service, "service")
        )
        return self._calls.run(  # type: ignore[no-any-return]
            self._calls.ask(
                _HEALTH,
                request.SerializeToString(),
                self._limit(timeout),
                _health_of,
            )
        )

    def empty(self, shape: int | Sequence[int], dtype: Any) -> NDArray[Any]:
        """An array to fill and pass to compute(): its elements, whatever they
        are, lie aligned to 64 bytes, and are shared with the server where that
        is possible: with the native core, and a server on this machine that
        offers it. Each array may cost a file descriptor: keep large ones.

        Args:
            shape: a length, or one for each axis.
            dtype: a type of the wire, or its name, such as "float32".
        """
        return tensors.empty(shape, dtype, self._here().allocate)

    def create_session(
        self,
        id: str | None = None,
        layers: int = 1,
        kv_heads: int = 8,
        head_size: int = 128,
        value_head_size: int | None = None,
        data_type: Any = "float32",
        lease: float = 60.0,
        value_is_key_prefix: bool = False,
        *,
        retain_window: int | Sequence[int] = 0,
        rollback_tokens: int = 256,
        timeout: float | None = None,
    ) -> _Session:
        """A session without tokens. Where the server has one with this id and
        the same configuration, it is the answer, with its tokens.

        Args:
            id: 1 to 128 characters of printable ASCII, no spaces; None: one that
                nobody can guess.
            layers: of the model, numbered from 0; at most 1024.
            kv_heads, head_size, value_head_size: Hkv, D and Dv; None is D.
            data_type: what keys and values are stored as: "float32", "float16",
                "bfloat16", "float64", "int8" or "float8_e4m3", or a dtype. Of
                the last two each token and head has a scale, and queries are
                float32.
            lease: seconds that the session lives unused, at least 1. Its object
                renews it.
            value_is_key_prefix: whether values are the first Dv columns of
                keys, as in DeepSeek's latent attention: they are not sent then.
            retain_window: how many of the last tokens a query sees, its own
                among them; 0: all. One number, or one for each layer. Such a
                layer releases the tokens before, and is asked with a `window`
                whose left is less. Queries of many new tokens see what those
                release only in the step() that appends them.
            rollback_tokens: how many tokens such layers keep beside that: so
                many of the last ones can be truncated.
            timeout: seconds; None is the client's.

        Raises:
            AlreadyExists: there is a session with this id, of another
                configuration.
            ResourceExhausted: the server holds as many sessions, or as many
                bytes of them, as it may.
            AttentionError, TypeError, ValueError: as compute().
        """
        request = session_pb.CreateSessionRequest(
            id=sessions.id_or_new(id),
            config=sessions.config_message(
                layers=layers,
                kv_heads=kv_heads,
                head_size=head_size,
                value_head_size=value_head_size,
                data_type=data_type,
                lease=lease,
                value_is_key_prefix=value_is_key_prefix,
            ),
        )
        config = request.config
        one_for_all = hasattr(retain_window, "__index__")
        config.retain_window.extend(
            arguments.whole_numbers(
                [retain_window] if one_for_all else retain_window,
                "retain_window",
            )
        )
        config.rollback_tokens = arguments.whole_number(
            rollback_tokens, "rollback_tokens"
        )
        calls = self._calls.create(request, self._limit(timeout))
        return self._calls.run(calls)  # type: ignore[no-any-return]

    def get_session(self, id: str, *, timeout: float | None = None) -> _Session:
        """A session that exists.

        Raises:
            NotFound: there is none with this id, or no longer.
        """
        calls = self._calls.open(arguments.text(id, "id"), self._limit(timeout))
        return self._calls.run(calls)  # type: ignore[no-any-return]

    def list_sessions(self, *, timeout: float | None = None) -> _Infos:
        """The caller's sessions, in the order of their ids: a list of
        SessionInfo, which renew no lease."""
        calls = self._calls.list_all(self._limit(timeout))
        return self._calls.run(calls)  # type: ignore[no-any-return]

    def fork_sessions(
        self,
        forks: Mapping[str, str | SessionBase[Any, Any, Any, Any]],
        *,
        timeout: float | None = None,
    ) -> _Sessions:
        """New sessions with the keys and values of others, all or none: a list
        in the order of `forks`. They take no memory for keys and values until
        they part from their source.

        Args:
            forks: for the id of each new session its source, a session or the
                id of one; at most 128.

        Raises:
            AlreadyExists: there is a session with one of the new ids.
            NotFound: a source does not exist, or no longer.
        """
        if not isinstance(forks, Mapping):
            arguments.wrong_type(forks, "forks", "{target: source, ...}")
        wanted = []
        sources = []
        for target, source in forks.items():
            field = f"forks[{target!r}]"
            new_id = arguments.text(target, "forks")
            if isinstance(source, SessionBase):
                self._check_own(source, field)
                sources.append(source)
                wanted.append(source.fork_to(new_id))
            else:
                source_id = arguments.text(source, field)
                wanted.append(sessions.Fork(new_id, source_id))
        limit = self._limit(timeout)

        async def fork() -> Any:
            for session in sources:
                if error := session.gone():
                    raise error
            return await self._calls.fork(wanted, limit)

        return self._calls.run(fork())  # type: ignore[no-any-return]

    def _check_own(
        self, session: SessionBase[Any, Any, Any, Any], field: str
    ) -> None:
        if not session.belongs_to(self._calls):
            raise ValueError(f"{field}: got a session of another client")

    def step(
        self, items: Sequence[StepItem], *, timeout: float | None = None
    ) -> _Steps:
        """Appends to and attends over any layers of any sessions of this client,
        in one round trip: a decode step of one layer for all sequences that are
        worked on.

            results = client.step([
                StepItem(session, query=q, key=k, value=v, layer=3)
                for session, q, k, v in rows])

        Returns a list with an entry for each item, in their order: an
        AttentionResult, or for an item without a query the layer's length. An
        item fails alone: its entry is an AttentionError, which is not raised,
        so that it hides none of the other results. Where the call fails as a
        whole, as without a connection, that is the entry of all its items.

        A layer may be named more than once only by items that do not append.
        More than 1024 items, or 64 MiB, are sent in several messages.

        Raises:
            TypeError, ValueError: an argument cannot be sent; nothing was.
        """
        if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
            arguments.wrong_type(items, "items", "a list of StepItem")
        checked = []
        appended: dict[tuple[str, int], bool] = {}
        for i, item in enumerate(items):
            if not isinstance(item, StepItem):
                arguments.wrong_type(item, f"items[{i}]", "a StepItem")
            checked.append(item.checked(f"items[{i}]."))
            self._check_own(item.session, f"items[{i}].session")
            layer = (item.session.id, checked[i].layer)
            appends = checked[i].new is not None
            if layer in appended and (appends or appended[layer]):
                raise ValueError(
                    f"items[{i}].layer: got {layer[1]} of session {layer[0]!r} "
                    "as an item before, and one of the two appends"
                )
            appended[layer] = appends
        calls = self._calls.step(checked, self._limit(timeout))
        return self._calls.run(calls)  # type: ignore[no-any-return]

    def _limit(self, timeout: float | None) -> float:
        limit = arguments.seconds(timeout, "timeout")
        return self._timeout if limit is None else limit

    def _here(self) -> Any:
        """The core, in the process that made it."""
        return self._home()


class Client(
    ClientBase[
        "core.Core",
        AttentionResult,
        Capabilities,
        str,
        Session,
        list[Session],
        list[SessionInfo],
        list[ItemOutcome],
    ]
):
    """A connection to one attention server.

    Thread-safe: any number of threads may call at once. It connects with the
    first call, and again by itself after a server was away.

        >>> import numpy as np
        >>> from attention_client import Client
        >>> rows = np.ones((2, 4), np.float32)
        >>> with Client("127.0.0.1:50051", timeout=10) as client:
        ...     result = client.compute(rows, rows, rows, causal="top_left")
        >>> result.output.shape
        (2, 4)

    A call that fails, here for a key whose head size is not the query's:

        >>> from attention_client import InvalidArgument
        >>> with Client("127.0.0.1:50051", timeout=10) as client:
        ...     try:
        ...         client.compute(rows, np.ones((3, 8), np.float32), rows)
        ...     except InvalidArgument as error:
        ...         error.field_violations[0].field
        'key.shape'

    Ctrl-C ends a running call. A client must not be used in a process that was
    forked after it was made: its calls raise RuntimeError there.
    """

    def _make_core(self, settings: core.Settings) -> core.Core:
        if core.is_native(settings):
            from attention_client.native_core import NativeCore

            return NativeCore(settings)
        from attention_client.pure_core import PureCore

        return PureCore(settings)

    def _make_calls(self, settings: core.Settings) -> SessionCalls:
        return WaitingCalls(self._home, settings, self._timeout, Session)

    def __enter__(self) -> Client:  # noqa: PYI034
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and cancels running calls. May be repeated. Leases
        of sessions are not renewed any more."""
        if self._home.is_here():
            self._calls.close()
            self._core.close()


def _health_of(message: bytes) -> str:
    response = health_pb2.HealthCheckResponse.FromString(message)
    return str(
        health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    )
