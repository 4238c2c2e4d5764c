"""The client for asyncio: as the other one, but awaited."""

import asyncio
import gc
import inspect
import threading
import weakref

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

import attention_client
from attention_client import Client, aio
from attention_client import attention_pb2 as pb

EYE = np.eye(2, dtype=np.float32)


def echo(request, context):
    return pb.ComputeAttentionResponse(output=request.query)


class UntilCancelled:
    """An answer that waits for its call to be cancelled."""

    def __init__(self):
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, request, context):
        context.add_callback(self.cancelled.set)
        self.begun.set()
        # So that a call that is not cancelled fails rather than hangs.
        self.cancelled.wait(10)
        return pb.ComputeAttentionResponse()


async def in_thread(function, *arguments):
    return await asyncio.get_running_loop().run_in_executor(
        None, function, *arguments
    )


def test_it_has_the_methods_and_arguments_of_the_other():
    for name in ("__init__", "compute", "capabilities", "health"):
        expected = inspect.signature(getattr(Client, name)).parameters
        assert inspect.signature(getattr(aio.Client, name)).parameters == (
            expected
        )


def test_calls(server):
    server.answers["ComputeAttention"] = echo
    server.answers["GetCapabilities"] = lambda request, context: (
        pb.GetCapabilitiesResponse(version="1.2.3")
    )
    server.answers["Check"] = lambda request, context: (
        health_pb2.HealthCheckResponse(status="SERVING")
    )

    async def main():
        async with aio.Client(server.address, timeout=60) as client:
            result = await client.compute(EYE, EYE, EYE)
            np.testing.assert_array_equal(result.output, EYE)
            assert (await client.capabilities()).version == "1.2.3"
            assert await client.health("service") == "SERVING"
            assert server.request.service == "service"
            return await asyncio.gather(
                *(client.compute(EYE * i, EYE, EYE) for i in range(50))
            )

    for i, result in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(result.output, EYE * i)


def test_a_large_array(server):
    server.answers["ComputeAttention"] = echo
    large = np.arange(300000, dtype=np.float32).reshape(1, -1)

    async def main():
        async with aio.Client(server.address, timeout=60) as client:
            return (await client.compute(large, EYE, EYE)).output

    output = asyncio.run(main())
    np.testing.assert_array_equal(output, large)
    output += 1


def test_errors(server):
    def answer(request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "so it is")

    server.answers["ComputeAttention"] = answer

    async def main():
        async with aio.Client(server.address, timeout=60) as client:
            with pytest.raises(TypeError, match="query: got None"):
                await client.compute(None, EYE, EYE)
            with pytest.raises(attention_client.NotFound) as caught:
                await client.compute(EYE, EYE, EYE)
            return caught.value

    error = asyncio.run(main())
    assert str(error) == f"NOT_FOUND: so it is (server {server.address})"


def test_the_timeout(server):
    answer = UntilCancelled()
    server.answers["ComputeAttention"] = answer

    async def main():
        async with aio.Client(server.address, timeout=0.05) as client:
            with pytest.raises(attention_client.DeadlineExceeded):
                await client.compute(EYE, EYE, EYE)

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_call_at_the_server(server):
    answer = UntilCancelled()
    server.answers["ComputeAttention"] = answer
    server.answers["Check"] = answer

    async def main():
        async with aio.Client(server.address, timeout=60) as client:
            for start in (
                lambda: client.compute(EYE, EYE, EYE),
                client.health,
            ):
                answer.begun.clear()
                answer.cancelled.clear()
                task = asyncio.create_task(start())
                assert await in_thread(answer.begun.wait, 10)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await in_thread(answer.cancelled.wait, 5)

    asyncio.run(main())


def test_a_client_may_be_used_by_several_loops(server):
    server.answers["ComputeAttention"] = echo
    client = aio.Client(server.address, timeout=60)
    outputs = {}

    async def main(i):
        for _ in range(5):
            result = await client.compute(EYE * i, EYE, EYE)
            outputs[i] = result.output

    threads = [
        threading.Thread(target=lambda i=i: asyncio.run(main(i)))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(client.close())
    assert sorted(outputs) == [0, 1, 2]
    for i, output in outputs.items():
        np.testing.assert_array_equal(output, EYE * i)


def test_loops_that_are_closed_are_let_go(server):
    server.answers["ComputeAttention"] = echo
    client = aio.Client(server.address, timeout=60)
    loops = []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await client.compute(EYE, EYE, EYE)

    for _ in range(4):
        asyncio.run(main())
    gc.collect()
    # The last one is kept until another comes.
    assert [loop() for loop in loops[:-1]] == [None] * 3
    asyncio.run(client.close())


def test_a_loop_that_ends_before_its_call(server):
    answer = UntilCancelled()
    server.answers["ComputeAttention"] = answer
    client = aio.Client(server.address, timeout=60)

    async def main():
        # run() cancels it.
        asyncio.create_task(client.compute(EYE, EYE, EYE))
        assert await in_thread(answer.begun.wait, 10)

    asyncio.run(main())
    assert answer.cancelled.wait(5)
    asyncio.run(client.close())


def test_a_closed_client(server):
    answer = UntilCancelled()
    server.answers["ComputeAttention"] = answer

    async def main():
        client = aio.Client(server.address, timeout=60)
        task = asyncio.create_task(client.compute(EYE, EYE, EYE))
        assert await in_thread(answer.begun.wait, 10)
        await client.close()
        await client.close()
        with pytest.raises(
            (attention_client.Cancelled, asyncio.CancelledError)
        ):
            await task
        with pytest.raises(ValueError, match="closed"):
            await client.health()

    asyncio.run(main())
    assert answer.cancelled.wait(5)
