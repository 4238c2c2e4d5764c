"""Sessions of the real server, over both cores."""

import asyncio
import threading

import ml_dtypes
import numpy as np
import pytest

from attention_client import (
    Aborted,
    AlreadyExists,
    AttentionError,
    AttentionResult,
    Client,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PackedMask,
    Session,
    StepItem,
    aio,
    step_messages,
)

HKV, HQ, D = 2, 4, 8


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def session(client):
    with client.create_session(layers=2, kv_heads=HKV, head_size=D) as made:
        yield made


def tokens(rng, count, heads=HKV, size=D):
    return rng.standard_normal((heads, count, size), np.float32)


def ids_of(infos):
    return {info.id for info in infos}


class Local:
    """The same by one call of compute()."""

    def __init__(self, client):
        self.client = client
        self.key = self.value = np.zeros((HKV, 0, D), np.float32)

    def append(self, key, value):
        self.key = np.concatenate([self.key, key], axis=1)
        self.value = np.concatenate([self.value, value], axis=1)

    def attend(self, query, **options):
        options = {"causal": "bottom_right", **options}
        return self.client.compute(
            query[None], self.key[None], self.value[None], **options
        ).output[0]


def test_any_history_gives_the_bits_of_one_call(client, session, rng):
    local = Local(client)
    for count in (1, 5, 300, 2):
        key, value = tokens(rng, count), tokens(rng, count)
        local.append(key, value)
        assert session.append(key, value, layer=1) == local.key.shape[1]
        query = tokens(rng, min(3, count), HQ)
        result = session.attend(query, layer=1)
        assert isinstance(result, AttentionResult)
        np.testing.assert_array_equal(result.output, local.attend(query))
        key, value = tokens(rng, 1), tokens(rng, 1)
        local.append(key, value)
        query = tokens(rng, 1, HQ)
        result = session.step(query, key, value, layer=1)
        np.testing.assert_array_equal(result.output, local.attend(query))
        result.output[:] = 0  # It may be written to.
        assert result.timing.compute_us >= 0
        assert result.scores is None
        assert result.log_sum_exp is None
    assert session.lengths == (0, 312)
    assert session.length == 0


@pytest.mark.parametrize("seed", range(6))
def test_windows_give_the_bits_of_all_tokens(client, seed):
    rng = np.random.default_rng(seed)
    window = int(rng.integers(1, 400))
    rollback = int(rng.integers(0, 200))
    local = Local(client)
    session = client.create_session(
        kv_heads=HKV,
        head_size=D,
        retain_window=window,
        rollback_tokens=rollback,
    )
    assert session.config.retain_window == (window,)
    longest = 0
    for _ in range(40):
        choice = rng.integers(8)
        length = local.key.shape[1]
        if choice == 0:
            taken = int(rng.integers(0, rollback + 1))
            left = max(0, longest - taken)
            if left < length:
                session.truncate(left)
                local.key = local.key[:, :left]
                local.value = local.value[:, :left]
            continue
        if choice == 1:
            session.delete()
            session = client.create_session(
                kv_heads=HKV,
                head_size=D,
                retain_window=[window],
                rollback_tokens=rollback,
            )
            local, longest = Local(client), 0
            continue
        if choice == 2:
            before, session = session, session.fork()
            before.delete()
            continue
        count = int(rng.integers(1, 600) if choice == 3 else rng.integers(1, 9))
        key, value = tokens(rng, count), tokens(rng, count)
        local.append(key, value)
        length += count
        longest = max(longest, length)
        query = tokens(rng, count, HQ)
        options = {"window": (int(rng.integers(0, window)), None)}
        wanted = options
        if choice == 4:
            mask = rng.standard_normal((HQ, count, length), np.float32)
            begin = max(0, length - count - options["window"][0]) // 256 * 256
            wanted = {**options, "mask": mask}
            options = {
                **options,
                "mask": mask[..., begin:],
                "mask_begin": begin,
            }
        np.testing.assert_array_equal(
            session.step(query, key, value, **options).output,
            local.attend(query, **wanted),
        )
        query = query[:, -1:]
        np.testing.assert_array_equal(
            session.attend(query, window=(window - 1, None)).output,
            local.attend(query, window=(window - 1, None)),
        )
    (info,) = [i for i in client.list_sessions() if i.id == session.id]
    assert info.lengths == session.lengths
    kept = longest - info.first_tokens[0]
    assert kept < window + rollback + 256 or info.first_tokens == (0,)
    session.delete()


