"""The pages of a server for people, as a browser shows them."""

import pytest
from deploy_helpers import make_continual

from learnkit.serving.app import create_app


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_they_show_names_as_text_and_ask_for_nothing_else(page, seen, serve, path):
    hostile = "<img src=x onerror=window.hacked=1>"
    address = serve(create_app(make_continual({hostile: 3, "ok": 3})))
    page.goto(address + path)
    assert page.locator("h1").first.is_visible()
    assert page.evaluate("window.hacked") is None
    assert (hostile in page.inner_text("body")) == (path == "/")
    # Chromium asks every server for an icon by itself, and does not show that it does
    assert seen.requests == [address + path]
    assert [error for error in seen.errors if "404" not in error] == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_no_serious_fault_in_them(page, serve, axe_violations, path):
    page.goto(serve(create_app(make_continual({"ok": 3, "NO": 3}))) + path)
    assert axe_violations(page) == []
