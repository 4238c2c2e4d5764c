"""One sequence over several servers: here sessions of one real server, each by
a client of its own."""

import contextlib
import threading

import numpy as np
import pytest

from attention_client import (
    Client,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ShardedSession,
    Unavailable,
    missing_tokens,
)
from attention_client import session_pb2 as session_pb

HKV, HQ, D = 2, 4, 8


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def clients(core, server_address):
    if core == "pure":
        pytest.skip("only with the native core")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Client(server_address, timeout=60))
            for _ in range(3)
        ]


@pytest.fixture
def sharded(clients):
    with ShardedSession.create(
        clients, layers=2, kv_heads=HKV, head_size=D, blocks_per_run=1
    ) as made:
        yield made


def tokens(rng, count, heads=HKV):
    return rng.standard_normal((heads, count, D), np.float32)


def test_has_the_bits_of_one_session(client, sharded, rng):
    with client.create_session(layers=2, kv_heads=HKV, head_size=D) as session:
        for count in (1, 700, 300, 2):
            key, value = tokens(rng, count), tokens(rng, count)
            assert sharded.append(key, value, layer=1) == session.append(
                key, value, layer=1
            )
        length = sharded.lengths[1]
        assert sharded.lengths == session.lengths == (0, 1003)
        assert sharded.length == 0
        assert sharded.tokens_of(1, 1) == ((256, 512),)
        query = tokens(rng, 3, HQ)
        for options in (
            {},
            {"causal": None, "return_log_sum_exp": True},
            {"causal": "top_left", "softcap": 2},
            {"window": (300, None), "sinks": [0, 1, 2, 3]},
            {"mask": rng.random((HQ, 3, length)) < 0.5},
            {"alibi_slopes": [0.1, 0.2, 0.3, 0.4], "scale": 0.3},
            {
                "indices": rng.integers(-1, length, (3, 40)),
                "sinks": rng.standard_normal((HQ, 3), np.float32),
            },
            {"indices": rng.integers(-1, length, (HQ, 3, 40))},
        ):
            wanted = session.attend(query, layer=1, **options)
            got = sharded.attend(query, layer=1, **options)
            np.testing.assert_array_equal(got.output, wanted.output)
            if wanted.log_sum_exp is not None:
                np.testing.assert_array_equal(
                    got.log_sum_exp, wanted.log_sum_exp
                )
            assert got.missing == ()
            assert got.scores is None
            assert got.timing.compute_us >= 0


def test_forks_truncates_and_opens(clients, rng):
    key, value = tokens(rng, 600), tokens(rng, 600)
    query = tokens(rng, 1, HQ)
    sharded = ShardedSession.create(
        clients, "python", kv_heads=HKV, head_size=D, blocks_per_run=1
    )
    sharded.append(key, value)
    fork = sharded.fork()
    fork.truncate(300)
    assert (fork.length, sharded.length) == (300, 600)
    fork.append(key[:, 300:], value[:, 300:])
    np.testing.assert_array_equal(
        fork.attend(query).output, sharded.attend(query).output
    )
    opened = ShardedSession.open(clients, "python", blocks_per_run=1)
    assert opened.ids == ("python/0of3x1", "python/1of3x1", "python/2of3x1")
    assert opened.append(key, value) == 1200
    sharded.refresh()
    assert sharded.length == 1200
    assert "over 3, length 1200" in repr(sharded)
    sharded.delete()
    fork.delete()
    with pytest.raises(NotFound):
        ShardedSession.open(clients, "python")


def test_tells_what_is_missing(client, sharded, rng):
    sharded.append(tokens(rng, 1100), tokens(rng, 1100))
    query = tokens(rng, 1, HQ)
    client.get_session(sharded.ids[1]).delete()
    missing = ((256, 512), (1024, 1100))
    with pytest.raises(Unavailable) as raised:
        sharded.attend(query)
    assert raised.value.reason == "SHARD_LOST"
    assert missing_tokens(raised.value) == missing
    result = sharded.attend(query, allow_missing=True)
    assert result.missing == missing
    assert result.log_sum_exp.shape == (HQ, 1)
    with pytest.raises(OutOfRange) as other:
        sharded.attend(query, layer=2)
    assert missing_tokens(other.value) == ()


def test_a_server_that_does_not_answer_in_time_is_lost(
    core, client, server, fake_client, rng
):
    if core == "pure":
        pytest.skip("only with the native core")
    config = {"kv_heads": 1, "head_size": D, "blocks_per_run": 1}

    def created(request, context):
        config = request.config
        config.num_layers, config.value_head_size = 1, D
        config.lease.FromSeconds(60)
        return session_pb.CreateSessionResponse(
            session=session_pb.Session(
                id=request.id, config=config, lengths=[0]
            )
        )

    over = threading.Event()
    server.answers.update(
        CreateSession=created,
        AppendKeyValues=lambda request, context: (
            session_pb.AppendKeyValuesResponse(length=request.key.shape[1])
        ),
        Attend=lambda request, context: over.wait(60),
    )
    sharded = ShardedSession.create([client, fake_client], **config)
    key = tokens(rng, 300, 1)
    assert sharded.append(key, key) == 300
    query = tokens(rng, 1, 1)
    with pytest.raises(Unavailable, match="are missing") as raised:
        sharded.attend(query, timeout=3)
    assert missing_tokens(raised.value) == ((256, 300),)
    result = sharded.attend(query, allow_missing=True, timeout=3)
    assert result.missing == ((256, 300),)
    whole = client.create_session(kv_heads=1, head_size=D)
    whole.append(key[:, :256], key[:, :256])
    np.testing.assert_array_equal(result.output, whole.attend(query).output)
    over.set()


def test_says_what_is_wrong(clients, sharded, rng):
    with pytest.raises(ValueError, match="clients: got none"):
        ShardedSession.create([])
    with pytest.raises(TypeError, match="clients"):
        ShardedSession.create(["127.0.0.1:1"])
    with pytest.raises(InvalidArgument, match="blocks_per_run: got 3"):
        ShardedSession.create(clients, blocks_per_run=3)
    with pytest.raises(InvalidArgument) as raised:
        sharded.append(tokens(rng, 2), tokens(rng, 3))
    assert raised.value.field_violations[0].field == "value.shape"
    with pytest.raises(InvalidArgument, match="query.shape"):
        sharded.attend(tokens(rng, 1, 3))


def test_ends_with_a_client(clients, rng):
    sharded = ShardedSession.create(clients, kv_heads=HKV, head_size=D)
    sharded.append(tokens(rng, 2), tokens(rng, 2))
    clients[1].close()
    with pytest.raises(ValueError, match="closed"):
        sharded.append(tokens(rng, 2), tokens(rng, 2))
    with pytest.raises(ValueError, match="closed"):
        sharded.attend(tokens(rng, 1, HQ))
    assert sharded.length == 2


def test_the_pure_core_refuses(core, client):
    if core == "native":
        pytest.skip("only with the pure core")
    with pytest.raises(NotImplementedError, match="native"):
        ShardedSession.create([client])
