"""Panel "Steps" against NumPy and the server."""

import contextlib
import json
import re
import shlex

import numpy as np
import pytest
from playwright.sync_api import Error

from page.conftest import COMPUTE
from support import reference

STAGES = ["raw", "capped", "biased", "weights"]
TWO_KEYS = {
    "query": [[1, 0]],
    "key": [[0.5, 0.5], [0.3, 0.7]],
    "value": [[1, 0], [0.5, 0.5]],
}
EYE = [[1, 0], [0, 1]]


def arrays(request):
    return [np.array(request[name]) for name in ("query", "key", "value")]


def check(page, request, **options):
    """Every table holds the reference's numbers, and shows them rounded."""
    for stage in STAGES:
        wanted = reference.compute(
            *arrays(request), return_scores=stage, **options
        )
        got = page.table(f"#{stage}")[:, : len(request["key"])]
        np.testing.assert_allclose(
            got, wanted.scores[0, 0], rtol=1e-12, atol=1e-14
        )
    wanted = reference.compute(*arrays(request), **options).output
    np.testing.assert_allclose(
        page.table("#output"), wanted, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        page.shown("#output"), wanted.ravel(), atol=0.5001e-4
    )


def test_begins_with_the_worked_example(page):
    page.open("steps")
    check(page, TWO_KEYS)
    np.testing.assert_allclose(
        page.table("#weights"), [[0.535297, 0.464703]], atol=5e-7
    )
    np.testing.assert_allclose(
        page.table("#output"), [[0.767648, 0.232352]], atol=5e-7
    )


def test_has_the_identity(page):
    page.open("steps")
    page.tab.select_option("#example", "identity")
    check(page, {"query": EYE, "key": EYE, "value": EYE})
    np.testing.assert_allclose(
        page.table("#output"),
        [[0.669762, 0.330238], [0.330238, 0.669762]],
        atol=5e-7,
    )


def test_an_edited_number_changes_the_answer(page):
    page.open("steps")
    page.tab.fill("#edit-k input[data-i='1'][data-j='0']", "-2.5")
    changed = {**TWO_KEYS, "key": [[0.5, 0.5], [-2.5, 0.7]]}
    check(page, changed)


def test_what_is_no_number_is_named_and_changes_nothing(page):
    page.open("steps")
    page.tab.fill("#edit-k input[data-i='1'][data-j='0']", "<b>x")
    error = page.said("#edit-error", "key 1, column 0")
    assert "got “<b>x”, wanted a number" in error
    check(page, TWO_KEYS)
    page.tab.fill("#edit-k input[data-i='1'][data-j='0']", "1e39")
    assert "FLOAT32" in page.said("#edit-error", "1e39")
    page.tab.fill("#edit-k input[data-i='1'][data-j='0']", "0.3")
    assert not page.tab.is_visible("#edit-error")


OPTIONS = {
    "softcap": {"softcap": 0.25},
    "scale": {"scale": -1.5},
    "upper left": {"causal": "top_left"},
    "lower right": {"causal": "bottom_right"},
    "window": {"window": (1, None), "causal": "bottom_right"},
    "ALiBi": {"alibi_slopes": [0.75], "causal": "bottom_right"},
    "sink": {"sinks": [0.5]},
    "all": {
        "softcap": 2,
        "scale": 0.9,
        "causal": "bottom_right",
        "window": (2, None),
        "alibi_slopes": [0.5],
        "sinks": [-1],
    },
}


def choose(page, options):
    fields = {
        "softcap": options.get("softcap", ""),
        "scale": options.get("scale", ""),
        "left": options.get("window", [""])[0],
        "slope": options.get("alibi_slopes", [""])[0],
        "sink": options.get("sinks", [""])[0],
    }
    for name, value in fields.items():
        page.tab.fill(f"#opt-{name}", str(value))
    page.tab.select_option("#opt-causal", options.get("causal", "none"))


