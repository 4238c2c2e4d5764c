"""The Python client and attention_server as built."""

import numpy as np
import pytest

from attention_client import Client, InvalidArgument, NotFound

EYE = np.eye(2, dtype=np.float32)


def test_the_readme_s_example(client):
    result = client.compute(EYE, EYE, EYE, return_scores="weights")
    weights = [[0.669762, 0.330238], [0.330238, 0.669762]]
    np.testing.assert_allclose(result.output, weights, atol=1e-6)
    np.testing.assert_allclose(result.scores[0, 0], weights, atol=1e-6)
    assert result.timing.compute_us >= 0


def test_the_readme_s_failing_call(client):
    with pytest.raises(InvalidArgument) as caught:
        client.compute(EYE, np.ones((3, 4), np.float32), EYE)
    (violation,) = caught.value.field_violations
    assert violation.field == "key.shape"
    assert "(3, 4)" in violation.description
    assert "key.shape" in str(caught.value)


def test_capabilities_are_those_of_a_real_server(client):
    capabilities = client.capabilities()
    assert capabilities.version.count(".") == 2
    assert capabilities.threads >= 1
    assert capabilities.key_block == 256
    assert {"float32", "float16", "bfloat16", "float64"} == set(
        capabilities.data_types
    )
    assert "reproducible" in capabilities.math_modes
    assert capabilities.max_request_bytes > 0
    assert capabilities.max_response_bytes > 0
    assert capabilities.max_head_size == 4096
    assert capabilities.max_heads == 65536
    assert capabilities.max_batch == 131072
    assert capabilities.max_batch_heads == 1048576
    assert capabilities.max_work == 2**45
    assert capabilities.shared_memory == ""


def test_shapes_beyond_the_capabilities_are_refused(client):
    size = client.capabilities().max_head_size
    query = np.zeros((1, size + 1), np.float32)
    empty = np.zeros((0, size + 1), np.float32)
    with pytest.raises(InvalidArgument) as caught:
        client.compute(query, empty, empty)
    (violation,) = caught.value.field_violations
    assert violation.field == "query.shape"
    assert violation.description == (
        f"got (1, {size + 1}), wanted a head size of at most {size}"
    )


def test_health_by_service_and_whole(client):
    assert client.health() == "SERVING"
    assert client.health("attention.v1.AttentionService") == "SERVING"
    with pytest.raises(NotFound):
        client.health("no.such.Service")


def test_the_same_request_gives_the_same_bits(client):
    rng = np.random.default_rng(1)
    qkv = rng.standard_normal((3, 2, 4, 70, 32), np.float32)
    first = client.compute(*qkv, causal="top_left").output
    for _ in range(3):
        again = client.compute(*qkv, causal="top_left").output
        np.testing.assert_array_equal(again, first)


def test_both_cores_give_the_same_bits(server_address, monkeypatch):
    rng = np.random.default_rng(1)
    query = rng.standard_normal((1, 8, 2, 64), np.float32)
    # More than 4 MiB: the native core streams it.
    keys, values = rng.standard_normal((2, 1, 2, 8192, 64), np.float32)
    mask = rng.random((2, 8192)) < 0.9
    results = []
    for core in ("native", "pure"):
        monkeypatch.setenv("ATTENTION_CLIENT_CORE", core)
        with Client(server_address, timeout=60) as client:
            results.append(
                client.compute(
                    query, keys, values, mask=mask, return_log_sum_exp=True
                )
            )
    np.testing.assert_array_equal(results[0].output, results[1].output)
    np.testing.assert_array_equal(
        results[0].log_sum_exp, results[1].log_sum_exp
    )


def test_two_clients_do_not_disturb_each_other(client, server_address):
    with Client(server_address) as other:
        assert other.health() == "SERVING"
    assert client.health() == "SERVING"
