"""The calls of SessionService, for clients that wait and for those of
asyncio."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, Union

from google.protobuf.message import Message

from attention_client import (
    arguments,
    core,
    errors,
    retries,
    sessions,
    step_messages,
    waiting,
    wire,
)
from attention_client import session_pb2 as session_pb
from attention_client.leases import Lease, LeaseRenewer
from attention_client.sessions import Item, ItemOutcome, SessionInfo, info_of

_Read = TypeVar("_Read")

# How an item ended at the server.
_ItemEnd = Union[step_messages.ItemResult, errors.AttentionError]

STEP = "/attention.v1.SessionService/Step"
_PAGE = 1000


class SessionCalls:
    """Makes calls for sessions, which share it with their client, and keeps
    them alive. `here` gives the core, in the process that made it."""

    def __init__(
        self,
        here: Callable[[], Any],
        target: str,
        timeout: float,
        make_session: Callable[[SessionCalls, SessionInfo], Any],
    ) -> None:
        self._here = here
        self._target = target
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
        self._renewer.close()

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
        await self._again("DeleteSession", request, limit, lambda _: None)

    async def list_all(self, limit: float) -> list[SessionInfo]:
        end = time.monotonic() + limit
        request = session_pb.ListSessionsRequest(page_size=_PAGE)
        found: list[SessionInfo] = []
        while True:
            page = await self._again(
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
        """Not tried again: whether a session that exists then is the one wanted
        cannot be told."""
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
        answer = await self._call(
            _method("ForkSessions"),
            request.SerializeToString(),
            limit,
            session_pb.ForkSessionsResponse.FromString,
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
        """Sends items, and those of which an earlier try still runs once more,
        until they have another answer or the time is up."""
        found = await self._results_once(messages, end)
        pauses = retries.growing_pauses()
        while again := [i for i, end_ in enumerate(found) if _under_way(end_)]:
            await self._sleep(max(0, min(next(pauses), end - time.monotonic())))
            answered = await self._results_once(
                [messages[i] for i in again], end
            )
            for i, result in zip(again, answered):
                found[i] = result
        return found

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
        return await self._again(method, request, limit, _info)

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

    async def _again(
        self,
        method: str,
        request: Message,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        """A call that may be done more than once."""
        message = request.SerializeToString()

        async def call(left: float) -> _Read:
            return await self._call(_method(method), message, left, read)

        return await retries.until_answered(call, limit, self._sleep)

    def _renew(self, lease: Lease, limit: float) -> None:
        """Waits, also for a client of asyncio."""
        message = _get_request(lease).SerializeToString()
        self._blocking().call(_method("GetSession"), message, limit, _info)

    # How the two kinds differ.

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        raise NotImplementedError

    def _blocking(self) -> core.BlockingCalls:
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

    async def _sleep(self, seconds: float) -> None:
        raise NotImplementedError


class WaitingCalls(SessionCalls):
    """Of a client that waits; nothing suspends."""

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        return waiting.run(calls)

    def _blocking(self) -> core.BlockingCalls:
        blocking: core.BlockingCalls = self._here()
        return blocking

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

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  It never runs in a loop.


class AwaitedCalls(SessionCalls):
    """Of a client of asyncio."""

    def run(self, calls: Coroutine[Any, Any, Any]) -> Any:
        return calls

    def _blocking(self) -> core.BlockingCalls:
        blocking: core.BlockingCalls = self._here().blocking()
        return blocking

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

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _under_way(result: _ItemEnd) -> bool:
    return (
        isinstance(result, errors.AttentionError)
        and result.reason == sessions.UNDER_WAY
    )


def _method(name: str) -> str:
    return f"/attention.v1.SessionService/{name}"


def _get_request(lease: Lease) -> session_pb.GetSessionRequest:
    return session_pb.GetSessionRequest(
        id=lease.session_id, incarnation=lease.incarnation
    )


def _info(message: bytes) -> SessionInfo:
    # Create, Get and Truncate answer alike.
    return info_of(session_pb.GetSessionResponse.FromString(message).session)
