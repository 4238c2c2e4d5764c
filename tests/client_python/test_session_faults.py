"""Sessions of a server, and of connections, that fail."""

import asyncio
import contextlib
import gc
import queue
import random
import threading
import time

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import attention_client
from attention_client import Client, StepItem, aio, leases, retries
from attention_client import attention_pb2 as pb
from attention_client import session_pb2 as session_pb

KEY = np.ones((1, 1, 2), np.float32)


def described(request, lengths=(0,), lease=60):
    config = session_pb.SessionConfig(
        num_layers=len(lengths), kv_heads=1, head_size=2, value_head_size=2
    )
    config.lease.FromSeconds(lease)
    return session_pb.GetSessionResponse(
        session=session_pb.Session(
            id=request.id, config=config, lengths=lengths
        )
    )


class Stepping:
    """Answers steps, except as `faults` says: functions of the stream's context
    that are called in place of an answer, one after another; None answers. Each
    of `endings` ends a stream after an answer."""

    def __init__(self):
        self.streams = 0
        self.requests = []
        self.faults = []
        self.endings = []
        self.delay = 0  # Seconds, before each answer.
        self.ended_well = threading.Event()

    def __call__(self, requests, context):
        self.streams += 1
        for request in requests:
            self.requests.append(request)
            fault = self.faults.pop(0) if self.faults else None
            if fault is not None:
                fault(context)
                return
            time.sleep(self.delay)
            yield session_pb.StepResponse(
                results=[self.result(item) for item in request.items]
            )
            if self.endings:
                return self.endings.pop(0)(context)
        self.ended_well.set()  # Else the loop raises.

    def result(self, item):
        result = session_pb.StepResult(length=item.expected_length + 1)
        if item.HasField("query"):
            result.output.CopyFrom(item.query)
        return result


def details(reason, code):
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="attention"))
    return status_pb2.Status(
        code=code.value[0], details=[info]
    ).SerializeToString()


def aborts(code, reason=""):
    def fault(context):
        if reason:
            context.set_trailing_metadata(
                (("grpc-status-details-bin", details(reason, code)),)
            )
        context.abort(code, "so it is")

    return fault


@pytest.fixture
def steps(server):
    server.answers["CreateSession"] = lambda request, context: described(
        request
    )
    server.answers["GetSession"] = lambda request, context: described(request)
    server.answers["Step"] = Stepping()
    return server.answers["Step"]


@pytest.fixture
def session(steps, fake_client):
    return fake_client.create_session("story")


def test_steps_share_a_stream(steps, session):
    for length in (1, 2, 3):
        assert session.append(KEY, KEY) == length
    assert steps.streams == 1
    assert [r.items[0].expected_length for r in steps.requests] == [0, 1, 2]
    assert len({r.items[0].request_id for r in steps.requests}) == 3
    assert {len(r.items) for r in steps.requests} == {1}


