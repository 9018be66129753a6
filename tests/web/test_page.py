"""The admin page in a browser: each of its states, its address, and the keyboard."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.harness import COLLECTIONS, Database
from tests.web.conftest import STRANGER, serving, token
from tests.web.page_browser import Browser
from tests.web.page_data import HTML_TITLE

pytest_plugins = ["tests.web.page_fixtures"]

ESCAPE, ENTER, TAB = "\ue00c", "\ue007", "\ue004"
LEFT, HOME, DOWN = "\ue012", "\ue011", "\ue015"


@pytest.fixture
def small_site(db: Database) -> Any:
    """A database of its own, with one event, and the page's address."""
    db.insert("now", "cas", 0, '{"size_bytes": 1024}')
    with serving(db.dsn, "--insecure-local") as running:
        yield db, f"http://127.0.0.1:{running.port}/admin/usage/"


def test_a_token_in_the_address(browser: Browser, guarded_site: str) -> None:
    """It is taken out of the address at once, kept in this tab's storage and nowhere else, and can be forgotten."""
    browser.open(f"{guarded_site}?days=7#token={token()}")
    assert browser.driver.current_url == f"{guarded_site}?days=7"
    assert browser.script("return [localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    browser.driver.refresh()
    browser.await_panel("numbers")
    browser.one("#forget").click()
    browser.await_panel("token-panel")
    assert browser.script("return sessionStorage.length") == 0
    assert browser.all("#numbers .card, #numbers table") == []


def test_asks_for_a_token_once(browser: Browser, guarded_site: str) -> None:
    """Without a token it asks for one; one that is refused is forgotten, and it asks again and says why."""
    browser.open(guarded_site, "token-panel")
    assert browser.script("return document.activeElement.id") == "token"
    browser.one("#token").send_keys(token(exp=int(time.time()) - 60), ENTER)
    browser.wait(lambda: "not accepted" in browser.text("#token-text"))
    assert browser.script("return sessionStorage.length") == 0
    browser.one("#token").send_keys(token(), ENTER)
    browser.await_panel("numbers")
    browser.one("[data-days='7']").click()
    browser.wait(lambda: "7 days" in browser.text("#announce"))
    browser.await_panel("numbers")


def test_no_access(browser: Browser, guarded_site: str) -> None:
    """Who is no admin is told so, sees no number, and may give another token."""
    browser.open(f"{guarded_site}#token={token(sub=str(STRANGER))}", "message")
    assert browser.text("#message-title") == "No access"
    assert browser.all("#numbers .card") == []
    browser.one("#message-actions .quiet").click()
    browser.await_panel("token-panel")


def test_loading_error_and_retry(browser: Browser, small_site: tuple[Database, str]) -> None:
    """While the server reads it says so; a failure is shown without its inside; trying again brings the numbers."""
    db, site = small_site
    locker = db.connect(autocommit=False)
    locker.execute("lock table public.resource_usage_log in access exclusive mode")
    browser.driver.get(site)
    browser.wait(lambda: browser.one("#waiting").is_displayed() and browser.text("#announce") == "Loading")
    locker.rollback()
    browser.await_panel("numbers")

    db.execute("alter function usage.totals rename to hidden")
    browser.one("#reload").click()
    browser.await_panel("message")
    assert browser.text("#message-title") == "The numbers could not be read"
    assert "usage.totals" not in browser.text("body")
    assert browser.script("return document.activeElement.id") == "message-title"
    db.execute("alter function usage.hidden rename to totals")
    browser.one("#message-actions button").click()
    browser.await_panel("numbers")
    assert browser.text(".card .value") == "1.00 KiB"


def test_the_server_is_away_or_busy(browser: Browser, db: Database) -> None:
    """A server that cannot be reached, and one that sends us away with 503, are told apart."""
    with serving(db.dsn, "--insecure-local") as running:
        browser.open(f"http://127.0.0.1:{running.port}/admin/usage/", "message")
    browser.one("#reload").click()
    browser.wait(lambda: browser.text("#message-text") == "The server could not be reached.")
    with serving(db.dsn, "--insecure-local", AGGREGATOR_HTTP_MAX_READS="1", AGGREGATOR_HTTP_MAX_WAITING="0") as running:
        browser.open(f"http://127.0.0.1:{running.port}/admin/usage/", "message")
        assert browser.text("#message-title") == "The server is busy"


def test_nothing_to_show(browser: Browser, site: str, small_site: tuple[Database, str]) -> None:
    """No usage at all, or none of one collection: both say so, and where there might be some."""
    db, empty = small_site
    db.execute("delete from public.resource_usage_log")
    browser.open(empty, "message")
    assert browser.text("#message-title") == "No usage in the last 30 days"
    assert "Exact as of" in browser.text("#freshness")
    browser.open(f"{site}?days=7&collection_id=11111111-1111-1111-1111-111111111111", "message")
    assert "this collection" in browser.text("#message-text")
    assert [link.text for link in browser.all("#message-actions a")] == ["All collections", "The last 365 days"]
    browser.one("#message-actions a").click()
    browser.await_panel("numbers")
    assert browser.query() == "?days=7"


def test_an_address_that_is_refused(browser: Browser, site: str) -> None:
    """What the server says of the address is shown, with a way out."""
    browser.open(f"{site}?days=soon", "message")
    assert browser.text("#message-text") == "days must be an integer"
    browser.one("#message-actions a").click()
    browser.await_panel("numbers")
    assert browser.query() == "?days=30"


def test_freshness_in_words(browser: Browser, site: str, small_site: tuple[Database, str]) -> None:
    """How far the numbers can be believed: before the first refresh, with late changes, and where they are not exact."""
    db, address = small_site
    browser.open(address)
    assert "rollups not built yet" in browser.text("#freshness")
    db.refresh()
    db.insert("yesterday", "cas", 0, '{"size_bytes": 1}')
    browser.one("#reload").click()
    browser.wait(lambda: "1 late change included" in browser.text("#freshness"))
    assert browser.text("#freshness").startswith("Exact as of ")
    browser.open_bare(site)
    words = browser.module(
        "freshness",
        "m.freshness(arguments[0]).map((part) => part.textContent)",
        {"as_of": "2026-11-25T14:03:00+00:00", "frontier": "2026-11-25T13:59:00+00:00", "exact": False,
         "reasons": ["the window cuts a sealed day"], "pending_changes": 12},
    )  # fmt: skip
    assert words[0].startswith("Not exact as of ")
    assert words[0].endswith("; rollups 4 minutes old; 12 late changes included")
    assert words[1:] == ["the window cuts a sealed day"]


def test_the_address_holds_the_view(browser: Browser, site: str) -> None:
    """Windows, collections, ranks and searches go into the address; reload, back and forward bring them back."""
    browser.open(site)
    browser.one("[data-days='90']").click()
    browser.wait(lambda: browser.text("#announce") == "Showing the last 90 days")
    assert browser.query() == "?days=90"
    days = browser.one("#days")
    days.clear()
    days.send_keys("45", ENTER)
    browser.wait(lambda: browser.text("#announce") == "Showing the last 45 days")
    browser.one("#search").send_keys("collection 1")
    browser.script("document.getElementById('rank').value = 'cas'; document.getElementById('rank').onchange()")
    assert browser.query() == "?days=45&rank=cas&q=collection+1"
    browser.driver.refresh()
    browser.await_panel("numbers")
    assert len(browser.table("#ranking")) == 1
    browser.one("#ranking a").click()
    browser.wait(lambda: browser.query() == f"?days=45&collection_id={COLLECTIONS[0]}")
    browser.await_panel("numbers")
    browser.wait(lambda: browser.text("#scope") == "All collections\u203aCollection 1· the last 45 days")
    assert not browser.one("#collections").is_displayed()
    browser.driver.back()
    browser.wait(lambda: browser.one("#collections").is_displayed())
    assert browser.query() == "?days=45&rank=cas&q=collection+1"
    assert browser.script("return document.getElementById('rank').value") == "cas"
    browser.driver.back()
    browser.wait(lambda: browser.text("#announce") == "Showing the last 90 days")
    browser.driver.forward()
    browser.wait(lambda: browser.text("#announce") == "Showing the last 45 days")


def test_a_window_between_two_instants(browser: Browser, site: str, page_db: Database) -> None:
    """since and until in the address are asked for as they are; a window of whole days has no partial day."""
    since, until = page_db.execute(
        """select to_char(date_trunc('day', now()) - interval '9 days', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                  to_char(date_trunc('day', now()) - interval '2 days', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
    )[0]
    browser.open(f"{site}?since={since}&until={until}")
    browser.one(".chart summary").click()
    browser.wait(lambda: browser.table(".chart:nth-child(1)"))
    rows = browser.table(".chart:nth-child(1)")
    assert len(rows) == 7
    assert not any("partial" in row[0][0] for row in rows)
    assert browser.text("#scope") == f"All collections, {since} to {until}"
    assert "the window before" in browser.text("#compared")


def test_drill_down_by_keyboard(browser: Browser, site: str) -> None:
    """Tab to a collection, Enter: its view, with the focus at the top; and back."""
    browser.open(site)
    for _ in range(60):
        browser.driver.switch_to.active_element.send_keys(TAB)
        if browser.script("return document.activeElement.closest('#ranking') !== null"):
            break
    target = browser.script("return document.activeElement.search")
    browser.driver.switch_to.active_element.send_keys(ENTER)
    browser.wait(lambda: browser.query() == target)
    browser.wait(lambda: browser.script("return document.activeElement.id") == "heading")
    browser.driver.back()
    browser.wait(lambda: browser.query() == "" and browser.one("#collections").is_displayed())


def test_charts_by_keyboard(browser: Browser, site: str) -> None:
    """Arrow keys move from day to day, in all charts together, and say the day and its value."""
    browser.open(site)
    plot = browser.one(".plot")
    browser.script("arguments[0].focus()", plot)
    last = plot.get_attribute("aria-valuetext")
    plot.send_keys(LEFT)
    assert plot.get_attribute("aria-valuenow") == "30"
    assert plot.get_attribute("aria-valuetext") != last
    plot.send_keys(HOME)
    values = [other.get_attribute("aria-valuenow") for other in browser.all(".plot")]
    assert set(values) == {"1"}
    assert "partial day: " in str(plot.get_attribute("aria-valuetext"))
    assert "in the window before" in str(plot.get_attribute("aria-valuetext"))


@pytest.mark.parametrize("start", ["", f"&collection_id={COLLECTIONS[4]}"])
def test_collection_picker(browser: Browser, site: str, start: str) -> None:
    """Type a part of a title, arrow down, Enter; Escape closes; also where the page was opened on one collection."""
    browser.open(f"{site}?days=30{start}")
    picker = browser.one("#picker")
    picker.send_keys("quoted")
    browser.wait(lambda: [option.text for option in browser.all("#picker-list li")] == [HTML_TITLE])
    picker.send_keys(ESCAPE)
    assert picker.get_attribute("aria-expanded") == "false"
    picker.send_keys(DOWN)
    browser.wait(lambda: picker.get_attribute("aria-activedescendant") == "picker-0")
    picker.send_keys(ENTER)
    browser.wait(lambda: browser.query() == f"?days=30&collection_id={COLLECTIONS[1]}")
    browser.await_panel("numbers")
    browser.wait(lambda: HTML_TITLE in browser.text("#scope"))


def test_ten_thousand_collections(browser: Browser, db: Database) -> None:
    """Few rows are in the page, and the search finds any collection by its title or id."""
    db.execute("insert into public.nodes select gen_random_uuid(), 'Room ' || n from generate_series(1, 10000) n")
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        """ select id, 'cas', '{"size_bytes": 7}', now() - interval '1 hour' from public.nodes"""
    )
    with serving(db.dsn, "--insecure-local") as running:
        browser.open(f"http://127.0.0.1:{running.port}/admin/usage/")
        assert len(browser.table("#ranking")) == 25
        assert browser.text("#ranking .note") == "10,005 collections"
        browser.one("#ranking .more").click()
        assert len(browser.table("#ranking")) == 125
        assert browser.script("return document.activeElement.closest('tr').rowIndex") == 26
        browser.one("#search").send_keys("room 9876")
        assert [row[1][0] for row in browser.table("#ranking")] == ["Room 9876"]
        wanted = db.scalar("select id::text from public.nodes where title = 'Room 77'")
        browser.one("#search").clear()
        browser.one("#search").send_keys(wanted)
        assert [row[1][0] for row in browser.table("#ranking")] == ["Room 77"]