def test_windows_say_what_they_lack(client, rng, monkeypatch):
    monkeypatch.setattr(step_messages, "MAX_APPEND_BYTES", 64)
    session = client.create_session(
        kv_heads=HKV, head_size=D, retain_window=100, rollback_tokens=0
    )
    key, query = tokens(rng, 600), tokens(rng, 600, HQ)
    window = (99, None)
    # Whole, whatever its size: the first queries see the first tokens.
    assert session.step(query, key, key, window=window).output.shape[1] == 600
    with pytest.raises(FailedPrecondition) as caught:
        session.attend(query, window=window)
    assert caught.value.reason == "TOKENS_RELEASED"
    assert caught.value.metadata["first_token"] == "256"
    assert caught.value.least_length is None
    with pytest.raises(FailedPrecondition) as caught:
        session.truncate(300)
    assert caught.value.least_length == 356
    session.truncate(356)
    session.truncate(0)
    assert session.lengths == (0,)
    with pytest.raises(InvalidArgument, match="options.window.left"):
        session.attend(query)
    session.delete()


def test_options_reach_the_server(client, session, rng):
    local = Local(client)
    local.append(tokens(rng, 9), tokens(rng, 9))
    session.append(local.key, local.value)
    query = tokens(rng, 3, HQ)
    for options in (
        {"causal": None},
        {"causal": "top_left"},
        {"scale": 0.3, "softcap": 2},
        {"window": (2, None), "sinks": [0, 1, 2, 3]},
        {"mask": rng.random((HQ, 3, 9)) < 0.5},
        {"alibi_slopes": [0.1, 0.2, 0.3, 0.4], "math_mode": "fast"},
        {"softmax_precision": "float64"},
    ):
        np.testing.assert_array_equal(
            session.attend(query, **options).output,
            local.attend(query, **options),
        )
    # What has no axis of batches there, and one of one here.
    for indices in (
        rng.integers(-1, 9, (3, 4)),
        rng.integers(-1, 9, (HQ, 3, 4), np.int32),
    ):
        sinks = rng.standard_normal((HQ, 3), np.float32)
        np.testing.assert_array_equal(
            session.attend(query, indices=indices, sinks=sinks).output,
            local.attend(query, indices=indices[None], sinks=sinks[None]),
        )
    mask = rng.random((HQ, 3, 9)) < 0.5
    bits = np.packbits(mask, bitorder="little")
    np.testing.assert_array_equal(
        session.attend(query, mask=PackedMask(bits, mask.shape)).output,
        session.attend(query, mask=mask).output,
    )
    result = session.attend(
        query, return_log_sum_exp=True, return_scores="weights"
    )
    assert result.log_sum_exp.shape == (HQ, 3)
    assert result.scores.shape == (HQ, 3, 9)
    np.testing.assert_allclose(result.scores.sum(axis=2), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", ml_dtypes.bfloat16], ids=str
)
def test_types(client, rng, dtype):
    with client.create_session(
        kv_heads=HKV, head_size=D, data_type=dtype
    ) as session:
        assert session.config.data_type == np.dtype(dtype).name
        session.append(tokens(rng, 4).astype(dtype), tokens(rng, 4))
        output = session.attend(tokens(rng, 1, HQ).astype(dtype)).output
        assert output.dtype == dtype
        with pytest.raises(InvalidArgument, match=r"query\.data_type"):
            session.attend(tokens(rng, 1, HQ))


