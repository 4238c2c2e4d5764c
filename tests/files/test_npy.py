"""The program's reader of .npy against numpy's own."""

import io
import random
import struct
import tokenize
import warnings

import numpy as np
import pytest
from numpy.lib import format as npy

from support.sent_as import SENT_AS, line_of

SEED = 20260726


def file_of(header, data, version=(1, 0), length=None):
    encoded = header if isinstance(header, bytes) else header.encode("latin1")
    kind = "<H" if version[0] == 1 else "<I"
    return (
        npy.magic(*version)
        + struct.pack(kind, len(encoded) if length is None else length)
        + encoded
        + data
    )


def by_numpy(content):
    """What numpy.load() makes of the file, as the reader prints it; None if it
    refuses, or gives what the wire cannot carry."""
    try:
        with warnings.catch_warnings():
            # Files of Python 2.
            warnings.simplefilter("ignore")
            array = np.load(io.BytesIO(content))
    except (
        EOFError,
        OverflowError,
        SyntaxError,
        TypeError,
        ValueError,
        tokenize.TokenError,
    ):
        return None
    return line_of(array) if isinstance(array, np.ndarray) else None


def assert_same(read, contents):
    """Returns how many of the files are read."""
    wanted = [by_numpy(content) for content in contents]
    for content, got, want in zip(contents, read(contents, ".npy"), wanted):
        assert got == want, content
    return sum(want is not None for want in wanted)


ARRAYS = [
    np.arange(-6, 6).reshape(3, 4),
    np.arange(24).reshape(2, 3, 4),
    np.array(5),
    np.array([7]),
    np.zeros((0, 3)),
]


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("endian", "<>")
def test_what_numpy_saves(read, endian, order):
    contents = []
    for name in SENT_AS:
        dtype = np.dtype(name).newbyteorder(endian)
        for array in ARRAYS:
            for version in [None, (1, 0), (2, 0), (3, 0)]:
                file = io.BytesIO()
                array = np.asarray(array.astype(dtype), order=order)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    npy.write_array(file, array, version)
                contents.append(file.getvalue())
    # All but uint64 that was negative.
    assert assert_same(read, contents) >= len(contents) - 8


def spelled_types():
    """Every way to write a plain type, and many that are none."""
    codes = "?bBhHiIlLqQpPnNefdgFDGSUVOMm"
    kinds = [
        k + n
        for k in "biufc?SV"
        for n in ["", *"0123456789", "16", "04", "+2", " 8", "4 "]
    ]
    names = [name for name in np._core.sctypeDict if isinstance(name, str)]
    names += ["float8", "bfloat16", "Float32", "int0", "", "bool8", "i4,f4"]
    plain = [*codes, *kinds, *names]
    orders = ["", "<", ">", "=", "|", "!", "@", "<<", " "]
    return sorted({order + code for order in orders for code in plain})


def test_every_name_of_a_type(read):
    contents = [
        file_of(
            f"{{'descr': {name!r}, 'fortran_order': False, 'shape': (2, 1)}}",
            bytes(range(1, 100)),
        )
        for name in spelled_types()
    ]
    assert assert_same(read, contents) > 150


