"""The admin page in a browser: accessibility, the policy, size, and media."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.harness import COLLECTIONS, some
from tests.web.conftest import STRANGER, token
from tests.web.page_browser import Browser

pytest_plugins = ["tests.web.page_fixtures"]

STATIC = Path(__file__).parents[2] / "aggregator" / "web" / "static"


@pytest.mark.parametrize(("scheme", "width"), some([("dark", 1280), ("light", 1280), ("light", 360), ("dark", 360)], 2))
def test_axe_finds_nothing(browser: Browser, site: str, scheme: str, width: int) -> None:
    """The overview with tables open, the open picker, a collection's view, a refused address; nothing wider than the screen."""
    browser.size(width, 800, phone=width < 500)
    browser.emulate(prefers_color_scheme=scheme)
    browser.open(site)
    browser.script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    browser.wait(lambda: len(browser.table(".chart")) > 200)
    assert browser.violations() == []
    assert browser.script("return document.documentElement.scrollWidth") <= width
    browser.one("#picker").send_keys("c")
    browser.wait(lambda: browser.one("#picker-list").is_displayed())
    assert browser.violations() == []
    browser.open(f"{site}?collection_id={COLLECTIONS[0]}")
    assert browser.violations() == []
    browser.open(f"{site}?days=soon", "message")
    assert browser.violations() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_at_the_door(browser: Browser, guarded_site: str, scheme: str) -> None:
    """The question for a token, and the state without access."""
    browser.emulate(prefers_color_scheme=scheme)
    browser.open(guarded_site, "token-panel")
    assert browser.violations() == []
    browser.open(f"{guarded_site}#token={token(sub=str(STRANGER))}", "message")
    assert browser.violations() == []


def test_the_policy_is_strict_and_reports_nothing(browser: Browser, site: str) -> None:
    """Nothing inline, nothing from elsewhere: used in all its parts, the page writes nothing to the console."""
    browser.open(site)
    assert browser.script("return document.querySelectorAll('[style], script:not([src]), style').length") == 0
    browser.one(".chart summary").click()
    browser.one("#search").send_keys("collection")
    browser.one("#picker").send_keys("c")
    browser.one("#days").clear()
    browser.one("#days").send_keys("8", "\ue007")
    browser.wait(lambda: browser.text("#announce") == "Showing the last 8 days")
    browser.one("[data-days='7']").click()
    browser.wait(lambda: browser.text("#announce") == "Showing the last 7 days")
    browser.one("#ranking a").click()
    browser.wait(lambda: "collection_id" in browser.query())
    browser.await_panel("numbers")
    assert browser.console() == []
    asked = browser.script("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)")
    assert set(asked) == {site.partition("/admin")[0]}
    policy = browser.script("return fetch('.').then((answer) => answer.headers.get('Content-Security-Policy'))")
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy


def test_the_first_view_is_small(browser: Browser, site: str) -> None:
    """All that is fetched until the numbers are there, as it crosses the wire: the data too."""
    browser.open(site)
    total = browser.script(
        "return ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type))"
        ".reduce((sum, entry) => sum + entry.transferSize, 0)"
    )
    assert 10_000 < total < 100_000
    files = {path.name: len(gzip.compress(path.read_bytes(), 5)) for path in STATIC.iterdir()}
    assert sum(files.values()) < 30_000
    # Each module is announced in the page, so that none is found only once another has been read.
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert [name for name in files if name.endswith(".js") and f'"{name}"' not in page] == []


def test_media(browser: Browser, site: str) -> None:
    """Dark is dark, paper is light and has no controls, and less motion is no motion."""
    browser.emulate(prefers_color_scheme="light")
    browser.open(site)
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    light = browser.script(ground)
    browser.emulate(prefers_color_scheme="dark")
    assert browser.script(ground) != light
    browser.emulate("print", prefers_color_scheme="dark")
    assert browser.script(ground) == "rgb(255, 255, 255)"
    assert not any(control.is_displayed() for control in browser.all("button, input, select, #windows"))
    assert browser.one("#ranking table").is_displayed()
    moves = (
        "document.getElementById('waiting').hidden = false;"
        "return getComputedStyle(document.querySelector('.skeleton i')).animationName"
    )
    browser.emulate(prefers_reduced_motion="reduce")
    assert browser.script(moves) == "none"
    browser.emulate(prefers_reduced_motion="no-preference")
    assert browser.script(moves) == "breathe"