def stored(rows, data_type):
    """The numbers that a session keeps of float32 rows."""
    largest = np.abs(rows).max(axis=2, keepdims=True)
    exponent = np.floor(np.log2(largest))
    if data_type == "int8":
        scale = 2 ** (exponent - 6)
        scale = np.where(largest / scale >= 127.5, 2 * scale, scale)
        return np.rint(rows / scale) * scale
    scale = 2 ** (exponent - 8)
    scale = np.where(largest / scale > 464, 2 * scale, scale)
    eight = (rows / scale).astype(ml_dtypes.float8_e4m3fn)
    return eight.astype(np.float32) * scale


@pytest.mark.parametrize("data_type", ["int8", "float8_e4m3"])
def test_eight_bits(client, rng, data_type):
    key, value = tokens(rng, 300), 100 * tokens(rng, 300)
    query = tokens(rng, 2, HQ)
    with client.create_session(
        kv_heads=HKV, head_size=D, data_type=data_type
    ) as session:
        assert session.config.data_type == data_type
        session.append(key, value)
        output = session.attend(query).output
        with pytest.raises(InvalidArgument, match=r"query\.data_type"):
            session.attend(query.astype("float16"))
    expected = client.compute(
        query[None],
        stored(key, data_type)[None],
        stored(value, data_type)[None],
        causal="bottom_right",
    )
    np.testing.assert_array_equal(output, expected.output[0])


def test_values_that_are_columns_of_keys(client, rng):
    key = tokens(rng, 5)
    query = tokens(rng, 2, HQ)
    with client.create_session(
        kv_heads=HKV, head_size=D, value_head_size=3, value_is_key_prefix=True
    ) as session:
        assert session.config.value_is_key_prefix
        assert session.config.value_head_size == 3
        session.append(key[:, :4])
        output = session.step(query, key[:, 4:]).output
    expected = client.compute(
        query[None], key[None], key[None, :, :, :3], causal="bottom_right"
    )
    np.testing.assert_array_equal(output, expected.output[0])


def test_large_appends_are_sent_in_pieces(client, session, rng, monkeypatch):
    monkeypatch.setattr(step_messages, "MAX_APPEND_BYTES", 1000)
    sent = []
    original = step_messages.requests
    monkeypatch.setattr(
        step_messages,
        "requests",
        lambda items: sent.extend(items) or original(items),
    )
    local = Local(client)
    local.append(tokens(rng, 101), tokens(rng, 101))
    query = tokens(rng, 2, HQ)
    result = session.step(query, local.key, local.value)
    np.testing.assert_array_equal(result.output, local.attend(query))
    assert session.lengths == (101, 0)
    # 128 bytes a token; what is not keys and values is less than 200.
    assert len(sent) == 15
    assert max(message.size for message in sent) < 1200


def test_arrays_of_megabytes(client, rng):
    key, value = tokens(rng, 9000, 4, 64), tokens(rng, 9000, 4, 64)
    query = tokens(rng, 300, 8, 64)
    with client.create_session(kv_heads=4, head_size=64) as session:
        assert session.append(key, value) == 9000
        output = session.attend(query).output
        expected = client.compute(
            query[None], key[None], value[None], causal="bottom_right"
        )
        np.testing.assert_array_equal(output, expected.output[0])


def test_one_item_that_fails_hides_no_other(client, session, rng):
    key = tokens(rng, 3)
    query = tokens(rng, 1, HQ)
    session.append(key, key)
    gone = session.fork()
    gone.delete()
    with session.fork() as other:
        results = client.step(
            [
                StepItem(session, query=query),
                StepItem(other, key=key, value=key, layer=2),
                StepItem(gone, query=query),
                StepItem(other, key=key, value=key[:, :2], layer=1),
                StepItem(other, query=query, key=key, value=key),
                StepItem(session, key=key, value=key, layer=1),
            ]
        )
        assert other.lengths == (6, 0)
    kinds = [AttentionResult, OutOfRange, NotFound, InvalidArgument]
    assert [type(result) for result in results] == [
        *kinds,
        AttentionResult,
        int,
    ]
    assert results[3].field_violations[0].field == "value.shape"
    assert results[5] == 3
    assert session.lengths == (3, 3)
    assert client.step([]) == []


