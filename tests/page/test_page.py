"""The page as a whole: size, safety, screen readers, phones, colours."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from page.conftest import PANELS
from page.test_files import SAMPLE

MOST_BYTES = 150 * 1000
PICTURE = Path(__file__).resolve().parents[2] / "docs/images/page.png"


@pytest.fixture(scope="session")
def response(url):
    with urllib.request.urlopen(url) as response:
        yield response, response.read().decode()


def test_size(response):
    assert len(response[1].encode()) < MOST_BYTES


def test_size_of_the_picture():
    assert PICTURE.stat().st_size < 200 * 1000


def test_headers(response):
    headers = response[0].headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_other_paths_and_methods(url):
    for path, method, status in [("/x", "GET", 404), ("/", "DELETE", 405)]:
        request = urllib.request.Request(url + path, method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == status
        caught.value.close()


def test_nothing_comes_from_elsewhere(page, response):
    for panel in PANELS:
        page.open(panel)
    page.said("#live-state", "Version")
    assert all(
        request.startswith((page.url, "data:")) for request in page.requests
    )
    named = set(re.findall(r"https?://[^\"'`\s)]*", response[1]))
    assert named == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_no_other_script_runs(page):
    page.open("steps")
    page.tab.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.injected = true";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend",
            "<i onclick='window.injected = true' id='bait'></i>");
          document.getElementById("bait").click();
        }"""
    )
    assert page.tab.evaluate("window.injected") is None
    assert any("Content Security Policy" in e for e in page.errors)
    page.errors.clear()


def violations(page):
    return [
        (found["id"], [node["html"] for node in found["nodes"]])
        for found in Axe().run(page.tab).response["violations"]
    ]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme, width):
    page.tab.emulate_media(color_scheme=scheme)
    page.tab.set_viewport_size({"width": width, "height": 844})
    for panel in PANELS:
        page.open(panel)
        if panel == "live":
            page.said("#live-state", "Version")
        for summary in page.tab.locator(f"#panel-{panel} summary").all():
            summary.click()
        assert violations(page) == [], panel
    page.open("steps")
    page.tab.set_input_files("#file", SAMPLE)
    page.said("#source-name", "minilm")
    assert violations(page) == []


def test_axe_would_find_something(page):
    page.open("steps")
    page.tab.evaluate("document.querySelector('#edit-q input').ariaLabel = ''")
    assert [name for name, _ in violations(page)] == ["label"]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_panel_is_wider_than_the_window(page, width):
    page.tab.set_viewport_size({"width": width, "height": 844})
    for panel in PANELS:
        page.open(panel)
        if panel == "steps":
            page.tab.select_option("#example", "six")
        wide = page.tab.evaluate(
            "document.documentElement.scrollWidth - innerWidth"
        )
        assert wide <= 0, panel


def background(page):
    return page.tab.evaluate("getComputedStyle(document.body).backgroundColor")


def test_colours_follow_the_system_and_the_switch(page):
    page.tab.emulate_media(color_scheme="dark")
    page.open("steps")
    dark = background(page)
    page.tab.emulate_media(color_scheme="light")
    page.tab.wait_for_selector("html[data-theme='light']")
    light = background(page)
    assert light != dark
    page.tab.click("#theme")
    assert background(page) == dark
    page.tab.reload()
    assert background(page) == dark


def test_every_panel_is_reached_by_the_keyboard(page):
    page.open("steps")
    page.tab.keyboard.press("Tab")
    assert page.tab.evaluate("document.activeElement.className") == "skip"
    for panel in PANELS:
        page.tab.focus(f"nav a[href='#{panel}']")
        page.tab.keyboard.press("Enter")
        page.tab.wait_for_selector(f"#panel-{panel}", state="visible")
        current = page.tab.locator("nav a[aria-current='page']")
        assert current.get_attribute("href") == f"#{panel}"
        assert page.tab.locator(".panel:visible").count() == 1
