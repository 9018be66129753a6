"""The admin page in a browser: its numbers are the raw query's, with all their digits, and texts are shown as text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.harness import COLLECTIONS, ORACLE, Database
from tests.web.page_browser import Browser
from tests.web.page_data import BEYOND_DOUBLES, HTML_JOB, HTML_TITLE

pytest_plugins = ["tests.web.page_fixtures"]

UNITS = {"ai": "tokens", "whisper": "seconds", "tts": "characters", "cas": "bytes", "bandwidth": "bytes", "livekit": "minutes"}  # fmt: skip


def exact(value: float) -> str:
    """Write a number as the page does, with all digits."""
    if value == int(value):
        return f"{int(value):,}"
    whole, fraction = repr(value).split(".")
    return f"{int(whole):,}.{fraction}"


def oracle(db: Database, section: str, days: int = 30, *, before: bool = False, collection: str | None = None) -> Any:
    """Return the raw query's rows of the last days, or of as many before them."""
    query = ORACLE[section].replace("{source}", db.source).replace("{titles}", db.titles)
    since, until = db.execute(
        "select (now() - make_interval(days => %s))::text, (now() - make_interval(days => %s))::text",
        (days * (1 + before), days),
    )[0]
    parameters = {"since": since, "until": until if before else None, "collection": collection, "zone": db.zone,
                  "by": ["resource_type"], "grain": "none"}  # fmt: skip
    return db.execute(query, parameters)


@pytest.mark.parametrize("days", [30, 7])
@pytest.mark.parametrize("collection", [None, COLLECTIONS[0]])
def test_totals_equal_the_raw_query(
    browser: Browser, site: str, page_db: Database, days: int, collection: str | None
) -> None:
    """A card for each type: its exact total in its unit, its events, and the exact total of the window before."""
    browser.open(f"{site}?days={days}" + (f"&collection_id={collection}" if collection else ""))
    rows = {row[2]: row for row in oracle(page_db, "totals", days, collection=collection)}
    before = {row[2]: row for row in oracle(page_db, "totals", days, before=True, collection=collection)}
    cards = browser.script(
        "return [...document.querySelectorAll('.card')].map((card) => [card.querySelector('h3').textContent,"
        " card.querySelector('.value').title, card.querySelector('.change').title, card.textContent])"
    )
    wanted = sorted(rows.keys() | before.keys(), key=lambda kind: (kind is None, kind))
    assert [card[0] for card in cards] == ["no type" if kind is None else kind for kind in wanted]
    for kind, (_, value, change, words) in zip(wanted, cards, strict=True):
        count, total = rows[kind][5:7] if kind in rows else (0, 0)
        count_then, total_then = before[kind][5:7] if kind in before else (0, 0)
        if kind in UNITS:
            assert value == f"{exact(total)} {UNITS[kind]}"
            assert change == f"{exact(total_then)} {UNITS[kind]} in the {days} days before"
            assert f"{count:,} event" in words
        else:
            assert value == f"{count:,} event{'s' * (count != 1)}"
            assert change.startswith(f"{count_then:,} event")


@pytest.mark.parametrize("collection", [None, COLLECTIONS[0]])
def test_days_equal_the_raw_query(browser: Browser, site: str, page_db: Database, collection: str | None) -> None:
    """The table of each chart: every day of the window, zeros for those without events, days after now beside them."""
    browser.open(f"{site}?days=30" + (f"&collection_id={collection}" if collection else ""))
    daily = oracle(page_db, "daily", collection=collection)
    words = {
        "infinity": "after the year 9999",
        **{
            day: page_db.scalar("select to_char(%s::date, 'Dy, FMDD Mon YYYY')", (day,))
            for day in {row[0] for row in daily} - {"infinity"}
        },
    }
    titles = [heading.text for heading in browser.all(".chart h3")]
    for index, title in enumerate(titles, 1):
        chart = f".chart:nth-child({index})"
        browser.one(f"{chart} summary").click()
        browser.wait(partial(browser.table, chart))
        kind = None if title == "no type" else title
        rows = browser.table(chart)
        found = {row[0][0].removesuffix(" partial"): (row[2][0], row[1][1]) for row in rows if row[2][0] != "0"}
        assert found == {
            words[day]: (f"{count:,}", f"{exact(total)} {UNITS[kind]}" if kind in UNITS else f"{count:,} events")
            for day, of_kind, count, total in daily
            if of_kind == kind
        }
        marked = [row[0][0].endswith(" partial") for row in rows if "999" not in row[0][0]]
        assert marked == [True, *[False] * 29, True]
        beside = browser.all(f"{chart} > .note")
        assert [note.text for note in beside] == (
            ["Beside these, 2 events dated Tue, 1 Jan 2999 to after the year 9999"] if kind == "cas" else []
        )