def test_more_items_than_a_message_takes(client, session, rng):
    session.append(tokens(rng, 3), tokens(rng, 3))
    query = tokens(rng, 1, HQ)
    results = client.step([StepItem(session, query=query)] * 1500)
    assert len(results) == 1500
    expected = session.attend(query).output
    for result in results:
        np.testing.assert_array_equal(result.output, expected)


def test_a_conflict_tells_the_length(client, session, rng):
    key = tokens(rng, 3)
    other = client.get_session(session.id)
    other.append(key, key)
    with pytest.raises(Aborted) as caught:
        session.append(key, key)
    assert caught.value.length == 3
    assert caught.value.reason == "LENGTH_CONFLICT"
    with pytest.raises(Aborted) as caught:
        session.step(tokens(rng, 1, HQ), key, key)
    assert caught.value.length == 3
    assert session.lengths == (0, 0)
    session.refresh()
    assert session.lengths == (3, 0)
    assert session.append(key, key) == 6


def test_truncate_and_fork(client, session, rng):
    key = tokens(rng, 5)
    query = tokens(rng, 1, HQ)
    for layer in range(2):
        session.append(key, key, layer)
    forked = session.fork("forked")
    assert forked.id == "forked"
    assert forked.lengths == (5, 5)
    assert forked.config == session.config
    whole = session.attend(query).output
    session.truncate(2)
    assert session.lengths == (2, 2)
    with pytest.raises(InvalidArgument):
        session.truncate(3)
    with pytest.raises(AlreadyExists):
        session.fork("forked")
    np.testing.assert_array_equal(forked.attend(query).output, whole)
    a, b = client.fork_sessions({"a": forked, "b": session.id})
    assert (a.id, a.length, b.id, b.length) == ("a", 5, "b", 2)
    with pytest.raises(NotFound):
        client.fork_sessions({"c": a, "d": "nobody"})
    wanted = {session.id, "forked", "a", "b"}
    assert ids_of(client.list_sessions()) >= wanted
    for made in (forked, a, b):
        made.delete()


def test_ids(client, rng):
    with client.create_session("story", 2, HKV, D, lease=5) as session:
        session.append(tokens(rng, 2), tokens(rng, 2))
        again = client.create_session("story", 2, HKV, D, lease=5)
        assert again.lengths == (2, 0)
        with pytest.raises(AlreadyExists):
            client.create_session("story", 3, HKV, D)
        (info,) = (i for i in client.list_sessions() if i.id == "story")
        assert info.id == "story"
        assert info.lengths == (2, 0)
        assert info.config == session.config
        assert info.config.lease == 5
        assert repr(session) == (
            "<attention_client.sessions.Session 'story', length 0>"
        )
    assert "story" not in ids_of(client.list_sessions())
    with pytest.raises(NotFound):
        client.get_session("story")


def test_with_deletes_and_hides_no_error(client):
    with pytest.raises(ZeroDivisionError), client.create_session("one"):
        raise ZeroDivisionError
    assert "one" not in ids_of(client.list_sessions())


