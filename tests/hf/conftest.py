"""Where models run their attention."""

import pytest
import torch
import transformers

from attention_client import hf

transformers.logging.set_verbosity_error()
# transformers asks for it also where there is no CUDA; what stands in for CUDA's
# libraries here (no_cuda.py) does not survive that.
torch.cuda.is_current_stream_capturing = lambda: False


@pytest.fixture(scope="session")
def remote(client):
    """A client of the server, which the implementation "remote" uses too."""
    torch.set_num_threads(1)
    hf.register(client)
    return client


@pytest.fixture
def none_left(remote):
    """Fails if a test leaves sessions."""
    yield
    assert remote.list_sessions() == []


@pytest.fixture
def computed(remote, monkeypatch):
    """A list that grows with each call that sends all keys and values."""
    calls = []
    original = type(remote).compute
    monkeypatch.setattr(
        type(remote),
        "compute",
        lambda *args, **others: calls.append(1) or original(*args, **others),
    )
    return calls
