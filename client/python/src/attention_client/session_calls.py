"""What a client calls, tried again where that helps, for clients that wait and
for those of asyncio."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, Union

import grpc
from google.protobuf.message import Message

from attention_client import (
    arguments,
    core,
    errors,
    sessions,
    step_messages,
    waiting,
    wire,
)
from attention_client import session_pb2 as session_pb
from attention_client.leases import Lease, LeaseRenewer
from attention_client.results import AttentionResult
from attention_client.retries import Retries, Twice
from attention_client.sessions import Item, ItemOutcome, SessionInfo, info_of

_Read = TypeVar("_Read")
_Result = TypeVar("_Result")

# How an item ended at the server.
_ItemEnd = Union[step_messages.ItemResult, errors.AttentionError]

STEP = "/attention.v1.SessionService/Step"
_PAGE = 1000


class SessionCalls:
    """Makes calls for a client and its sessions, which share it, and keeps those
    alive. `here` gives the core, in the process that made it."""

    def __init__(
        self,
        here: Callable[[], Any],
        settings: core.Settings,
        timeout: float,
        make_session: Callable[[SessionCalls, SessionInfo], Any],
    ) -> None:
        self._here = here
        self._target = settings.target
        self._max_attempts = settings.max_attempts
        self._timeout = timeout
        self._make_session = make_session
        self._renewer = LeaseRenewer(self._renew)

    @property
    def target(self) -> str:
        return self._target

    def limit(self, timeout: float | None) -> float:
        limit = arguments.seconds(timeout, "timeout")
        return self._timeout if limit is None else limit

    def watch(self, lease: Lease) -> None:
        self._renewer.watch(lease)

    def close(self) -> None:
        """Calls that wait for their next try end as cancelled."""
        self._renewer.close()

    async def compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        return await self._tries(
            Twice.HARMLESS, limit, lambda left: self._compute(request, left)
        )

    async def ask(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
        twice: Twice = Twice.HARMLESS,
    ) -> _Read:
        return await self._tries(
            twice, limit, lambda left: self._call(method, message, left, read)
        )

    async def _tries(
        self,
        twice: Twice,
        limit: float,
        once: Callable[[float], Awaitable[_Result]],
    ) -> _Result:
        """What `once` returns, which gets the seconds that are left."""
        end = time.monotonic() + limit
        left = limit
        tries: Retries | None = None
        while True:
            try:
                return await once(left)
            except errors.AttentionError as error:
                tries = tries or Retries(twice, self._max_attempts)
                pause = tries.pause_after(error, end)
                if pause is None:
                    raise
            await self._pause(pause)
            left = end - time.monotonic()

    async def _pause(self, seconds: float) -> None:
        if not await self._sleep(seconds):
            raise errors.Cancelled(
                grpc.StatusCode.CANCELLED,
                "the client was closed before another try",
                target=self._target,
            )

    async def create(
        self, request: session_pb.CreateSessionRequest, limit: float
    ) -> Any:
        return self._make_session(
            self, await self._session("CreateSession", request, limit)
        )

    async def open(self, session_id: str, limit: float) -> Any:
        request = session_pb.GetSessionRequest(id=session_id)
        return self._make_session(
            self, await self._session("GetSession", request, limit)
        )

    async def get(self, lease: Lease, limit: float) -> SessionInfo:
        request = _get_request(lease)
        return await self._known_session("GetSession", request, lease, limit)

    async def truncate(
        self, lease: Lease, length: int, limit: float
    ) -> SessionInfo:
        request = session_pb.TruncateSessionRequest(
            id=lease.session_id, length=length, incarnation=lease.incarnation
        )
        return await self._known_session(
            "TruncateSession", request, lease, limit
        )

    async def delete(self, lease: Lease, limit: float) -> None:
        request = session_pb.DeleteSessionRequest(
            id=lease.session_id, incarnation=lease.incarnation
        )
        await self._ask("DeleteSession", request, limit, lambda _: None)

    async def list_all(self, limit: float) -> list[SessionInfo]:
        end = time.monotonic() + limit
        request = session_pb.ListSessionsRequest(page_size=_PAGE)
        found: list[SessionInfo] = []
        while True:
            page = await self._ask(
                "ListSessions",
                request,
                end - time.monotonic(),
                session_pb.ListSessionsResponse.FromString,
            )
            found += map(info_of, page.sessions)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def fork(
        self, forks: Sequence[sessions.Fork], limit: float
    ) -> list[Any]:
        """Not sent again where it may have been done: whether a session that
        exists then is the one wanted cannot be told."""
        request = session_pb.ForkSessionsRequest(
            forks=[
                session_pb.ForkSessionsRequest.Fork(
                    source=fork.source,
                    target=fork.target,
                    source_incarnation=fork.source_incarnation,
                )
                for fork in forks
            ]
        )
        answer = await self._ask(
            "ForkSessions",
            request,
            limit,
            session_pb.ForkSessionsResponse.FromString,
            Twice.HARMFUL,
        )
        return [
            self._make_session(self, info_of(session))
            for session in answer.sessions
        ]

    async def step(
        self, items: Sequence[Item], limit: float
    ) -> list[ItemOutcome]:
        """How each item ended; raises no AttentionError."""
        end = time.monotonic() + limit
        ended: dict[int, ItemOutcome] = {}
        last: dict[int, Item] = {}
        for i, item in enumerate(items):
            *before, last[i] = item.parts()
            for part in before:
                (result,) = await self._send([part], end)
                if isinstance(result, errors.AttentionError):
                    ended[i] = result
                    del last[i]
                    break
        ended.update(zip(last, await self._send(list(last.values()), end)))
        return [ended[i] for i in range(len(items))]

    async def _send(
        self, items: Sequence[Item], end: float
    ) -> list[ItemOutcome]:
        gone = [item.session.gone() for item in items]
        living = [item for item, error in zip(items, gone) if error is None]
        try:
            found = await self._results(
                [item.message() for item in living], end
            )
        except BaseException:  # The caller was interrupted.
            for item in living:
                item.left()
            raise
        ended = iter(
            [item.ended(result) for item, result in zip(living, found)]
        )
        return [next(ended) if error is None else error for error in gone]

    async def _results(
        self, messages: Sequence[wire.Message], end: float
    ) -> list[_ItemEnd]:
        """Sends items, and those that are worth another try once more, all
        together, until none is."""
        found = await self._results_once(messages, end)
        tries: dict[int, Retries] = {}
        sent: Sequence[int] = range(len(messages))
        while True:
            pauses = {}
            for i in sent:
                failed = found[i]
                if not isinstance(failed, errors.AttentionError):
                    continue
                if i not in tries:
                    tries[i] = Retries(Twice.APPEND, self._max_attempts)
                pause = tries[i].pause_after(failed, end)
                if pause is not None:
                    pauses[i] = pause
            if not pauses:
                return found
            sent = list(pauses)
            try:
                await self._pause(max(pauses.values()))
            except errors.Cancelled as error:
                for i in sent:
                    found[i] = error
                return found
            answered = await self._results_once(
                [messages[i] for i in sent], end
            )
            for i, result in zip(sent, answered):
                found[i] = result

    async def _results_once(
        self, messages: Sequence[wire.Message], end: float
    ) -> list[_ItemEnd]:
        found: list[_ItemEnd] = []
        for count, message in step_messages.requests(messages):
            read = functools.partial(
                step_messages.results_of, count=count, target=self._target
            )
            try:
                found += await self._exchange(
                    message, end - time.monotonic(), read
                )
            except errors.AttentionError as error:
                found += [error] * count
        return found

    async def _session(
        self, method: str, request: Message, limit: float
    ) -> SessionInfo:
        return await self._ask(method, request, limit, _info)

    async def _known_session(
        self, method: str, request: Message, lease: Lease, limit: float
    ) -> SessionInfo:
        if lease.gone:
            raise sessions.gone(lease.session_id, self._target)
        try:
            return await self._session(method, request, limit)
        except errors.NotFound:
            lease.lost()
            raise

    async def _ask(
        self,
        method: str,
        request: Message,
        limit: float,
        read: Callable[[bytes], _Read],
        twice: Twice = Twice.HARMLESS,
    ) -> _Read:
        return await self.ask(
            _method(method), request.SerializeToString(), limit, read, twice
        )

    def _renew(self, lease: Lease, limit: float) -> None:
        """Waits, also for a client of asyncio."""
        message = _get_request(lease).SerializeToString()
        self._blocking().call(_method("GetSession"), message, limit, _info)

    # How the two kinds differ.

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        raise NotImplementedError

    def _blocking(self) -> core.BlockingCalls:
        raise NotImplementedError

    async def _compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        raise NotImplementedError

    async def _call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        raise NotImplementedError

    async def _exchange(
        self,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> bool:
        """False: the client was closed meanwhile."""
        raise NotImplementedError


class WaitingCalls(SessionCalls):
    """Of a client that waits; nothing suspends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._closed = threading.Event()

    def close(self) -> None:
        super().close()
        self._closed.set()

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        return waiting.run(calls)

    def _blocking(self) -> core.BlockingCalls:
        blocking: core.BlockingCalls = self._here()
        return blocking

    async def _compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        result: AttentionResult = self._here().compute(request, limit)
        return result

    async def _call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        answer: _Read = self._here().call(method, message, limit, read)
        return answer

    async def _exchange(
        self,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        answer: _Read = self._here().exchange(STEP, message, limit, read)
        return answer

    async def _sleep(self, seconds: float) -> bool:
        return not self._closed.wait(min(seconds, threading.TIMEOUT_MAX))


class AwaitedCalls(SessionCalls):
    """Of a client of asyncio."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()  # Guards the rest.
        self._closed = False
        self._pauses: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        super().close()
        with self._lock:
            self._closed = True
            pauses = list(self._pauses)
        for pause in pauses:
            try:
                pause.get_loop().call_soon_threadsafe(_end, pause)
            except RuntimeError:  # The loop is closed: nobody waits any more.
                pass

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        return calls

    def _blocking(self) -> core.BlockingCalls:
        blocking: core.BlockingCalls = self._here().blocking()
        return blocking

    async def _compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        result: AttentionResult = await self._here().compute(request, limit)
        return result

    async def _call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        answer: _Read = await self._here().call(method, message, limit, read)
        return answer

    async def _exchange(
        self,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        answer: _Read = await self._here().exchange(STEP, message, limit, read)
        return answer

    async def _sleep(self, seconds: float) -> bool:
        pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                return False
            self._pauses.add(pause)
        try:
            return not (await asyncio.wait({pause}, timeout=seconds))[0]
        finally:
            with self._lock:
                self._pauses.discard(pause)


def _end(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


def _method(name: str) -> str:
    return f"/attention.v1.SessionService/{name}"


def _get_request(lease: Lease) -> session_pb.GetSessionRequest:
    return session_pb.GetSessionRequest(
        id=lease.session_id, incarnation=lease.incarnation
    )


def _info(message: bytes) -> SessionInfo:
    # Create, Get and Truncate answer alike.
    return info_of(session_pb.GetSessionResponse.FromString(message).session)