ENDS = pytest.mark.parametrize(
    "end",
    [
        lambda context: None,
        aborts(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        aborts(grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_BUSY"),
        aborts(grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE_TOO_LONG"),
        aborts(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
    ],
    ids=["well", "drain", "memory", "idle", "token"],
)


@ENDS
def test_a_stream_may_end_between_messages(server, steps, session, end):
    steps.endings = [end] * 3
    assert [session.append(KEY, KEY) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert steps.streams > 1
    steps.endings = [end] * 3

    async def main():
        async with aio.Client(server.address) as client:
            other = await client.create_session()
            return [await other.append(KEY, KEY) for _ in range(5)]

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]


@ENDS
def test_a_stream_that_was_ended_is_opened_again(steps, session, end):
    session.append(KEY, KEY)
    steps.faults.append(end)
    assert session.append(KEY, KEY) == 2
    assert steps.streams == 2
    assert steps.requests[1] == steps.requests[2]


def test_a_lost_answer_is_asked_for_again(steps, session):
    steps.faults = [aborts(grpc.StatusCode.UNAVAILABLE)] * 2
    result = session.step(KEY, KEY, KEY)
    np.testing.assert_array_equal(result.output, KEY)
    assert len(steps.requests) == 3
    assert len({r.SerializeToString() for r in steps.requests}) == 1


def under_way(results):
    code = grpc.StatusCode.UNAVAILABLE
    for result in results:
        result.CopyFrom(
            session_pb.StepResult(
                code=code.value[0],
                message="an earlier try is under way",
                status_details=details("APPEND_UNDER_WAY", code),
            )
        )


class UnderWay(Stepping):
    """So many next items are answered as if their first try still ran."""

    def __init__(self):
        super().__init__()
        self.left = 0

    def result(self, item):
        if self.left == 0:
            return super().result(item)
        self.left -= 1
        result = session_pb.StepResult()
        under_way([result])
        return result


def test_an_append_waits_for_its_first_try(server, steps, session, fake_client):
    server.answers["Step"] = steps = UnderWay()
    steps.left = 3
    result = session.step(KEY, KEY, KEY)
    np.testing.assert_array_equal(result.output, KEY)
    assert len(steps.requests) == 4
    assert len({r.SerializeToString() for r in steps.requests}) == 1
    assert session.lengths == (1,)
    # Of a batch the item alone is sent again.
    steps.requests.clear()
    other = fake_client.create_session("other")
    steps.left = 1
    results = fake_client.step(
        [StepItem(session, key=KEY, value=KEY), StepItem(other, query=KEY)]
    )
    assert results[0] == 2
    np.testing.assert_array_equal(results[1].output, KEY)
    assert [len(r.items) for r in steps.requests] == [2, 1]
    assert steps.requests[0].items[0] == steps.requests[1].items[0]


def test_an_append_waits_no_longer_than_it_may(server, steps, session):
    server.answers["Step"] = steps = UnderWay()
    steps.left = 1 << 30
    # What the time ends: the pause, which is not begun then, or a slow try.
    too_long = (attention_client.Unavailable, attention_client.DeadlineExceeded)
    with pytest.raises(too_long) as caught:
        session.append(KEY, KEY, timeout=0.1)
    assert caught.value.reason in ("APPEND_UNDER_WAY", "")
    assert session.lengths == (0,)

    async def main():
        async with aio.Client(server.address) as client:
            other = await client.create_session()
            with pytest.raises(too_long):
                await other.append(KEY, KEY, timeout=0.1)
            steps.left = 2
            return await other.append(KEY, KEY)

    assert asyncio.run(main()) == 1


def test_a_retry_beside_its_first_try_is_done_once(server, server_address):
    """The first try computes for seconds at a real server, which nobody has told
    yet that its client has left."""
    key = np.ones((1, 200000, 2), np.float32)
    query = np.ones((1, 100000, 2), np.float32)
    codes = []
    first = []
    with grpc.insecure_channel(server_address) as channel:
        create = channel.unary_unary(
            "/attention.v1.SessionService/CreateSession",
            session_pb.CreateSessionRequest.SerializeToString,
            session_pb.CreateSessionResponse.FromString,
        )
        step = channel.stream_stream(
            "/attention.v1.SessionService/Step",
            session_pb.StepRequest.SerializeToString,
            session_pb.StepResponse.FromString,
        )

        def relay(requests, context):
            for request in requests:
                handed_on = step(iter([request]))
                if not first:
                    first.append(handed_on)
                    while context.is_active():
                        time.sleep(0.01)
                    return
                answer = next(handed_on)
                codes.append(answer.results[0].code)
                if len(codes) == 2:
                    first[0].cancel()
                yield answer

        server.answers["CreateSession"] = lambda request, context: create(
            request
        )
        server.answers["Step"] = relay
        with Client(server.address) as client, Client(server_address) as other:
            session = client.create_session(kv_heads=1, head_size=2)
            with pytest.raises(attention_client.DeadlineExceeded):
                session.step(query, key, key, timeout=2)
            # An append of no tokens is done until that one has begun.
            probe = other.get_session(session.id)
            none = np.ones((1, 0, 2), np.float32)
            with pytest.raises(attention_client.Aborted):
                while probe.length == 0:
                    probe.append(none, none)
            assert session.append(key, key, timeout=60) == 200000
            unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
            assert set(codes[:-1]) == {unavailable}
            assert len(codes) >= 3
            assert codes[-1] == 0
            probe.refresh()
            assert probe.length == 200000


def test_a_server_that_stays_away_is_told(steps, session, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0)
    steps.faults = [aborts(grpc.StatusCode.UNAVAILABLE)] * 4
    with pytest.raises(attention_client.Unavailable, match="so it is"):
        session.append(KEY, KEY)
    assert len(steps.requests) == 4
    assert session.lengths == (0,)
    # What was not answered is still expected not to be there.
    session.append(KEY, KEY)
    assert steps.requests[-1].items[0].expected_length == 0


# A message of so many bytes is lent, and must be let go without having been
# sent.
@pytest.mark.parametrize("core", ["native"], indirect=True)
@pytest.mark.parametrize("used", [True, False])
def test_a_large_message_for_no_server_is_told(server, steps, session, used):
    if used:
        session.append(KEY, KEY)
    server.stop()
    key = np.ones((1, 10000, 2), np.float32)
    with pytest.raises(attention_client.AttentionError) as caught:
        session.append(key, key, timeout=5)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert session.lengths == (int(used),)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(
    "code", ["INVALID_ARGUMENT", "INTERNAL", "RESOURCE_EXHAUSTED", "CANCELLED"]
)
def test_nothing_else_is_tried_again(steps, session, code, used):
    if used:
        session.append(KEY, KEY)
        steps.requests.clear()
    steps.faults = [aborts(grpc.StatusCode[code])]
    with pytest.raises(attention_client.AttentionError) as caught:
        session.append(KEY, KEY)
    assert caught.value.code.name == code
    assert len(steps.requests) == 1
    assert session.append(KEY, KEY) == 1 + used


def test_a_call_that_fails_is_each_item_s_failure(steps, session, fake_client):
    steps.faults = [aborts(grpc.StatusCode.INVALID_ARGUMENT)]
    results = fake_client.step([StepItem(session, query=KEY)] * 2)
    assert [type(result) for result in results] == [
        attention_client.InvalidArgument
    ] * 2


def test_an_append_that_ends_half_way_is_told(steps, session, monkeypatch):
    monkeypatch.setattr(attention_client.step_messages, "MAX_APPEND_BYTES", 16)
    steps.faults = [None, None, aborts(grpc.StatusCode.INTERNAL)]
    five = np.ones((1, 5, 2), np.float32)
    with pytest.raises(attention_client.Internal):
        session.append(five, five)
    assert session.lengths == (2,)


class Appending(Stepping):
    """Counts the tokens that are sent, each once."""

    def __init__(self):
        super().__init__()
        self.done = {}
        self.tokens = []

    def result(self, item):
        if item.request_id not in self.done:
            rows = np.frombuffer(item.key.data, np.float32)[::2]
            assert item.expected_length == len(self.tokens)
            self.tokens += rows.tolist()
            self.done[item.request_id] = len(self.tokens)
        result = session_pb.StepResult(length=self.done[item.request_id])
        if item.HasField("query"):
            result.output.CopyFrom(item.query)
        return result


def numbered(*numbers):
    return np.array([[(number, 0) for number in numbers]], np.float32)


@pytest.mark.parametrize("with_query", [False, True])
def test_a_large_append_that_failed_half_way_may_be_made_again(
    server, steps, session, monkeypatch, with_query
):
    monkeypatch.setattr(attention_client.step_messages, "MAX_APPEND_BYTES", 32)
    server.answers["Step"] = steps = Appending()
    five = numbered(1, 2, 3, 4, 5)

    def append(new):
        if not with_query:
            return session.append(new, new)
        session.step(KEY, new, new)
        return session.length

    # Of three messages the second, and then the third, fails.
    for fault in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED):
        steps.requests.clear()
        before = session.length
        steps.faults = [None, aborts(fault)]
        with pytest.raises(attention_client.AttentionError):
            append(five)
        assert session.length == before + 2
        steps.faults = [None, aborts(fault)]
        with pytest.raises(attention_client.AttentionError):
            append(five.copy())
        assert session.length == before + 4
        assert append(five) == before + 5
        assert len(steps.requests) == 5
    assert steps.tokens == [1, 2, 3, 4, 5] * 2
    # The same once more are new ones, and others go behind what is there.
    assert append(five) == 15
    steps.faults = [None, aborts(grpc.StatusCode.INTERNAL)]
    with pytest.raises(attention_client.AttentionError):
        append(five)
    assert append(numbered(6, 7, 8, 9, 10)) == 22
    assert steps.tokens[15:] == [1, 2, 6, 7, 8, 9, 10]


def test_an_append_that_is_interrupted_may_be_made_again(
    server, steps, monkeypatch
):
    monkeypatch.setattr(attention_client.step_messages, "MAX_APPEND_BYTES", 32)
    server.answers["Step"] = steps = Appending()
    five = numbered(1, 2, 3, 4, 5)
    held, over = threading.Event(), threading.Event()

    def hold(context):
        held.set()
        over.wait(30)

    async def main():
        async with aio.Client(server.address) as client:
            session = await client.create_session("story")
            steps.faults = [None, hold]
            task = asyncio.ensure_future(session.append(five, five))
            await asyncio.get_running_loop().run_in_executor(None, held.wait)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            over.set()
            assert session.lengths == (2,)
            return await session.append(five, five)

    assert asyncio.run(main()) == 5
    assert steps.tokens == [1, 2, 3, 4, 5]


def test_an_append_without_an_answer_may_be_made_again(steps, session):
    steps.faults = [aborts(grpc.StatusCode.DEADLINE_EXCEEDED)]
    with pytest.raises(attention_client.DeadlineExceeded):
        session.append(KEY, KEY)
    assert session.append(KEY, KEY) == 1
    first, second = (r.items[0].request_id for r in steps.requests)
    assert first == second
    # Once the lengths are told anew it would be another append.
    steps.faults = [aborts(grpc.StatusCode.DEADLINE_EXCEEDED)]
    with pytest.raises(attention_client.DeadlineExceeded):
        session.append(KEY, KEY)
    session.refresh()
    session.append(KEY, KEY)
    assert len({r.items[0].request_id for r in steps.requests}) == 3


def test_an_item_s_details(steps, session):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    steps.result = lambda item: session_pb.StepResult(
        code=code.value[0],
        message="full",
        status_details=details("SESSION_BYTES", code),
    )
    with pytest.raises(attention_client.ResourceExhausted) as caught:
        session.append(KEY, KEY)
    assert caught.value.reason == "SESSION_BYTES"
    assert caught.value.message == "full"
    steps.result = lambda item: session_pb.StepResult(
        code=3, message="wrong", status_details=b"\xff"
    )
    with pytest.raises(attention_client.InvalidArgument, match="wrong"):
        session.append(KEY, KEY)


@pytest.mark.parametrize(
    "response",
    [
        session_pb.StepResponse(),
        session_pb.StepResponse(results=[session_pb.StepResult()] * 2),
        session_pb.StepResponse(
            results=[session_pb.StepResult(output=pb.Tensor(data=b"1"))]
        ),
        b"\xff",
    ],
    ids=["none", "two", "tensor", "bytes"],
)
def test_an_answer_that_cannot_be_read(server, steps, session, response):
    server.answers["Step"] = lambda requests, context: (
        response for _ in requests
    )
    server.serializers["Step"] = lambda answer: (
        answer if isinstance(answer, bytes) else answer.SerializeToString()
    )
    with pytest.raises(attention_client.Internal, match="malformed answer"):
        session.step(KEY, KEY, KEY)


def test_the_timeout_ends_a_step(server, steps, session):
    cancelled = threading.Event()

    def stay(context):
        context.add_callback(cancelled.set)
        # So that a lost timeout fails rather than hangs.
        cancelled.wait(10)

    steps.faults = [stay]
    with pytest.raises(attention_client.DeadlineExceeded):
        session.append(KEY, KEY, timeout=0.05)
    assert cancelled.wait(10)
    assert session.append(KEY, KEY, timeout=60) == 1
    assert steps.streams == 2


def test_an_answer_that_comes_as_the_time_is_up(server, steps, session):
    # The stream is cancelled then: who comes next must not be given it.
    for _ in range(100):
        steps.delay = 0.005
        timeout = random.uniform(0.005, 0.007)
        with contextlib.suppress(attention_client.DeadlineExceeded):
            session.attend(KEY, timeout=timeout)
        steps.delay = 0
        session.attend(KEY, timeout=60)


def test_closing_the_client_ends_a_step(server, steps):
    client = Client(server.address)
    session = client.create_session()

    def close(context):
        ended = threading.Event()
        context.add_callback(ended.set)
        threading.Thread(target=client.close).start()
        ended.wait(10)

    steps.faults = [close]
    with pytest.raises(attention_client.Cancelled):
        session.append(KEY, KEY)
    with pytest.raises(ValueError, match="closed"):
        session.append(KEY, KEY)


def test_closing_the_client_ends_its_streams_well(server, steps):
    with Client(server.address) as client:
        client.create_session().append(KEY, KEY)
        assert not steps.ended_well.is_set()
    assert steps.ended_well.wait(10)


def test_a_task_that_is_cancelled_ends_its_step(server, steps):
    cancelled = threading.Event()
    begun = threading.Event()

    def stay(context):
        context.add_callback(cancelled.set)
        begun.set()
        cancelled.wait(10)

    steps.faults = [stay]

    async def main():
        loop = asyncio.get_running_loop()
        async with aio.Client(server.address) as client:
            session = await client.create_session()
            task = asyncio.ensure_future(session.append(KEY, KEY))
            await loop.run_in_executor(None, begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await loop.run_in_executor(None, cancelled.wait, 10)
            with pytest.raises(attention_client.DeadlineExceeded):
                steps.faults = [lambda context: time.sleep(0.2)]
                await session.append(KEY, KEY, timeout=0.05)
            assert await session.append(KEY, KEY) == 1

    asyncio.run(main())


def test_more_threads_than_streams(steps, fake_client, monkeypatch):
    monkeypatch.setattr(attention_client.streams, "MOST", 2)
    sessions = [fake_client.create_session(f"s{i}") for i in range(6)]
    ended = []

    def work(session):
        for _ in range(5):
            ended.append(session.append(KEY, KEY))

    threads = [
        threading.Thread(target=work, args=(session,)) for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == sorted([1, 2, 3, 4, 5] * 6)
    assert steps.streams <= 2
    # A third one waits no longer than it may.
    held = threading.Event()
    released = threading.Event()

    def stay(context):
        held.set()
        released.wait(10)

    steps.faults = [stay, stay]
    busy = [
        threading.Thread(target=fake_client.step, args=([item],))
        for item in (StepItem(session, query=KEY) for session in sessions[:2])
    ]
    for thread in busy:
        thread.start()
        assert held.wait(10)
        held.clear()
    with pytest.raises(attention_client.DeadlineExceeded):
        sessions[2].append(KEY, KEY, timeout=0.05)
    released.set()
    for thread in busy:
        thread.join()


@pytest.fixture
def renewals(server, steps, monkeypatch):
    """Ids of sessions whose lease, of 0.3 s, is renewed; `answers` say how."""
    asked = queue.Queue()
    asked.answer = described

    def renew(request, context):
        asked.put(request.id)
        return asked.answer(request)

    server.answers["GetSession"] = renew
    original = leases.Lease.__init__

    def short(self, session_id, seconds, incarnation=0):
        original(self, session_id, 0.3, incarnation)

    monkeypatch.setattr(leases.Lease, "__init__", short)
    return asked


def test_a_lease_is_renewed_while_the_session_lives(renewals, fake_client):
    session = fake_client.create_session("story")
    for _ in range(3):
        assert renewals.get(timeout=10) == "story"
    thread = lease_threads()[0]
    assert thread.daemon
    del session
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("end", ["close", "delete", "client"])
def test_what_is_ended_is_not_renewed(server, renewals, end):
    server.answers["DeleteSession"] = lambda request, context: (
        session_pb.DeleteSessionResponse()
    )
    client = Client(server.address)
    session = client.create_session("story")
    assert renewals.get(timeout=10) == "story"
    (thread,) = lease_threads()
    if end == "client":
        client.close()
    else:
        getattr(session, end)()
    thread.join(10)
    assert not thread.is_alive()
    client.close()


def test_a_closed_client_s_thread_ends_at_once(server, steps):
    client = Client(server.address)
    session = client.create_session("story")
    (thread,) = lease_threads()
    client.close()
    thread.join(10)  # A lease is looked at after 20 s.
    assert not thread.is_alive()
    assert session.id == "story"


def test_one_thread_renews_all(renewals, fake_client):
    made = [fake_client.create_session(f"s{i}") for i in range(3)]
    wanted = {session.id for session in made}
    while wanted:
        wanted.discard(renewals.get(timeout=10))
    assert len(lease_threads()) == 1


def test_failures_do_not_end_the_renewals(renewals, fake_client):
    def fail(request):
        raise ValueError("a bug")

    renewals.answer = fail
    session = fake_client.create_session("story")
    for _ in range(3):
        renewals.get(timeout=10)
    renewals.answer = described
    for _ in range(3):
        renewals.get(timeout=10)
    assert session.append(KEY, KEY) == 1


def test_a_session_that_expired_is_told(server, steps, renewals, fake_client):
    aborted = []

    def gone(request, context):
        aborted.append(request.id)
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no session story")

    server.answers["GetSession"] = gone
    session = fake_client.create_session("story")
    (thread,) = lease_threads()
    thread.join(10)
    assert aborted == ["story"]
    with pytest.raises(attention_client.NotFound, match="'story' is gone"):
        session.append(KEY, KEY)
    assert steps.requests == []


def test_renewals_name_the_session_that_they_mean(
    server, renewals, fake_client
):
    asked = queue.SimpleQueue()

    def create(request, context):
        answer = described(request)
        answer.session.config.lease.FromMilliseconds(30)
        answer.session.incarnation = 2**64 - 7
        return answer

    def get(request, context):
        asked.put(request.incarnation)
        return create(request, context)

    server.answers["CreateSession"] = create
    server.answers["GetSession"] = get
    session = fake_client.create_session("story")
    assert asked.get(timeout=30) == session.incarnation == 2**64 - 7


def test_asyncio_s_sessions_are_renewed(server, renewals):
    async def main():
        loop = asyncio.get_running_loop()
        async with aio.Client(server.address) as client:
            session = await client.create_session("story")
            for _ in range(3):
                got = await loop.run_in_executor(None, renewals.get, True, 10)
                assert got == session.id
            (thread,) = lease_threads()
        await loop.run_in_executor(None, thread.join, 10)
        assert not thread.is_alive()

    asyncio.run(main())


def lease_threads():
    return [
        thread
        for thread in threading.enumerate()
        if thread.name == "attention-leases"
    ]
