"""The program's reader and writer of .safetensors against the official one."""

import json
import random
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from support.sent_as import line_of

SEED = 20260726
SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "I16": 2, "F16": 2, "BF16": 2, "F32": 4}


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else header.encode()
    length = len(text) if length is None else length
    return struct.pack("<Q", length) + text + data


def entry(name, dtype, shape, begin, end):
    fields = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return f"{json.dumps(name)}:{json.dumps(fields)}"


def is_good(content):
    """Whether the official library reads the file."""
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def random_file(choose):
    """A file of a few tensors, most of them with something wrong."""
    parts, at = [], 0
    for i in range(choose.randrange(1, 5)):
        dtype = choose.choice(list(SIZES))
        shape = [choose.randrange(4) for _ in range(choose.randrange(3))]
        size = SIZES[dtype] * int(np.prod(shape, dtype=int))
        parts.append([f"t{i}", dtype, shape, at, at + size])
        at += size
    data = bytes(choose.randrange(2) for _ in range(at))
    wrong = choose.choice(parts)
    fault = choose.randrange(12)
    if fault == 0:
        wrong[3 + choose.randrange(2)] += choose.choice([-1, 1])
    elif fault == 1:
        wrong[2] = [*wrong[2], choose.choice([1, 2])]
    elif fault == 2:
        wrong[1] = choose.choice(["F8_E4M3", "f32", "F64", "X", "", 3, None])
    elif fault == 3:
        data = choose.choice([data + b"\0", data[:-1]])
    elif fault == 4:
        wrong[2] = choose.choice([[-1], [1.0], ["1"], 1, None, [2**64], [[1]]])
    elif fault == 5:
        wrong[3:] = choose.choice(
            [[wrong[4], wrong[3]], [0, 0], [at, at], [0, at]]
        )
    choose.shuffle(parts)
    header = ",".join(entry(*part) for part in parts)
    if fault == 6:
        metadata = [
            "null",
            "{}",
            '{"a":"b"}',
            '{"a":1}',
            "[]",
            '"x"',
            '{"a":null}',
        ]
        header += ',"__metadata__":' + choose.choice(metadata)
    before, after = "", ""
    if fault == 7:
        before = choose.choice([" ", "\n", "\ufeff", "\0", "[", "{"])
    if fault == 8:
        after = choose.choice([" ", "\n", "\0", "}", ",", "x", "\t  "])
    return file_of(before + "{" + header + "}" + after, data)


def test_what_is_read_and_what_is_refused(read):
    choose = random.Random(SEED)
    contents = [random_file(choose) for _ in range(4000)]
    # Whether a file is good does not hang on which tensor is asked for.
    got = [line is not None for line in read(contents, ".safetensors", ":t0")]
    wanted = [is_good(content) for content in contents]
    for content, good, want in zip(contents, got, wanted):
        if want and b'"t0":{"dtype": "F8' in content:
            continue  # A type that is not read.
        assert good == want, content
    assert 1000 < sum(wanted) < 3000


def test_headers_that_are_not_as_they_must_be(read):
    one = entry("t", "U8", [4], 0, 4)
    good = "{" + one + "}"
    deep = lambda n: good[:-2] + f',"x":{"[" * n}{"]" * n}}}}}'
    contents = [
        *(file_of(good, b"1234", length) for length in range(len(good) + 6)),
        file_of(good, b"1234", 100_000_001),
        file_of(good, b"1234", 2**64 - 1),
        *(file_of(deep(n), b"1234") for n in (1, 100, 125, 126, 127, 200)),
        file_of("\ufeff" + good, b"1234"),
        file_of(good.replace("t", "\\ud800"), b"1234"),
        file_of(good.encode().replace(b"t", b"\xff"), b"1234"),
        file_of(good.replace('"t"', '"\x01"'), b"1234"),
        file_of(good.replace("4]}", "-0]}"), b""),
        file_of(good.replace("4]}", "4,4]}"), b"1234"),
        file_of(good.replace("4]}", "4.0]}"), b"1234"),
        file_of(good.replace("[4]", "[4,]"), b"1234"),
        file_of(good.replace("U8", "U\\u0038"), b"1234"),
        file_of(
            "{" + one + "," + one.replace("[0, 4]", "[4, 8]") + "}", b"1234"
        ),
        file_of(good.replace('"dtype"', '"dtype":"U8","dtype"'), b"1234"),
        file_of(
            good.replace("{", '{"__metadata__":{},"__metadata__":{},', 1),
            b"1234",
        ),
        file_of(entry("__metadata__", "U8", [4], 0, 4), b"1234"),
        *(good.encode()[:n] for n in range(10)),
    ]
    for content, line in zip(contents, read(contents, ".safetensors")):
        assert (line is not None) == is_good(content), content


@pytest.mark.parametrize(
    "header",
    [
        # The library takes the last; the format forbids them.
        "{" + ",".join([entry("t", "U8", [4], 0, 4)] * 2) + "}",
        '{"__metadata__":{"a":"1","a":"2"},'
        + entry("t", "U8", [4], 0, 4)
        + "}",
    ],
)
def test_names_that_stand_twice(read, header):
    assert is_good(file_of(header, b"1234"))
    assert read([file_of(header, b"1234")], ".safetensors") == [None]


def test_every_type(read):
    arrays = {
        name: np.array([[0, 1], [1, 1]], name)
        for name in [
            *("bool", "int8", "int16", "int32", "int64", "float16", "float32"),
            *("uint8", "uint16", "uint32", "uint64", "float64"),
        ]
    }
    content = safetensors.numpy.save(arrays)
    for name, array in arrays.items():
        assert read([content], ".safetensors", f":{name}") == [line_of(array)]
