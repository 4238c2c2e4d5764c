"""attention_client.hf without what the extra hf brings."""

import importlib
import sys

import pytest


def test_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "attention_client.hf", raising=False)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(
        ModuleNotFoundError, match="needs ml_dtypes, which the extra hf brings"
    ):
        importlib.import_module("attention_client.hf")
