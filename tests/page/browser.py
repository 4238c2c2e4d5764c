"""Chromium, and where a server has its page."""

import shutil


def start_chromium(playwright):
    """Debian's Chromium. Fails where it is not installed."""
    program = shutil.which("chromium")
    assert program, "there is no chromium: ./dev test page installs it"
    # Tests may run as root in a container, where the sandbox cannot be had.
    return playwright.chromium.launch(
        executable_path=program, args=["--no-sandbox"]
    )


def http_address(server):
    """Where a ServerProcess with --http-listen serves HTTP."""
    prefix, line = "listening on ", server.process.stdout.readline()
    assert line.startswith(prefix + "http://"), line
    return line[len(prefix) :].strip()