def test_ranking_equals_the_raw_query(browser: Browser, site: str, page_db: Database) -> None:
    """Collections by events and by each type's value, largest first, each with all digits; never two units in one."""
    browser.open(site)
    rows = oracle(page_db, "by_collection")
    kinds = browser.script("return [...document.getElementById('rank').options].map((option) => option.value)")
    assert set(kinds) == {"", *UNITS}
    for kind in kinds:
        browser.script(
            "const rank = document.getElementById('rank'); rank.value = arguments[0]; rank.dispatchEvent(new Event('change'))",
            kind,
        )
        wanted: dict[Any, float] = {}
        for collection, _, of_kind, count, total, _ in rows:
            if kind in {"", of_kind}:
                wanted[collection] = wanted.get(collection, 0) + (total if kind else count)
        found = browser.table("#ranking")
        assert [row[3][1] for row in found] == [
            f"{exact(value)} {UNITS.get(kind, 'events')}" for value in sorted(wanted.values(), reverse=True)
        ]
        links = browser.script("return [...document.querySelectorAll('#ranking a')].map((a) => a.search)")
        ordered = sorted(wanted, key=lambda one: (-wanted[one], str(one)))
        assert [link.rpartition("collection_id=")[2] for link in links] == [str(one) for one in ordered if one]


def test_ai_equals_the_raw_query(browser: Browser, site: str, page_db: Database) -> None:
    """Job types, model levels and their combinations: sums of whole tokens, also where no double holds them."""
    browser.open(site)
    rows = oracle(page_db, "ai_drilldown")
    browser.one("#ai details summary").click()
    for selector, keys in ((".pair > :nth-child(1)", [2]), (".pair > :nth-child(2)", [3]), ("#ai details", [2, 3])):
        wanted: dict[tuple[str, ...], list[int]] = {}
        for row in rows:
            sums = wanted.setdefault(tuple(row[key] or "not given" for key in keys), [0, 0, 0])
            for index in range(3):
                sums[index] += int(row[4 + index])
        found = {
            tuple(cell[0] for cell in row[: len(keys)]): (row[-4][1], row[-2][1], row[-1][0])
            for row in browser.table(selector)
        }
        assert found == {
            key: (f"{sums[0]:,} tokens", f"{sums[1]:,} tokens", f"{sums[2]:,}") for key, sums in wanted.items()
        }
    assert f"{3 * BEYOND_DOUBLES:,} tokens" in {row[-4][1] for row in browser.table(".pair > :nth-child(1)")}


def test_texts_are_text(browser: Browser, site: str) -> None:
    """HTML in titles and job types is shown, not obeyed; long and right-to-left titles stay within their own lines."""
    browser.open(site)
    names = browser.script("return [...document.querySelectorAll('#ranking th bdi')].map((name) => name.textContent)")
    assert HTML_TITLE in names
    assert max(map(len, names)) <= 161
    assert HTML_JOB in browser.text("#ai-tables")
    assert browser.all("main img, main script, main b, main i.x") == []
    assert browser.script("return document.title") == "Usage, the last 30 days"
    assert browser.script("return document.documentElement.scrollWidth <= innerWidth")
    assert (
        browser.script("return Math.max(...[...document.querySelectorAll('#ranking tr')].map((r) => r.offsetHeight))")
        < 60
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"a":9007199254740993,"b":-12345678901234567890}', ["9,007,199,254,740,993", "-12,345,678,901,234,567,890"]),
        ('{"a":1e+18,"b":0.1234567890123456789}', ["1,000,000,000,000,000,000", "0.12345678901234568"]),
        (r'{"a":1234567890123456.5,"b":9007199254740991}', ["1,234,567,890,123,456.5", "9,007,199,254,740,991"]),
    ],
)
def test_no_digit_is_lost(browser: Browser, site: str, text: str, wanted: list[str]) -> None:
    """Integers of any size and doubles come through; digits within strings are left alone."""
    browser.open_bare(site)
    found = browser.module("numbers", "Object.values(m.parse(arguments[0])).map(m.exact)", text)
    assert found == wanted
    kept = browser.module("numbers", "m.parse(arguments[0])", r'["\"1234567890123456789\\", "a 99999999999999999 b"]')
    assert kept == ['"1234567890123456789\\', "a 99999999999999999 b"]


def test_quantities(browser: Browser, site: str) -> None:
    """Values in units that people read."""
    browser.open_bare(site)
    wanted = [
        (0, "bytes", "0 B"), (1536, "bytes", "1.50 KiB"), (1e18, "bytes", "888 PiB"), (-2048, "bytes", "\u22122.00 KiB"),
        (42.5, "seconds", "42.5 s"), (90, "seconds", "1 min 30 s"), (3599.7, "seconds", "1 h 00 min"), (6000, "minutes", "100 h"),
        (999, "tokens", "999 tokens"), (1234567, "tokens", "1.23 M tokens"), (1e18, "tokens", "1,000,000 T tokens"),
    ]  # fmt: skip
    found = browser.module("numbers", "arguments[0].map(([value, unit]) => m.words(value, unit))", wanted)
    assert found == [words for _, _, words in wanted]
