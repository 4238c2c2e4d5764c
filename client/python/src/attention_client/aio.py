"""The client for asyncio.

>>> import asyncio
>>> import numpy as np
>>> from attention_client import aio
>>> async def main():
...     eye = np.eye(2, dtype=np.float32)
...     async with aio.Client("127.0.0.1:50051") as client:
...         results = await asyncio.gather(
...             client.compute(eye, eye, eye),
...             client.compute(eye, eye, eye, causal="top_left"))
...     return [float(result.output[0, 0]) for result in results]
>>> asyncio.run(main())
[0.6697615385055542, 1.0]
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from attention_client import core
from attention_client.client import ClientBase
from attention_client.errors import AttentionError
from attention_client.results import AttentionResult, Capabilities
from attention_client.session_calls import AwaitedCalls, SessionCalls
from attention_client.sessions import ItemOutcome, SessionBase, SessionInfo


class Session(
    SessionBase[
        Coroutine[Any, Any, AttentionResult],
        Coroutine[Any, Any, int],
        Coroutine[Any, Any, None],
        Coroutine[Any, Any, "Session"],
    ]
):
    """attention_client.Session with calls to be awaited; close() is none.

    async with await client.create_session(layers=2) as session:
        await session.append(key, value, layer=0)
    """

    async def __aenter__(self) -> Session:  # noqa: PYI034
        return self

    async def __aexit__(self, kind: object, *exc_info: object) -> None:
        try:
            await self.delete()
        except AttentionError:
            if kind is None:
                raise  # Else what happened first is told.


class Client(
    ClientBase[
        core.AsyncCore,
        Coroutine[Any, Any, AttentionResult],
        Coroutine[Any, Any, Capabilities],
        Coroutine[Any, Any, str],
        Coroutine[Any, Any, Session],
        Coroutine[Any, Any, list[Session]],
        Coroutine[Any, Any, list[SessionInfo]],
        Coroutine[Any, Any, list[ItemOutcome]],
    ]
):
    """attention_client.Client with calls to be awaited.

    The same arguments, results and errors; what is wrong with arguments is
    raised before there is anything to await. A task that is cancelled cancels
    its call at the server too, or the pause before its next try. Thread-safe; any number of event loops may use
    one client.

        async with aio.Client("127.0.0.1:50051", timeout=10) as client:
            result = await client.compute(query, key, value)
    """

    def _make_core(self, settings: core.Settings) -> core.AsyncCore:
        if core.is_native(settings):
            from attention_client.native_core import AsyncNativeCore

            return AsyncNativeCore(settings)
        from attention_client.pure_core import AsyncPureCore

        return AsyncPureCore(settings)

    def _make_calls(self, settings: core.Settings) -> SessionCalls:
        return AwaitedCalls(self._home, settings, self._timeout, Session)

    async def __aenter__(self) -> Client:  # noqa: PYI034
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections and cancels running calls. May be repeated."""
        if self._home.is_here():
            self._calls.close()
            await self._core.close()