def six_tokens(page):
    """The third example, with fewer queries than keys."""
    page.tab.select_option("#example", "six")
    page.fill("#size-S", 4)
    page.fill("#size-V", 3)
    return json.loads(
        page.tab.evaluate("JSON.stringify(steps.inputs)")
        .replace('"q"', '"query"')
        .replace('"k"', '"key"')
        .replace('"v"', '"value"')
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(page, grpc_answer, options):
    page.answer_with(grpc_answer)
    page.open("steps")
    request = six_tokens(page)
    choose(page, options)
    check(page, request, **options)
    page.said("#server-steps", "The server’s answer: equal to within")


def test_a_bad_option_is_named(page):
    page.open("steps")
    for field, value, wanted in [
        ("softcap", "-1", "Soft cap: got “-1”, wanted a number, 0 or more"),
        ("left", "1.5", "Window: got “1.5”, wanted a whole number"),
        ("scale", "two", "Scale: got “two”, wanted a number"),
    ]:
        page.tab.fill(f"#opt-{field}", value)
        page.said("#edit-error", wanted)
        assert page.tab.get_attribute(f"#opt-{field}", "aria-invalid") == "true"
        check(page, TWO_KEYS)
        page.tab.fill(f"#opt-{field}", "")
        assert not page.tab.is_visible("#edit-error")


def numbers(text):
    return [
        float(x) for x in re.findall(r"-?\d+\.?\d*", text.replace("−", "-"))
    ]


def test_a_cell_is_worked_out(page):
    page.open("steps")
    page.tab.hover("#raw td[data-j='1']")
    assert page.text("#worked-name") == "Raw score of query 0, key 1"
    lines = page.text("#worked").split("\n")
    assert lines[1] == "= 0.707107 × (1·0.3 + 0·0.7)"
    assert numbers(lines[-1]) == [pytest.approx(0.3 / np.sqrt(2), abs=1e-6)]
    page.tab.hover("#weights td[data-j='1']")
    lines = page.text("#worked").split("\n")
    a, b = np.exp([0.5 / np.sqrt(2), 0.3 / np.sqrt(2)])
    assert numbers(lines[-2]) == pytest.approx([b, a + b], abs=1e-6)
    assert numbers(lines[-1]) == pytest.approx([b / (a + b)], abs=1e-6)
    page.tab.hover("#output td[data-j='1']")
    lines = page.text("#worked").split("\n")
    assert lines[1] == "= 0.535297·0 + 0.464703·0.5"
    assert numbers(lines[-1]) == pytest.approx([0.232352], abs=1e-6)


def test_a_masked_cell_says_why(page):
    page.open("steps")
    page.tab.select_option("#example", "identity")
    page.tab.select_option("#opt-causal", "top_left")
    page.tab.hover("#biased td[data-i='0'][data-j='1']")
    assert "key 1 is later than query 0" in page.text("#worked")
    assert page.table("#biased")[0, 1] == -np.inf


def test_cells_are_reached_by_the_keyboard(page):
    page.open("steps")
    page.tab.select_option("#example", "identity")
    page.tab.focus("#weights td[tabindex='0']")
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowRight")
    assert page.text("#worked-name") == "Weight of query 1, key 1"
    page.tab.keyboard.press("Home")
    assert page.text("#worked-name") == "Weight of query 1, key 0"
    # One stop per table for the tab key.
    assert page.tab.locator("#weights td[tabindex='0']").count() == 1


def test_a_fully_masked_row_is_zero(page):
    page.open("steps")
    page.tab.select_option("#example", "identity")
    page.fill("#size-T", 1)
    page.tab.select_option("#opt-causal", "bottom_right")
    assert page.table("#weights").tolist() == [[0], [1]]
    assert page.table("#output").tolist() == [[0, 0], [1, 0]]
    page.tab.hover("#output td[data-i='0'][data-j='1']")
    assert "every key is masked" in page.text("#worked")


class TestServer:
    def test_real_answer_or_none(self, page, url):
        """What the real server answers, whether or not it has the path."""
        page.open("steps")
        status = page.tab.request.post(
            url + COMPUTE, data=json.dumps(TWO_KEYS)
        ).status
        if status in (404, 405, 413):
            page.said("#server-steps", "to compare with")
        else:
            page.said("#server-steps", "The server’s answer: equal")

    def test_absent(self, page):
        page.answer_with(lambda _: (404, "there is nothing at this path\n"))
        page.open("steps")
        page.said("#server-steps", f"The server has no POST {COMPUTE}")
        check(page, TWO_KEYS)

    def test_other_numbers(self, page, grpc_answer):
        def wrong(text):
            status, answer = grpc_answer(text)
            answer["output"]["floatValues"][1] += 0.14
            return status, answer

        page.answer_with(wrong)
        page.open("steps")
        page.said("#server-steps", "differs by up to 1.4e-1")

    def test_an_error_is_shown_as_text(self, page):
        markup = "<img src=x onerror=document.title='broken'>"
        page.answer_with(
            lambda _: (
                400,
                {"code": 3, "message": markup},
            )
        )
        page.open("steps")
        said = page.said("#server-steps", "did not answer: 400")
        assert markup in said
        assert page.tab.locator("#server-steps img").count() == 0
        assert page.tab.title() == "Attention server"

    def test_nonsense(self, page):
        bodies = ["no JSON", "{}", '{"output": {}}', "null", "[]"]
        left = list(bodies)
        page.answer_with(lambda _: (200, left.pop(0)))
        page.open("steps")
        for n in range(len(bodies)):
            page.said("#server-steps", "The server did not answer:")
            page.tab.evaluate("steps.line.say('', '')")
            if left:
                page.tab.fill("#edit-q input[data-j='1']", str(n))
        assert not left

    def test_only_the_last_question_is_answered(self, page, grpc_answer):
        asked = []
        page.answer_with(lambda text: asked.append(text) or grpc_answer(text))
        page.open("steps")
        for n in range(10):
            page.tab.fill("#edit-q input[data-j='1']", str(n))
        page.said("#server-steps", "The server’s answer")
        page.tab.wait_for_timeout(300)
        assert len(asked) <= 2
        assert json.loads(asked[-1])["query"] == [[1, 9]]

    def test_a_late_answer_is_not_shown(self, page, grpc_answer):
        held = []

        def handle(route):
            if not held:
                held.append(route)
                return
            status, answer = grpc_answer(route.request.post_data)
            route.fulfill(status=status, json=answer)

        page.tab.route(f"**{COMPUTE}", handle)
        with page.tab.expect_request(f"**{COMPUTE}"):
            page.open("steps")
        page.tab.fill("#edit-q input[data-j='1']", "3")
        page.said("#server-steps", "The server’s answer: equal")
        # Given up by the page, so that nobody may be there to take it.
        with contextlib.suppress(Error):
            held[0].fulfill(json={"output": {"floatValues": [9, 9]}})
        page.tab.evaluate("fetch('/livez').then(answer => answer.text())")
        assert "equal" in page.text("#server-steps")


class TestRequest:
    def test_curl(self, page, url):
        page.open("steps")
        choose(page, {"causal": "bottom_right", "sinks": [0.5]})
        page.tab.click("#request summary")
        page.tab.click("#copy-curl")
        page.said("#copied", "Copied")
        text = page.tab.evaluate("navigator.clipboard.readText()")
        words = shlex.split(text)
        assert words[:3] == ["curl", "-s", url + COMPUTE]
        assert json.loads(words[-1]) == {
            **TWO_KEYS,
            "options": {"causal": "CAUSAL_BOTTOM_RIGHT", "sinks": [0.5]},
        }

    def test_python(self, page, url):
        page.open("steps")
        page.tab.click("#request summary")
        page.tab.click("#copy-python")
        page.said("#copied", "Copied")
        text = page.tab.evaluate("navigator.clipboard.readText()")
        compile(text, "request.py", "exec")
        assert f'"{url}{COMPUTE}"' in text
        quoted = re.search(r"json\.loads\('(.*)'\)", text).group(1)
        assert json.loads(quoted) == TWO_KEYS