def test_a_deleted_session_is_told_apart(client, session, rng):
    key = tokens(rng, 1)
    same = client.get_session(session.id)
    session.delete()
    session.delete()
    with pytest.raises(NotFound, match="there is no session") as caught:
        same.append(key, key)
    assert caught.value.reason == "SESSION_UNKNOWN"
    # One of the same id is another.
    with client.create_session(session.id, 2, HKV, D) as other:
        for call in (
            lambda: same.append(key, key),
            lambda: same.attend(key),
            same.refresh,
            lambda: same.truncate(0),
            same.fork,
            lambda: client.fork_sessions({"fork": same}),
            lambda: session.append(key, key),
        ):
            with pytest.raises(NotFound, match="is gone: its lease was over"):
                call()
        same.delete()
        session.delete()
        other.refresh()
        assert other.length == 0
    assert isinstance(client.step([StepItem(same, query=key)])[0], NotFound)


@pytest.mark.parametrize(
    "use",
    [
        lambda s, client, key: s.append(key, key),
        lambda s, client, key: s.attend(key),
        lambda s, client, key: s.step(key, key, key),
        lambda s, client, key: s.refresh(),
        lambda s, client, key: s.truncate(0),
        lambda s, client, key: s.fork(),
        lambda s, client, key: client.fork_sessions({"fork": s}),
    ],
)
def test_no_other_session_of_the_same_id_is_touched(client, rng, use):
    """Nobody told the object that its session had ended."""
    key = tokens(rng, 1)
    old = client.create_session("again", 1, HKV, D)
    same = client.get_session("again")
    assert same.incarnation == old.incarnation != 0
    client.get_session("again").delete()
    with client.create_session("again", 1, HKV, D) as new:
        assert new.incarnation != old.incarnation
        new.append(key, key)
        with pytest.raises(NotFound, match="another one, made since") as caught:
            use(old, client, key)
        assert caught.value.reason == "SESSION_UNKNOWN"
        same.delete()
        new.refresh()
        assert new.length == 1


def test_awaited_calls_touch_no_other_session_either(server_address, rng):
    key = tokens(rng, 1)

    async def main():
        async with aio.Client(server_address) as client:
            old = await client.create_session("again", 1, HKV, D)
            await (await client.get_session("again")).delete()
            async with await client.create_session("again", 1, HKV, D):
                for use in (
                    lambda: old.append(key, key),
                    old.refresh,
                    old.fork,
                ):
                    with pytest.raises(NotFound):
                        await use()

    asyncio.run(main())


def test_sessions_of_another_client_are_refused(
    client, session, server_address
):
    key = np.zeros((HKV, 1, D), np.float32)
    with Client(server_address) as other:
        with pytest.raises(
            ValueError, match=r"items\[0\].session: got a session of another"
        ):
            other.step([StepItem(session, key=key, value=key)])
        with pytest.raises(ValueError, match="forks.'f'.: got a session of"):
            other.fork_sessions({"f": session})
    assert session.gone() is None
    assert session.append(key, key) == 1


def test_a_layer_is_appended_to_once_in_a_step(client, session):
    key = np.zeros((HKV, 1, D), np.float32)
    append = StepItem(session, key=key, value=key)
    for other in (append, StepItem(session, query=key)):
        for items in ([append, other], [other, append]):
            with pytest.raises(ValueError, match=r"items\[1\].layer: got 0 of"):
                client.step(items)
    with pytest.raises(TypeError, match=r"items\[0\].session: got None"):
        client.step([StepItem(None, query=key)])
    assert session.lengths == (0, 0)


