"""A new tzdata that moves the start of past days: Cairo, whose summer time of 2023 was decreed eight weeks before it began."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import psycopg
import pytest

from aggregator import embedded, rebuild, seal, verify
from aggregator.status import read_status
from tests.harness import COLLECTIONS, Database, Mismatch, compare, snapshot
from tests.upgrades.conftest import SETTINGS, app_of, create_app

ZONE = "Africa/Cairo"
WINDOWS = [
    ("-infinity", None, None),
    ("2023-06-01 00:00+02", None, None),  # when June began by the old rules, and by the new ones
    ("2023-06-01 00:00+03", None, None),
    ("2023-06-10 00:00+03", "2023-07-10 00:00+03", None),
    ("2023-01-01 12:00+02", "2023-06-20 23:30+03", None),
    ("2023-04-10 00:00+02", None, COLLECTIONS[1]),
]


class Rules:
    """The server's file of the zone: before, as if there were no summer time, or after."""

    def __init__(self, server: embedded.Server, after: bytes) -> None:
        self.server = server
        self._zones = server.bin.parent / "share" / "timezone"
        self._after = after

    def before(self) -> None:
        shutil.copyfile(self._zones / "Africa" / "Tripoli", self._zones / ZONE)

    def after(self) -> None:
        """New sessions have the new rules, those that are open keep the old ones: a package is upgraded so."""
        (self._zones / ZONE).write_bytes(self._after)


@pytest.fixture(scope="module")
def zoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """A server with a time zone folder of its own."""
    package = embedded.embedded_bin().parents[1]
    folder = tmp_path_factory.mktemp("zones")
    folder.chmod(0o755)
    shutil.copytree(package, folder / package.name, symlinks=True)
    if package.with_name(f"{package.name}.libs").is_dir():
        shutil.copytree(package.with_name(f"{package.name}.libs"), folder / f"{package.name}.libs", symlinks=True)
    with embedded.temporary_server(folder / package.name / "pginstall" / "bin", SETTINGS) as server:
        yield server


@pytest.fixture
def rules(zoned: embedded.Server) -> Rules:
    """The rules of before."""
    rules = Rules(zoned, (embedded.embedded_bin().parent / "share" / "timezone" / ZONE).read_bytes())
    rules.before()
    return rules


@pytest.fixture
def db(rules: Rules) -> Iterator[Database]:
    """Folded by the rules of before: an event each half hour of the nights of half a year, by hours too."""
    db = create_app(rules.server, ZONE)
    db.attach()
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select ('00000000-0000-0000-0000-00000000000' || 1 + n %% 3)::uuid, 'tts', jsonb_build_object('characters', n),"
        " timestamptz '2023-01-01 18:10+00' + make_interval(days => n / 12, mins => 30 * (n %% 12)) from generate_series(0, 2400) n".replace(
            "%%", "%"
        )
    )
    db.refresh()
    db.insert("2023-06-05 12:00+00", "tts", 1, '{"characters": 5}')
    exact(db)
    assert db.scalar("select count(*) from usage.rolled_day") > 150
    yield db
    db.close()
    with psycopg.connect(rules.server.dsn(), autocommit=True) as connection:
        connection.execute("drop database app with (force)")


def exact(db: Database) -> None:
    with snapshot(db.connection):
        compare(db.connection, ZONE, WINDOWS)


def reopened(db: Database) -> Database:
    """The same database in new sessions, which know the new rules."""
    return app_of(db.dsn.replace("dbname=app", ""), ZONE)


def test_it_is_noticed_by_every_read_and_mended_by_the_next_refresh(rules: Rules, db: Database) -> None:
    """By sessions with the old rules and with the new ones the answers are those of their own raw query, all the time."""
    rules.after()
    new = reopened(db)
    exact(db)
    assert db.scalar("select usage.doubt()") is None
    exact(new)
    assert "2023-04-28 no longer begins or ends" in new.scalar("select usage.doubt()")
    assert any("time zone data has changed" in str(problem) for problem in read_status(new.own, new.settings).problems)
    new.insert("2023-06-06 22:30+00", "tts", 1, '{"characters": 5}')
    assert any("days began elsewhere" in note for note in new.refresh().notes)
    exact(new)
    assert new.scalar("select usage.doubt()") is None
    assert new.verify().differences == 0
    # A session of before, which a pool may keep for weeks.
    assert "time zone data has changed" in db.scalar("select usage.doubt()")
    exact(db)
    new.close()


