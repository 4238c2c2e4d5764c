"""Which core a client takes."""

import sys

import grpc
import pytest

from attention_client import Client, aio, native_core, pure_core

CORES = {
    Client: (native_core.NativeCore, pure_core.PureCore),
    aio.Client: (native_core.AsyncNativeCore, pure_core.AsyncPureCore),
}


def core_of(kind, **arguments):
    return type(kind("127.0.0.1:1", **arguments)._core)


@pytest.fixture(params=CORES)
def kind(request):
    return request.param


def test_the_variable_chooses(kind, core):
    native, pure = CORES[kind]
    assert core_of(kind) is {"native": native, "pure": pure}[core]


def test_without_it_the_native_one_is_taken_where_it_can(kind, monkeypatch):
    native, pure = CORES[kind]
    monkeypatch.delenv("ATTENTION_CLIENT_CORE")
    assert core_of(kind, channel_options=[("a", 1), ("b", "c")]) is native
    assert core_of(kind, channel_options=[("a", b"bytes")]) is pure
    own = grpc.ssl_channel_credentials()
    assert core_of(kind, credentials=own) is pure
    # None: as if it were not there.
    monkeypatch.setitem(sys.modules, "attention_client._native", None)
    monkeypatch.delattr("attention_client._native")
    assert core_of(kind) is pure


def test_numbers_beyond_32_bits_are_left_to_grpcio(monkeypatch):
    monkeypatch.delenv("ATTENTION_CLIENT_CORE")
    with pytest.raises(OverflowError):
        Client("127.0.0.1:1", channel_options=[("a", 2**31)])


def test_one_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("ATTENTION_CLIENT_CORE", "Native")
    with pytest.raises(ValueError, match="ATTENTION_CLIENT_CORE: got 'Native'"):
        Client("127.0.0.1:1")
    monkeypatch.setenv("ATTENTION_CLIENT_CORE", "native")
    own = grpc.ssl_channel_credentials()
    with pytest.raises(ValueError, match="'native', which takes no credenti"):
        Client("127.0.0.1:1", credentials=own)
    monkeypatch.setitem(sys.modules, "attention_client._native", None)
    monkeypatch.delattr("attention_client._native")
    with pytest.raises(ImportError):
        Client("127.0.0.1:1")
