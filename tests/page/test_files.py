"""Tensors from files: dropped, or picked."""

import ast
import base64
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from support import reference

SAMPLE = (
    Path(__file__).resolve().parents[2] / "examples/minilm_layer0.safetensors"
)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def upload(page, name, content):
    page.tab.set_input_files(
        "#file",
        {
            "name": name,
            "mimeType": "application/octet-stream",
            "buffer": content,
        },
    )


def drop(page, name, content):
    page.tab.evaluate(
        """([name, text]) => {
          const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], name));
          for (const type of ["dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(type,
              {dataTransfer: data, bubbles: true, cancelable: true}));
          }
        }""",
        [name, base64.b64encode(content).decode()],
    )


@pytest.fixture(params=[upload, drop], ids=["picked", "dropped"])
def give(request):
    return request.param


def weights(q, k, v, **options):
    arguments = (np.asarray(x, float) for x in (q, k, v))
    return reference.compute(
        *arguments, return_scores="weights", **options
    ).scores[0, 0]


def test_a_real_layer(page, give):
    page.open("steps")
    give(page, SAMPLE.name, SAMPLE.read_bytes())
    page.said("#source-name", SAMPLE.name)
    tensors = load_file(SAMPLE)
    for head in (0, 7):
        page.fill("#pick-head", head)
        case = [tensors[n][0, head] for n in ("query", "key", "value")]
        np.testing.assert_allclose(
            page.table("#weights"), weights(*case), rtol=1e-11
        )
        np.testing.assert_allclose(
            page.table("#output"), tensors["output"][0, head], atol=1e-6
        )
    page.tab.click("#close-file")
    assert page.table("#weights").shape == (1, 2)


def test_the_server_agrees(page, grpc_answer):
    page.answer_with(grpc_answer)
    page.open("steps")
    upload(page, SAMPLE.name, SAMPLE.read_bytes())
    page.said("#source-name", SAMPLE.name)
    page.said("#server-steps", "The server’s answer: equal to within")


def test_heads_that_share_keys(page):
    rng = np.random.default_rng(1)
    case = {
        "query": rng.standard_normal((2, 4, 3, 5)),
        "key": rng.standard_normal((2, 2, 6, 5)),
        "value": rng.standard_normal((2, 2, 6, 2)),
    }
    page.open("steps")
    upload(page, "gqa.safetensors", save(case))
    page.said("#source-name", "gqa")
    page.fill("#pick-batch", 1)
    page.fill("#pick-head", 2)
    page.fill("#pick-row", 1)
    wanted = weights(
        case["query"][1, 2, 1:], case["key"][1, 1], case["value"][1, 1]
    )
    np.testing.assert_allclose(page.table("#weights"), wanted, rtol=1e-12)


def test_axes_with_tokens_first(page):
    rng = np.random.default_rng(2)
    case = {n: rng.standard_normal((1, 4, 3, 5)) for n in ("q", "k", "v")}
    page.open("steps")
    upload(page, "bshd.safetensors", save(case))
    page.said("#source-name", "bshd")
    page.tab.select_option("#pick-axes", "tokens")
    page.fill("#pick-head", 2)
    wanted = weights(*(case[n][0, :, 2] for n in ("q", "k", "v")))
    np.testing.assert_allclose(page.table("#weights"), wanted, rtol=1e-12)


def test_long_files_show_a_part_and_say_so(page):
    rng = np.random.default_rng(3)
    case = {n: rng.standard_normal((200, 4)) for n in ("q", "k", "v")}
    page.open("steps")
    upload(page, "long.safetensors", save(case))
    page.said("#note-weights", "keys 0 to 47 alone")
    wanted = weights(case["q"][:16], case["k"][:48], case["v"][:48])
    np.testing.assert_allclose(page.table("#weights"), wanted, rtol=1e-12)


def test_npy(page):
    page.open("steps")
    for n, dtype in enumerate(
        ["<f8", "<f4", "<f2", "<i8", "<i4", "|i1", "|u1"]
    ):
        for order in "CF":
            numbers = np.arange(24).reshape(2, 3, 4) + n
            if "f" in dtype:
                numbers = numbers / 2 + 0.3
            array = np.array(numbers, dtype, order=order)
            name = f"query{n}{order}.npy"
            upload(page, name, npy(array))
            page.said("#source-name", name)
            page.fill("#pick-head", 1)
            np.testing.assert_array_equal(
                page.table("#edit-q"), array[1].astype(float), err_msg=name
            )
            page.tab.click("#close-file")


def test_what_is_not_finite(page):
    """Is computed as the server computes it, and is no JSON number."""
    page.open("steps")
    page.tab.select_option("#opt-causal", "top_left")
    case = {
        "q": [[1, 0], [np.inf, 1]],
        "k": [[1, 0], [np.nan, 1]],
        "v": [[1, 2], [np.nan, 4]],
    }
    for name, rows in case.items():
        upload(page, f"{name}.npy", npy(np.array(rows, np.float32)))
        page.said("#source-name", f"{name}.npy")
    assert page.table("#output")[0].tolist() == [1, 2]
    page.tab.click("#request summary")
    page.tab.click("#copy-python")
    page.said("#copied", "Copied")
    copied = page.tab.evaluate("navigator.clipboard.readText()")
    ran = subprocess.run(
        [sys.executable, "-c", copied],
        capture_output=True,
        check=True,
        text=True,
    )
    answer = ast.literal_eval(ran.stdout)
    assert answer["floatValues"] == [1, 2, "NaN", "NaN"]
    page.said("#server-steps", "equal")


