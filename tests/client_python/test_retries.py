"""What is tried again: docs/retries.md, by tests/vectors/retries.json."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import attention_client
from attention_client import Client, aio
from attention_client import attention_pb2 as pb
from polyglot.misbehaving import CASES, Outcome, play, running

ROW = np.ones((1, 4), np.float32)
TOKEN = np.ones((2, 1, 16), np.float32)
QUERY = np.ones((4, 1, 16), np.float32)
OF_CLIENT = {
    "compute": lambda client, timeout: client.compute(
        ROW, ROW, ROW, timeout=timeout
    ),
    "capabilities": lambda client, timeout: client.capabilities(
        timeout=timeout
    ),
    "health": lambda client, timeout: client.health(timeout=timeout),
    "create": lambda client, timeout: client.create_session(timeout=timeout),
}
OF_SESSION = {
    "fork": lambda session, timeout: session.fork(timeout=timeout),
    "truncate": lambda session, timeout: session.truncate(0, timeout=timeout),
    "delete": lambda session, timeout: session.delete(timeout=timeout),
    "append": lambda session, timeout: session.append(
        TOKEN, TOKEN, timeout=timeout
    ),
    "step": lambda session, timeout: session.step(
        QUERY, TOKEN, TOKEN, timeout=timeout
    ),
}


@pytest.fixture(scope="module")
def misbehaving():
    with running() as server:
        yield server


def outcome(begin, error=None):
    took_ms = 1000 * (time.monotonic() - begin)
    if error is None:
        return Outcome("OK", took_ms)
    length = getattr(error, "length", None)
    return Outcome(error.code.name, took_ms, error.reason, length)


def waiting(address, case):
    def call(token, timeout):
        with Client(address, token=token) as client:
            on, make = client, OF_CLIENT.get(case["call"])
            if make is None:
                on = client.create_session(kv_heads=2, head_size=16)
                make = OF_SESSION[case["call"]]
            begin = time.monotonic()
            try:
                make(on, timeout)
            except attention_client.AttentionError as error:
                return outcome(begin, error)
            return outcome(begin)

    return call


def awaited(address, case):
    async def call(token, timeout):
        async with aio.Client(address, token=token) as client:
            on, make = client, OF_CLIENT.get(case["call"])
            if make is None:
                on = await client.create_session(kv_heads=2, head_size=16)
                make = OF_SESSION[case["call"]]
            begin = time.monotonic()
            try:
                await make(on, timeout)
            except attention_client.AttentionError as error:
                return outcome(begin, error)
            return outcome(begin)

    return lambda token, timeout: asyncio.run(call(token, timeout))


@pytest.mark.parametrize("way", [waiting, awaited])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_vectors(misbehaving, case, way):
    play(misbehaving, case, way(misbehaving.address, case))


class Busy:
    """Refuses every call, and asks for so long a pause before the next."""

    def __init__(self, seconds):
        self.calls = 0
        self.refused = threading.Event()
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * seconds))
        status = status_pb2.Status(code=8)
        for detail in (
            error_details_pb2.ErrorInfo(
                reason="QUEUE_FULL", domain="attention"
            ),
            error_details_pb2.RetryInfo(retry_delay=delay),
        ):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        self._details = status.SerializeToString()

    def __call__(self, request, context):
        self.calls += 1
        self.refused.set()
        context.set_trailing_metadata(
            (("grpc-status-details-bin", self._details),)
        )
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")


def test_one_attempt_is_one_call(server):
    busy = server.answers["ComputeAttention"] = Busy(0.001)
    calls = 0
    for attempts in (1, 7):
        with (
            Client(server.address, max_attempts=attempts) as client,
            pytest.raises(attention_client.ResourceExhausted),
        ):
            client.compute(ROW, ROW, ROW)
        calls += attempts
        assert busy.calls == calls


def test_closing_the_client_ends_a_pause(server):
    busy = server.answers["ComputeAttention"] = Busy(60)
    client = Client(server.address)
    closing = threading.Thread(
        target=lambda: (busy.refused.wait(10), time.sleep(0.1), client.close())
    )
    closing.start()
    begin = time.monotonic()
    with pytest.raises(attention_client.Cancelled):
        client.compute(ROW, ROW, ROW)
    assert time.monotonic() - begin < 10
    closing.join()
    assert busy.calls == 1


def test_a_task_in_a_pause_stops_at_once(server):
    busy = server.answers["ComputeAttention"] = Busy(60)

    async def main():
        loop = asyncio.get_running_loop()
        async with aio.Client(server.address) as client:
            for end in ("cancel", "close"):
                busy.refused.clear()
                task = asyncio.ensure_future(client.compute(ROW, ROW, ROW))
                await loop.run_in_executor(None, busy.refused.wait, 10)
                await asyncio.sleep(0.1)
                assert not task.done()
                begin = time.monotonic()
                if end == "cancel":
                    task.cancel()
                else:
                    await client.close()
                with pytest.raises(
                    (asyncio.CancelledError, attention_client.Cancelled)
                ):
                    await task
                assert time.monotonic() - begin < 5

    asyncio.run(main())
    assert busy.calls == 2


def test_a_pause_holds_no_thread(server):
    """Other tasks of the loop go on meanwhile."""
    busy = server.answers["ComputeAttention"] = Busy(0.3)

    def answer_the_second(request, context):
        if busy.calls < 20:
            busy(request, context)
        return pb.ComputeAttentionResponse(output=request.query)

    server.answers["ComputeAttention"] = answer_the_second

    async def main():
        async with aio.Client(server.address) as client:
            begin = time.monotonic()
            await asyncio.gather(
                *(client.compute(ROW, ROW, ROW) for _ in range(20))
            )
            return time.monotonic() - begin

    # One after another the pauses alone would take six seconds.
    assert asyncio.run(main()) < 4