def test_threads_do_not_wait_for_each_other_s_answers(client, rng):
    local = Local(client)
    local.append(tokens(rng, 20), tokens(rng, 20))
    query = tokens(rng, 1, HQ)
    expected = local.attend(query)
    wrong = []

    def work():
        with client.create_session(kv_heads=HKV, head_size=D) as session:
            for i in range(20):
                result = session.step(
                    query, local.key[:, i : i + 1], local.value[:, i : i + 1]
                )
            if not np.array_equal(result.output, expected):
                wrong.append(result)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s, a: s.append("x", a), TypeError, "key: got the string 'x'"),
        (lambda s, a: s.append(None, a), ValueError, "value: got it without"),
        (lambda s, a: s.append(a, a, "1"), TypeError, "layer: got the string"),
        (lambda s, a: s.attend(None), ValueError, "key: got None, and no que"),
        (lambda s, a: s.attend(a, causal="no"), ValueError, "causal: got 'no'"),
        (lambda s, a: s.step(a, a, [[1], [1, 2]]), ValueError, "value: got ro"),
        (lambda s, a: s.truncate(1.5), TypeError, "length: got the number 1.5"),
        (lambda s, a: s.fork(7), TypeError, "id: got the number 7"),
    ],
)
def test_arguments(session, call, error, words):
    with pytest.raises(error, match=words):
        call(session, np.zeros((HKV, 1, D), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c: c.create_session(5), TypeError, "id: got the number 5"),
        (
            lambda c: c.create_session(layers=None),
            TypeError,
            "layers: got None",
        ),
        (
            lambda c: c.create_session(lease="1"),
            TypeError,
            "lease: got the str",
        ),
        (lambda c: c.create_session(lease=1e18), ValueError, "lease: got 1e"),
        (
            lambda c: c.create_session(retain_window=[1, "2"]),
            TypeError,
            r"retain_window\[1\]: got the string",
        ),
        (
            lambda c: c.create_session(retain_window=None),
            TypeError,
            "retain_window: got None",
        ),
        (
            lambda c: c.create_session(rollback_tokens=1.5),
            TypeError,
            "rollback_tokens: got the number 1.5",
        ),
        (
            lambda c: c.create_session(data_type="f"),
            TypeError,
            "data_type: got",
        ),
        (lambda c: c.fork_sessions(["a"]), TypeError, "forks: got a list"),
        (lambda c: c.fork_sessions({"a": 1}), TypeError, r"forks\['a'\]: got"),
        (lambda c: c.step("items"), TypeError, "items: got the string"),
        (lambda c: c.step([None]), TypeError, r"items\[0\]: got None"),
        (
            lambda c: c.step([StepItem(None, query="x")]),
            TypeError,
            r"items\[0\]\.session: got",
        ),
    ],
)
def test_arguments_of_the_client(client, call, error, words):
    with pytest.raises(error, match=words):
        call(client)


def test_asyncio(core, server_address, rng):
    key = tokens(rng, 3)
    query = tokens(rng, 1, HQ)

    async def main():
        async with aio.Client(server_address, timeout=60) as client:
            made = await asyncio.gather(
                *(client.create_session(f"s{i}", 1, HKV, D) for i in range(30))
            )
            results = await asyncio.gather(
                *(session.step(query, key, key) for session in made)
            )
            for result in results:
                np.testing.assert_array_equal(result.output, results[0].output)
            first = made[0]
            assert isinstance(first, aio.Session)
            assert await first.append(key, key) == 6
            await first.truncate(4)
            await first.refresh()
            assert first.lengths == (4,)
            with pytest.raises(Aborted):
                same = await client.get_session(first.id)
                await same.append(key, key)
                await first.append(key, key)
            forked = await first.fork("forked")
            others = await client.fork_sessions({"a": first, "b": forked})
            outcomes = await client.step(
                [StepItem(first, query=query), StepItem(forked, query=key[0])]
            )
            assert isinstance(outcomes[0], AttentionResult)
            assert isinstance(outcomes[1], AttentionError)
            wanted = {session.id for session in (*made, forked, *others)}
            assert ids_of(await client.list_sessions()) >= wanted
            for session in (*made, forked, *others):
                async with session:
                    pass
            assert not ids_of(await client.list_sessions()) & wanted

    asyncio.run(main())
    # Another loop, another client.
    asyncio.run(main())


def test_it_has_the_methods_and_arguments_of_the_other():
    for name in vars(aio.Session):
        assert name.startswith("_")
    for name in ("create_session", "get_session", "step", "fork_sessions"):
        assert getattr(aio.Client, name) is getattr(Client, name)
    assert aio.Session.append is Session.append
