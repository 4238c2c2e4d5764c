"""The other panels against NumPy and the server."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import save

from attention_client import Client
from support import reference


def bits(numbers):
    return [f"{x:08x}" for x in np.asarray(numbers, "<f4").view("<u4").ravel()]


class TestMasks:
    S, T = 5, 8

    def wanted(self, **options):
        zeros = np.zeros((self.S, 1)), np.zeros((self.T, 1))
        result = reference.compute(
            *zeros, np.eye(self.T), return_scores="weights", **options
        )
        return result.scores[0, 0]

    def chunks(self, size):
        p = np.arange(self.S)[:, None] + self.T - self.S
        return p // size == np.arange(self.T) // size

    def cases(self):
        row = np.ones((self.S, self.T), bool)
        row[2] = False
        lower = "bottom_right"
        return {
            "top_left": {"causal": "top_left"},
            "bottom_right": {"causal": lower},
            "window": {"causal": lower, "window": (2, None)},
            "chunk": {"causal": lower, "mask": self.chunks(4)},
            "padding": {"valid_lengths": np.array([6])},
            "alibi": {"causal": lower, "alibi_slopes": [0.5]},
            "sink": {"causal": lower, "sinks": [1]},
            "row": {"mask": row},
        }

    def test_weights(self, page):
        page.open("masks")
        for name, options in self.cases().items():
            got = page.table(f"#card-{name}")
            wanted = self.wanted(**options)
            np.testing.assert_allclose(
                got[:, : self.T], wanted, rtol=1e-12, err_msg=name
            )
            if name == "sink":
                # A column of its own, with what the keys do not get.
                np.testing.assert_allclose(
                    got[:, self.T], 1 - wanted.sum(axis=1), rtol=1e-12
                )
            else:
                assert got.shape == wanted.shape

    def test_hatched_cells_are_the_masked_ones(self, page):
        page.open("masks")
        hatched = page.tab.eval_on_selector_all(
            "#card-bottom_right td[data-i]",
            "cells => cells.map(c => c.classList.contains('hidden-key'))",
        )
        wanted = self.wanted(causal="bottom_right") == 0
        assert hatched == wanted.ravel().tolist()

    def test_the_server_agrees_about_each(self, page, grpc_answer):
        asked = []

        def answer(text):
            asked.append(json.loads(text))
            return grpc_answer(text)

        page.answer_with(answer)
        page.open("masks")
        page.said("#server-masks", "The server’s answers to all 8: equal")
        # A mask is sent only where there is no option for it.
        assert sum("mask" in request for request in asked) == 1
        chunks = [r.get("options", {}).get("chunkSize") for r in asked]
        assert [size for size in chunks if size] == [4]
        # More queries than keys: rows that see nothing.
        page.tab.fill("#mask-S", "9")
        page.tab.fill("#mask-T", "4")
        page.said("#server-masks", "The server’s answers to all 8: equal")
        assert page.table("#card-bottom_right")[:5].sum() == 0

    def test_a_cell_says_why(self, page):
        page.open("masks")
        page.tab.hover("#card-chunk td[data-i='1'][data-j='3']")
        assert "key 3 is in chunk 0, position 4 in chunk 1" in page.text(
            "#mask-worked"
        )
        page.tab.hover("#card-window td[data-i='0'][data-j='1']")
        assert "weight 0.333333" in page.text("#mask-worked")


class TestHeads:
    def test_bytes_per_token(self, page):
        page.open("heads")
        page.tab.fill("#heads-q", "24")
        page.tab.fill("#heads-kv", "6")
        page.tab.fill("#heads-d", "80")
        for stored, size, scale in [
            ("FLOAT32", 4, 0),
            ("FLOAT16", 2, 0),
            ("BFLOAT16", 2, 0),
            ("INT8", 1, 1),
            ("FLOAT8_E4M3", 1, 1),
        ]:
            page.tab.select_option("#heads-type", stored)
            self.check_bytes(page, size, scale)

    def check_bytes(self, page, size, scale):
        row = 80 * size + scale
        wanted = {
            "mha": 2 * 24 * row,
            "gqa": 2 * 6 * row,
            "mqa": 2 * row,
            "mla": (512 + 64) * size + scale,
        }
        for name, bytes_per_token in wanted.items():
            diagram = page.tab.locator(f"#heads-{name}")
            assert diagram.get_attribute("data-bytes") == str(bytes_per_token)
            figure = re.sub(r"\D", "", diagram.locator("b").inner_text())
            assert figure == str(bytes_per_token)

    def test_a_session_takes_as_many(self, page, server):
        """What the server itself counts for a page of 256 tokens."""
        page.open("heads")
        page.tab.fill("#heads-q", "4")
        page.tab.fill("#heads-kv", "2")
        page.tab.fill("#heads-d", "16")
        page.tab.select_option("#heads-type", "INT8")
        per_token = page.tab.get_attribute("#heads-gqa", "data-bytes")
        with (
            Client(server.address, timeout=60) as client,
            client.create_session(
                kv_heads=2, head_size=16, data_type="int8"
            ) as session,
        ):
            rows = np.zeros((2, 256, 16), np.float32)
            session.append(rows, rows)
            before = self.session_bytes(page)
            session.append(rows, rows)
            held = self.session_bytes(page) - before
        # A page takes some 300 bytes more, to be found by.
        assert 0 <= held - 256 * int(per_token) < 512

    def session_bytes(self, page):
        text = page.tab.request.get(page.url + "/metrics").text()
        return float(
            re.search(r"^attention_session_bytes (.*)$", text, re.MULTILINE)[1]
        )

    def test_which_head_reads_which(self, page):
        page.open("heads")
        heads = np.arange(32)
        for head in (0, 5, 31):
            page.tab.fill("#heads-follow", str(head))
            reads = {
                name: int(
                    page.tab.get_attribute(f"#heads-{name}", "data-reads")
                )
                for name in ("mha", "gqa", "mqa", "mla")
            }
            wanted = np.repeat(np.arange(8), 4)[heads == head][0]
            assert reads == {"mha": head, "gqa": wanted, "mqa": 0, "mla": 0}

    def test_groups_that_do_not_divide_are_named(self, page):
        page.open("heads")
        page.tab.fill("#heads-kv", "5")
        page.said("#heads-error", "GQA groups: got 5, wanted a divisor")


def tensor_file(**tensors):
    return {
        "name": "tensors.safetensors",
        "mimeType": "application/octet-stream",
        "buffer": save(tensors),
    }


def row_case(keys, size=16, seed=5):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    return {
        "query": draw(2, size),
        "key": draw(keys, size),
        "value": draw(keys, 3),
    }


class TestRows:
    def bars(self, page):
        return page.tab.eval_on_selector_all(
            "#rows-bars button",
            "bars => bars.map(b => [b.dataset.begin, b.dataset.end,"
            " b.dataset.max, b.dataset.weight].map(Number))",
        )

    def check(self, page, scores, weights):
        bars = self.bars(page)
        for begin, end, largest, weight in bars:
            own = slice(int(begin), int(end))
            assert largest == pytest.approx(scores[own].max(), rel=1e-12)
            assert weight == pytest.approx(weights[own].sum(), rel=1e-9)
        return bars

    def test_block_maxima_and_zoom(self, page):
        case = row_case(20_000)
        scores = case["key"].astype(float) @ case["query"][1] / 4
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        page.open("rows")
        page.tab.set_input_files("#file", tensor_file(**case))
        page.fill("#rows-query", 1)
        bars = self.check(page, scores, weights)
        # All keys, in the kernel's blocks.
        assert [b[0] for b in bars] == list(range(0, 20_000, 256))
        assert bars[-1][1] == 20_000
        # Into the block with the largest score, down to its key.
        best = int(scores.argmax())
        for _ in range(4):
            begin, end = self.bars(page)[0][0], self.bars(page)[-1][1]
            assert begin <= best < end
            inside = [
                n for n, b in enumerate(self.bars(page)) if b[0] <= best < b[1]
            ]
            page.tab.locator("#rows-bars button").nth(inside[0]).click()
            bars = self.check(page, scores, weights)
        assert [best, best + 1] in [b[:2] for b in bars]
        page.tab.hover(f"#rows-bars button[data-begin='{best}']")
        said = page.text("#rows-readout")
        assert f"Key {best}: score {scores[best]:.4f}" in said
        page.tab.click("#rows-all")
        assert len(self.bars(page)) == 79

    def test_the_heaviest_keys(self, page):
        case = row_case(3000)
        scores = case["key"].astype(float) @ case["query"][0] / 4
        page.open("rows")
        page.tab.set_input_files("#file", tensor_file(**case))
        page.said("#rows-range", "of 3")
        names = page.tab.locator("#rows-top tbody th").all_inner_texts()
        wanted = np.argsort(-scores)[:5].tolist()
        assert [int(re.sub(r"\D", "", name)) for name in names] == wanted

    def test_the_keyboard_zooms_and_moves(self, page):
        page.open("rows")
        page.tab.focus("#rows-bars button[tabindex='0']")
        page.tab.keyboard.press("End")
        page.tab.keyboard.press("Enter")
        bars = self.bars(page)
        assert bars[-1][1] == 20_000
        assert bars[0][0] >= 19_000
        page.tab.keyboard.press("ArrowRight")
        assert page.text("#rows-readout").startswith("Key ")
        page.tab.keyboard.press("-")
        assert self.bars(page)[-1][1] - self.bars(page)[0][0] > 32


def nearest_float32(exact):
    """The FLOAT32 number nearest to a Fraction, ties to even."""
    near = np.float32(float(exact))
    infinity = np.float32(np.inf)
    candidates = [
        near,
        np.nextafter(near, infinity),
        np.nextafter(near, -infinity),
    ]
    return min(
        candidates,
        key=lambda x: (abs(Fraction(float(x)) - exact), x.view("<u4") & 1),
    )


class TestBlocks:
    """The page's FLOAT32 arithmetic has the server's bits."""

    def test_fused_multiply_add(self, page):
        rng = np.random.default_rng(7)
        cases = rng.standard_normal((200, 3)).astype(np.float32)
        # Scales apart, so that the product's last bits matter.
        cases[:, 2] *= np.exp2(rng.integers(-30, 30, 200)).astype(np.float32)
        # Ties but for bits that float64 does not hold.
        tie = [
            (a, b * (1 - 2**-23), c)
            for a in (1 + 2**-23, -1 - 2**-23)
            for b in (2**-24, 2**-25, 2**-23)
            for c in (1, 1 + 2**-23, 1 - 2**-24, -1, -1 - 2**-23)
        ]
        cases = np.concatenate([cases, np.float32(tie)])
        got = page.open("blocks").tab.evaluate(
            "cases => cases.map(([a, b, c]) => fma32(a, b, c))",
            cases.astype(float).tolist(),
        )
        wanted = [
            nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
            for a, b, c in cases.astype(float).tolist()
        ]
        assert bits(got) == bits(wanted)

    def bits(self, page, line):
        return page.tab.get_attribute(f"#bits-{line}", "data-bits").split()

    def own_case(self, page):
        names = ("query", "key", "value")
        rows = page.tab.evaluate(
            "[[blocks.query], blocks.key, blocks.value].map(m => m.map(r => "
            "Array.from(r)))"
        )
        return {
            name: np.array(x, np.float32)
            for name, x in zip(names, rows, strict=True)
        }

    @pytest.mark.parametrize("count", [2, 255, 256, 257, 700, 1600, 2305, 4096])
    def test_the_servers_bits(self, page, server, count):
        page.open("blocks")
        page.fill("#blocks-count", count)
        page.said("#blocks-readout", "First")
        case = self.own_case(page)
        assert len(case["key"]) == count
        with Client(server.address, timeout=60) as client:
            wanted = client.compute(*case.values()).output
        assert self.bits(page, "whole") == bits(wanted)
        assert self.bits(page, "kernel") == bits(wanted)

    @pytest.mark.parametrize("scale", [0.01, 1, 30])
    def test_the_servers_bits_of_a_file(self, page, server, scale):
        case = row_case(1100, size=40, seed=11)
        case["query"] *= np.float32(scale)
        page.open("blocks")
        page.tab.set_input_files("#file", tensor_file(**case))
        page.said("#source-name", "tensors.safetensors")
        with Client(server.address, timeout=60) as client:
            wanted = client.compute(*case.values()).output
        assert self.bits(page, "whole") == bits(wanted[0])

    def test_the_servers_bits_of_weights_near_zero(self, page, server):
        """Weights become 0 below exp(-87), however large their values."""
        case = {
            "query": np.ones((1, 1), np.float32),
            "key": np.float32([[0], [-86.5], [-87], [-87.5], [-95]]),
            "value": np.float32([[0], [1e30], [2e33], [3e38], [3e38]]),
        }
        page.open("blocks")
        page.tab.set_input_files("#file", tensor_file(**case))
        page.said("#source-name", "tensors.safetensors")
        with Client(server.address, timeout=60) as client:
            wanted = client.compute(*case.values()).output
        assert self.bits(page, "whole") == bits(wanted)

    def test_no_cut_changes_a_bit(self, page):
        page.open("blocks")
        whole = self.bits(page, "whole")
        usual = set()
        for cut in (0, 1, 255, 256, 257, 700, 1599, 1600):
            page.tab.fill("#blocks-cut", str(cut))
            page.said("#blocks-readout", f"First {cut // 1000 or ''}")
            assert self.bits(page, "kernel") == whole
            usual.add(tuple(self.bits(page, "usual")))
        # What the panel is there to show: the usual way gives others.
        assert len(usual) > 3
        assert "differ" in page.text("#bits-usual")

    def test_the_slider_moves_the_cut(self, page):
        page.open("blocks")
        page.tab.focus("#blocks-slider")
        page.tab.keyboard.press("ArrowRight")
        page.said("#blocks-readout", "First 701 keys, then 899")
        assert page.tab.input_value("#blocks-cut") == "701"

    def test_the_servers_answer_in_two_parts(self, page, grpc_answer):
        asked = []
        page.answer_with(lambda text: asked.append(text) or grpc_answer(text))
        page.open("blocks")
        page.said("#server-blocks", "The server’s bits: the same")
        assert '"pastKey":{"shape":[1,1,700,4]' in asked[-1]
        assert self.bits(page, "server") == self.bits(page, "whole")

    def test_other_bits_are_told(self, page, grpc_answer):
        def wrong(text):
            status, answer = grpc_answer(text)
            value = np.float32(answer["output"]["floatValues"][2])
            up = np.nextafter(value, np.float32(np.inf))
            answer["output"]["floatValues"][2] = float(up)
            return status, answer

        page.answer_with(wrong)
        page.open("blocks")
        page.said("#server-blocks", "bits differ in 1 of 4 numbers")
        assert "1 of 4 differ" in page.text("#bits-server")
