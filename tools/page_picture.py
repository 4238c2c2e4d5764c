"""Makes the picture of the server's page that README shows.

Usage: page_picture.py OUTPUT.png, with tests/ on PYTHONPATH and the server in
build/release/bin.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from e2e.server_process import ServerProcess
from page.browser import http_address, start_chromium

SERVER = Path("build/release/bin/attention_server")
WIDTH = 1180
BELOW = 24


def main(output):
    with (
        ServerProcess(SERVER, "--http-listen=127.0.0.1:0") as server,
        sync_playwright() as playwright,
    ):
        browser = start_chromium(playwright)
        tab = browser.new_page(
            viewport={"width": WIDTH, "height": 2000},
            color_scheme="light",
        )
        tab.goto(http_address(server))
        tab.select_option("#example", "six")
        for size, count in {"S": 3, "T": 3, "D": 2, "V": 2}.items():
            tab.fill(f"#size-{size}", str(count))
            tab.locator(f"#size-{size}").dispatch_event("change")
        tab.select_option("#opt-causal", "top_left")
        tab.evaluate("document.activeElement.blur()")
        tab.hover("#weights td[data-i='2'][data-j='1']")
        tab.wait_for_function(
            "document.getElementById('server-steps').innerText"
        )
        # As far as the last table.
        last = tab.locator(".work").bounding_box()
        tab.screenshot(
            path=output,
            clip={
                "x": 0,
                "y": 0,
                "width": WIDTH,
                "height": last["y"] + last["height"] + BELOW,
            },
        )
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
