"""A real browser, and applications for it to open: what `make test-browser` runs on."""

import os
import shutil
import socket
from dataclasses import dataclass, field
from threading import Thread

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium is installed, which the browser tests run in: apt install chromium"


@dataclass
class Seen:
    """What the pages of a test did: errors said or thrown, and the addresses asked for."""

    errors: list = field(default_factory=list)
    requests: list = field(default_factory=list)

    def watch(self, context):
        context.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        context.on("weberror", lambda e: self.errors.append(str(e.error)))
        context.on("request", lambda r: self.requests.append(r.url))


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, without a window; never one that was downloaded."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.exit(MISSING, returncode=1)
    # no test may hang on proxies of the machine: everything they open is on it
    os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def seen():
    """What all pages of this test did; a test asserts on it what it must not have done."""
    return Seen()


@pytest.fixture
def new_context(browser, seen):
    """A function that opens a browser without memory; its options are those of playwright.

    Two of them in one test are two people. English, in UTC, and nothing waits over 10 s.
    """
    contexts = []

    def new_context(**options):
        defaults = {"viewport": {"width": 1400, "height": 900}, "locale": "en-GB"}
        context = browser.new_context(**{**defaults, "timezone_id": "UTC", **options})
        context.set_default_timeout(10_000)
        seen.watch(context)
        contexts.append(context)
        return context

    yield new_context
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_context):
    """An empty page of 1400 x 900 pixels."""
    return new_context().new_page()


@pytest.fixture
def serve():
    """A function that serves an ASGI application on a port of its own and gives the address."""
    import uvicorn

    running = []

    def serve(app):
        listening = socket.create_server(("127.0.0.1", 0))  # requests wait here until it is up
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def axe_violations():
    """A function that names the serious faults of access that axe-core finds on a page."""
    from axe_playwright_python.sync_playwright import Axe

    def violations(page):
        found = Axe().run(page).response["violations"]
        return [
            f"{one['id']}: {node['html']} {node['failureSummary']}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    return violations
