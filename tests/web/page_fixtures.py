"""A headless Chromium, and a database and servers that the tests of the page share: what only reads may share them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator

import psycopg
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.harness import Database
from tests.web.conftest import EDGES, SECRET, serving
from tests.web.page_browser import Browser
from tests.web.page_data import fill

_numbers = itertools.count()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for a worker's tests; each page is opened in a state that ``Browser.reset`` made."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(
            "the admin page is not tested: no Chromium (apt-get install --no-install-recommends chromium chromium-driver)"
        )
    options = ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "lang=en-GB"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    yield Browser(opened)
    opened.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The browser, as if it had just been started: 1280 by 900, light."""
    chromium.reset()
    return chromium


@pytest.fixture(scope="session")
def page_db(server: str, template: str) -> Iterator[Database]:
    """75 days of events of all kinds, among them all that a page might trip over; half of them refreshed."""
    name = f"aggregator_page_{os.getpid()}_{next(_numbers)}"
    _administer(server, f"create database {name} template {template}")
    db = Database(server, name, "UTC", {})
    db.execute(EDGES)
    db.attach()
    fill(db)
    yield db
    db.close()
    _administer(server, f"drop database if exists {name} with (force)")


@pytest.fixture(scope="session")
def site(page_db: Database) -> Iterator[str]:
    """The address of the page on ``page_db``, where no token is asked for."""
    with serving(page_db.dsn, "--insecure-local") as running:
        yield f"http://127.0.0.1:{running.port}/admin/usage/"


@pytest.fixture(scope="session")
def guarded_site(page_db: Database) -> Iterator[str]:
    """The address of the page on ``page_db``, where tokens are checked."""
    with serving(page_db.dsn, AGGREGATOR_HTTP_JWT_SECRET=SECRET) as running:
        yield f"http://127.0.0.1:{running.port}/admin/usage/"


def _administer(server: str, statement: str) -> None:
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(statement.encode())
