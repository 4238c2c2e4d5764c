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

import os
from collections.abc import Coroutine
from typing import Any

from attention_client import core
from attention_client.client import ClientBase
from attention_client.results import AttentionResult, Capabilities


class Client(
    ClientBase[
        core.AsyncCore,
        Coroutine[Any, Any, AttentionResult],
        Coroutine[Any, Any, Capabilities],
        Coroutine[Any, Any, str],
    ]
):
    """attention_client.Client with calls to be awaited.

    The same arguments, results and errors; what is wrong with arguments is
    raised before there is anything to await. A task that is cancelled cancels
    its call at the server too. Thread-safe; any number of event loops may use
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

    async def __aenter__(self) -> Client:  # noqa: PYI034
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections and cancels running calls. May be repeated."""
        if os.getpid() == self._process:
            await self._core.close()
