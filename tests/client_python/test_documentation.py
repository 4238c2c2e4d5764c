"""What the package's docstrings and pages show is what happens."""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

import attention_client
from attention_client import aio

REPOSITORY = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("place", "examples"),
    [
        (attention_client, 4),
        (attention_client.Client, 7),
        (aio, 5),
        (attention_client.Session, 6),
    ],
    ids=["package", "Client", "aio", "Session"],
)
def test_docstrings(server_address, place, examples):
    text = place.__doc__.replace(ADDRESS, server_address)
    test = doctest.DocTestParser().get_doctest(text, {}, "here", None, 0)
    assert len(test.examples) == examples
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("page", "examples"),
    [("client/python/README.md", 4), ("docs/sessions.md", 1)],
)
def test_pages(server_address, page, examples):
    text = (REPOSITORY / page).read_text().replace(ADDRESS, server_address)
    blocks = re.findall(
        r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == examples
    names = {}
    for block in blocks:
        expected = re.findall(r"^# (.*\n)", block, re.MULTILINE)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(block, names)  # noqa: S102
        assert printed.getvalue() == "".join(expected)