def random_header(choose):
    """A header by a writer of odd taste, right more often than not."""
    space = lambda: choose.choice(["", "", "", " ", "  ", "\n", "\t", " \\\n"])
    quote = choose.choice("'\"")

    def text(value):
        prefix = choose.choice([""] * 20 + ["u", "r", "R", "U", "b"])
        if choose.random() < 0.05:
            return f"{prefix}{quote * 3}{value}{quote * 3}"
        if choose.random() < 0.05:
            return f"{quote}{value[:2]}{quote} {quote}{value[2:]}{quote}"
        return f"{prefix}{quote}{value}{quote}"

    def number(n):
        return choose.choice(
            [str(n)] * 40
            + [f"{n}L", f"{n}l", f"{n} L", f"+{n}", f"{n:#x}", f"{n:#o}"]
            + [f"{n:#b}", f"0{n}", f"{n:_}", f"{n}.0", f"({n})", f"1{n}_0"]
        )

    def shape():
        sizes = [choose.randrange(1, 4) for _ in range(choose.randrange(4))]
        items = [number(n) + space() for n in sizes]
        comma = "," if len(items) == 1 or choose.random() < 0.3 else ""
        if choose.random() < 0.05:
            comma = choose.choice(["", ",", ",,"])
        inside = ("," + space()).join(items) + comma
        return choose.choice(
            ["({})"] * 40 + ["[{}]", "{}", "(({}))", "({}"]
        ).format(space() + inside)

    entries = {
        "descr": text(
            choose.choice(["<f4", ">f4", "<i2", "|b1", "?", "f8", "|u1"])
        ),
        "fortran_order": choose.choice(
            ["True", "False"] * 20
            + ["0", "1", "None", "true", "(True)", "Falsey"]
        ),
        "shape": shape(),
    }
    keys = list(entries)
    choose.shuffle(keys)
    if choose.random() < 0.05:
        keys.remove(choose.choice(keys))
    if choose.random() < 0.05:
        keys.append(choose.choice(keys))
    pairs = [
        f"{space()}{text(key)}{space()}:{space()}{entries[key]}" for key in keys
    ]
    if choose.random() < 0.05:
        pairs.append(choose.choice(["'x': 1", "", "1: 2", "'shape'"]))
    if choose.random() < 0.05:
        pairs.append("# comment\n")
    end = choose.choice([",", ", ", "", ""]) + space()
    after = choose.choice(
        ["\n", "   \n", "", "\n\n", " # end", "\n  \n"] * 6 + [" x", "\0"]
    )
    before = choose.choice([""] * 9 + [" ", "\t ", "\n", "\n  "])
    return before + "{" + ",".join(pairs) + end + "}" + after


def test_headers_of_many_writers(read):
    choose = random.Random(SEED)
    contents = []
    for _ in range(6000):
        version = choose.choice([(1, 0), (2, 0), (3, 0)] * 8 + [(1, 1), (4, 0)])
        data = bytes(
            choose.randrange(2) for _ in range(choose.choice([300] * 9 + [9]))
        )
        contents.append(file_of(random_header(choose), data, version))
    # Enough of both kinds, or the test would say little.
    good = assert_same(read, contents)
    assert 1500 < good < 4500


def test_damaged_headers(read):
    """One byte of a good header is another, or missing, or there twice."""
    choose = random.Random(SEED)
    good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3), }"
    contents = []
    for _ in range(3000):
        at = choose.randrange(len(good))
        byte = choose.choice("'\"{}()[],:0123456789LTFabx <>|=_-+.#\n\\~")
        header = choose.choice(
            [
                good[:at] + byte + good[at + 1 :],
                good[:at] + good[at + 1 :],
                good[:at] + byte + good[at:],
            ]
        )
        contents.append(file_of(header, bytes(200)))
    assert_same(read, contents)


def test_lengths(read):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"
    for padding in [0, 1, 9000, 10000 - len(header), 10001 - len(header)]:
        assert_same(
            read,
            [
                file_of(header + " " * padding, bytes(24), v)
                for v in [(1, 0), (3, 0)]
            ],
        )
    whole = file_of(header, bytes(24))
    assert assert_same(read, [whole[:n] for n in range(len(whole) + 1)]) == 1
    assert assert_same(read, [whole + bytes(n) for n in range(5)]) == 5


def test_more_axes_than_numpy_has(read):
    contents = [
        file_of(
            f"{{'descr': '|i1', 'fortran_order': False, 'shape': {(1,) * n}}}",
            b"1",
        )
        for n in (63, 64, 65)
    ]
    assert assert_same(read, contents) == 2
