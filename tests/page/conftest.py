"""The real server's page in headless Chromium."""

import json

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from playwright.sync_api import sync_playwright

from attention_client import attention_pb2 as pb
from e2e.server_process import ServerProcess
from page.browser import http_address, start_chromium

COMPUTE = "/v1/attention:compute"
PANELS = ["steps", "masks", "heads", "rows", "blocks", "live"]


@pytest.fixture(scope="session")
def server(server_binary):
    with ServerProcess(server_binary, "--http-listen=127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="session")
def url(server):
    return http_address(server)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = start_chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def grpc_answer(server):
    """What the server's gRPC answers to a request in JSON: (status, JSON)."""
    channel = grpc.insecure_channel(server.address)
    compute = channel.unary_unary(
        "/attention.v1.AttentionService/ComputeAttention",
        pb.ComputeAttentionRequest.SerializeToString,
        pb.ComputeAttentionResponse.FromString,
    )

    def tensor(value):
        if not isinstance(value, list):
            return value
        array = np.array(value, np.float64)
        return {
            "shape": list(array.shape),
            "floatValues": array.ravel().tolist(),
        }

    def answer(text):
        fields = {k: tensor(v) for k, v in json.loads(text).items()}
        lengths = fields.get("validLengths")
        if isinstance(lengths, dict):
            fields["validLengths"] = [int(n) for n in lengths["floatValues"]]
        request = json_format.ParseDict(fields, pb.ComputeAttentionRequest())
        try:
            response = compute(request, timeout=60)
        except grpc.RpcError as error:
            return 400, {
                "code": error.code().value[0],
                "message": error.details(),
            }
        return 200, json_format.MessageToDict(response)

    yield answer
    channel.close()


class Page:
    """One panel of the page in a tab of its own."""

    def __init__(self, tab, url):
        self.tab = tab
        self.url = url
        self.errors = []
        self.requests = []
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", self._hear)
        tab.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message):
        # Chromium's own line for an answer that is not 200.
        if message.type == "error" and COMPUTE not in str(message.location):
            self.errors.append(message.text)

    def open(self, panel):
        self.tab.goto(f"{self.url}/#{panel}")
        self.tab.wait_for_selector(f"#panel-{panel}", state="visible")
        return self

    def answer_with(self, answer):
        """Answers POST by answer(text), which gives (status, JSON or text)."""

        def handle(route):
            status, body = answer(route.request.post_data)
            text = body if isinstance(body, str) else json.dumps(body)
            route.fulfill(
                status=status, body=text, content_type="application/json"
            )

        self.tab.route(f"**{COMPUTE}", handle)

    def fill(self, selector, value):
        self.tab.fill(selector, str(value))
        # "change", as leaving the field does.
        self.tab.locator(selector).dispatch_event("change")

    def text(self, selector):
        return self.tab.inner_text(selector)

    def said(self, selector, words, timeout=10_000):
        """Waits until the element's text has these words; gives all of it."""
        self.tab.wait_for_function(
            "([s, w]) => document.querySelector(s).innerText.includes(w)",
            arg=[selector, words],
            timeout=timeout,
        )
        return self.text(selector)

    def table(self, host):
        """The numbers of a table of cells, as the page computed them."""
        rows = self.tab.eval_on_selector_all(
            f"{host} tbody tr",
            "rows => rows.map(row => [...row.querySelectorAll('td[data-value]')]"
            ".map(cell => cell.dataset.value))",
        )
        return np.array([[float(x) for x in row] for row in rows])

    def shown(self, host):
        """The numbers that people see there."""
        texts = self.tab.eval_on_selector_all(
            f"{host} td[data-value]", "cells => cells.map(c => c.innerText)"
        )
        minus = str.maketrans({"−": "-", "∞": "inf"})
        return [float(text.translate(minus)) for text in texts]


@pytest.fixture
def page(browser, url):
    """A new visitor. Fails the test if anything went wrong in the script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = Page(context.new_page(), url)
    yield page
    context.close()
    assert page.errors == []