def test_npy_files_one_after_another(page):
    rng = np.random.default_rng(4)
    case = {n: rng.standard_normal((5, 4)) for n in ("q", "k", "v")}
    page.open("steps")
    for name, array in case.items():
        upload(page, f"{name}.npy", npy(array))
        page.said("#source-name", f"{name}.npy")
    np.testing.assert_allclose(
        page.table("#weights"), weights(*case.values()), rtol=1e-12
    )


def test_bfloat16_and_float16(page):
    numbers = np.array([[1.5, -2.25], [3e-5, 65504]], np.float32)
    case = {
        "q": numbers.astype(ml_dtypes.bfloat16),
        "k": numbers.astype(np.float16),
        "v": numbers.astype(np.float16),
    }
    page.open("steps")
    upload(page, "half.safetensors", save(case))
    page.said("#source-name", "half")
    for name, array in case.items():
        np.testing.assert_array_equal(
            page.table(f"#edit-{name}"), array.astype(float)
        )


GOOD = npy(np.ones((2, 2), np.float32))
HEADER = b'{"q":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'


def safetensors(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


BAD = {
    "name": ("x.txt", b"abc", "wanted one that ends in .npy or .safetensors"),
    "magic": ("x.npy", b"no numpy file", "this is no .npy file"),
    "empty": ("x.npy", b"", "this is no .npy file"),
    "short": ("x.npy", GOOD[:-1], "got 15 bytes, wanted 16 for shape (2, 2)"),
    "header": ("x.npy", GOOD[:20], "the header goes past the file's end"),
    "complex": ("x.npy", npy(np.ones((2, 2), complex)), "type <c16"),
    "rank": ("x.npy", npy(np.ones(3)), "no tensor of two to four axes"),
    "none": ("x.npy", npy(np.ones((0, 3))), "no tensor of two to four axes"),
    "tiny": ("x.safetensors", b"1234", "it has fewer than 8 bytes"),
    "length": (
        "x.safetensors",
        struct.pack("<Q", 2**60),
        "the header goes past the file's end",
    ),
    "JSON": ("x.safetensors", safetensors(b"{{"), "the header is no JSON"),
    "place": (
        "x.safetensors",
        safetensors(HEADER, bytes(15)),
        "the place of tensor q is not in the file",
    ),
    "size": (
        "x.safetensors",
        safetensors(HEADER.replace(b"[2,2]", b"[2,3]"), bytes(16)),
        "q: got 16 bytes, wanted 24 for shape (2, 3) of FLOAT32",
    ),
    "shape": (
        "x.safetensors",
        safetensors(HEADER.replace(b"[2,2]", b'["2",2]'), bytes(16)),
        "q: got 16 bytes",
    ),
    "entry": (
        "x.safetensors",
        safetensors(b'{"q": null}'),
        "the place of tensor q is not in the file",
    ),
    "null": ("x.safetensors", safetensors(b"null"), "the header is no object"),
}


def test_a_bad_file_is_told_and_changes_nothing(page):
    page.open("steps")
    before = page.table("#weights").tolist()
    for case, (name, content, wanted) in BAD.items():
        name = f"{case}-{name}"
        upload(page, name, content)
        assert wanted in page.said("#file-error", name)
        assert page.table("#weights").tolist() == before, case
        assert not page.tab.is_visible("#source"), case


MISFITS = {
    "head size": ((2, 3), (2, 4), (2, 3), "key: got head size 4, wanted"),
    "heads": ((3, 2, 4), (2, 2, 4), (2, 2, 4), "key: got 2 heads, wanted"),
    "value heads": ((2, 2, 4), (2, 2, 4), (1, 2, 4), "value: got 1 heads"),
    "rows": ((2, 4), (3, 4), (2, 4), "value: got 2 rows, wanted the key’s, 3"),
    "batch": (
        (2, 1, 2, 4),
        (1, 1, 2, 4),
        (1, 1, 2, 4),
        "key and value: got batches of 1 and 1",
    ),
}


def test_tensors_that_do_not_fit_are_named(page):
    page.open("steps")
    before = page.table("#weights").tolist()
    for *shapes, wanted in MISFITS.values():
        case = {
            n: np.ones(s, np.float32)
            for n, s in zip("qkv", shapes, strict=True)
        }
        upload(page, "x.safetensors", save(case))
        page.said("#file-error", wanted)
        # Every panel shows its own example.
        for panel in ("rows", "blocks", "steps"):
            page.tab.click(f"nav a[href='#{panel}']")
            page.tab.wait_for_selector(f"#panel-{panel}", state="visible")
        assert page.table("#weights").tolist() == before


def test_names_in_a_file_are_no_markup(page):
    name = "<img src=x onerror=boom()>"
    page.open("steps")
    header = json.dumps(
        {name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    ).encode()
    upload(page, "x.safetensors", safetensors(header, bytes(16)))
    page.said("#source-name", "1 tensor")
    assert name in page.text("#pick-query option")
    assert page.tab.locator("main img").count() == 0