def test_a_writer_of_before_and_a_refresh_of_before(rules: Rules, db: Database) -> None:
    """A refresh in a session that has the old rules turns trust off, rather than let those with the new ones believe it."""
    rules.after()
    new = reopened(db)
    assert new.refresh().status == "done"
    db.insert("2023-06-07 22:30+00", "tts", 1, '{"characters": 5}')
    assert any("days began elsewhere" in note for note in db.refresh().notes)
    exact(db)
    exact(new)
    assert new.scalar("select usage.doubt()") is not None
    assert new.refresh().status == "done"
    exact(new)
    assert new.scalar("select usage.doubt()") is None
    new.close()


def test_a_repair_that_stops_half_way(rules: Rules, db: Database) -> None:
    """A rebuild that is interrupted leaves answers exact, and the next one ends it; verify alone says that days differ."""
    rules.after()
    new = reopened(db)
    assert new.verify().differences > 0
    exact(new)
    stop = iter([None, None, None, ZeroDivisionError])

    def check() -> None:
        if next(stop, None) is not None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rebuild.rebuild(new.own, new.settings.model_copy(update={"step_events": 50}), check=check)
    exact(new)
    assert new.scalar("select usage.doubt()") is not None
    assert rebuild.rebuild(new.own, new.settings).trusted
    exact(new)
    new.close()


def sealed(db: Database, day: str) -> int:
    """Seal and purge; return how many events there were."""
    db.refresh()
    events = int(db.scalar("select count(*) from public.resource_usage_log"))
    seal.seal(db.own, db.settings, day)
    db.execute("delete from public.resource_usage_log where created_at < (select sealed_until from usage.state)")
    return events


def test_sealed_days_that_stay_as_they_were(rules: Rules, db: Database) -> None:
    """What was sealed before the change is of no concern: the rest is repaired."""
    sealed(db, "2023-03-01")
    rules.after()
    new = reopened(db)
    new.refresh()
    assert new.scalar("select usage.doubt()") is None
    with snapshot(new.connection):
        compare(new.connection, ZONE, WINDOWS[1:4], live=False)
    assert new.scalar("select exact from usage.receipt('2023-02-01 00:00+02')")
    new.close()


@pytest.mark.parametrize("direction", ["earlier", "later"])
def test_sealed_days_that_moved_say_so(rules: Rules, db: Database, direction: str) -> None:
    """They count as they were added up, with exact = false; a seal that no day begins with any more is not repaired over."""
    if direction == "later":
        rules.after()
        db = reopened(db)
    events = sealed(db, "2023-06-01")
    rules.after() if direction == "earlier" else rules.before()
    new = reopened(db)
    for _ in range(2):
        for query in (
            "usage.by_collection('-infinity')",
            "usage.daily_series('-infinity')",
            "usage.daily_live",
            "usage.monthly_live",
        ):
            assert new.scalar(f"select sum(event_count) from {query}") == events, query
        is_exact, reasons = new.execute("select exact, reasons::text from usage.receipt('2023-05-05')")[0]
        assert not is_exact
        assert "2023-05-04, which is sealed, counts as it began and ended before" in reasons or "2023-05-05" in reasons
        result = new.refresh()
        assert any("is no day's first instant any more" in note for note in result.notes)
    with pytest.raises(verify.SealMovedError):
        new.verify(repair=True)
    with snapshot(new.connection):
        compare(new.connection, ZONE, [("2023-07-01 00:00+03", None, None)], live=False)
    new.close()
    db.close()


def test_the_first_read_of_a_session_pays(db: Database) -> None:
    """What a session checks it checks once: less than a millisecond then for half a year, and nothing to speak of afterwards."""
    session = db.connect()
    took = []
    for _ in range(30):
        started = time.perf_counter()
        session.execute(b"select usage.doubt()")
        took.append(time.perf_counter() - started)
    print(f"first {took[0] * 1e3:.2f} ms, then {min(took[1:]) * 1e3:.3f} ms")
    assert session.execute(b"select current_setting('usage.rolled_days')").fetchone() is not None


def test_the_comparison_would_have_failed(rules: Rules, db: Database) -> None:
    """Without what is kept of the days, reads by the new rules are wrong: what this is for."""
    db.execute("delete from usage.rolled_day")
    rules.after()
    new = reopened(db)
    with pytest.raises(Mismatch):
        exact(new)
    new.close()
