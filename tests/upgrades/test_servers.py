"""A server of another major version, locale or collation under the same rollups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aggregator import embedded, seal
from tests.harness import Database
from tests.upgrades.conftest import DEBIAN_15, SETTINGS, app_of, change, create_app, fill, settled

needs_15 = pytest.mark.skipif(not (DEBIAN_15 / "postgres").exists(), reason="needs Debian's postgresql-15")


@pytest.fixture
def old() -> Iterator[embedded.Server]:
    """A server of version 15."""
    with embedded.temporary_server(DEBIAN_15, SETTINGS) as server:
        yield server


@pytest.fixture
def new() -> Iterator[embedded.Server]:
    """An empty server of version 18."""
    with embedded.temporary_server(None, SETTINGS) as server:
        yield server


def prepared(old: embedded.Server) -> Database:
    """A database with hours, a seal, late changes and a tail."""
    db = create_app(old, "Europe/Oslo")
    fill(db)
    db.attach(hourly=True)
    db.refresh()
    seal.seal(db.own, db.settings, db.scalar("select (now() - interval '50 days')::date::text"))
    change(db)
    db.compare()
    return db


@needs_15
def test_pg_upgrade(old: embedded.Server, new: embedded.Server) -> None:
    """From 15 to 18: exact at once, and trusted after attach and a repair where the triggers were made anew; capture goes on."""
    db = prepared(old)
    assert db.scalar("show server_version_num") < "160000"
    db.close()
    old.stop()
    new.stop()
    old.folder.chmod(0o755)
    # Version 18 makes checksums by default, and both have to be alike.
    old.run("pg_checksums", "--enable", "--no-sync", "-D", str(old.data))
    new.run("pg_upgrade", "-b", str(old.bin), "-B", str(new.bin), "-d", str(old.data), "-D", str(new.data), "-U", "postgres",
            "-s", str(new.folder), "--no-sync", timeout=240)  # fmt: skip
    new.start()
    db = app_of(new.dsn(), "Europe/Oslo")
    assert db.scalar("show server_version_num") >= "180000"
    db.compare()
    change(db)
    db.compare()
    db.refresh()
    db.compare()
    if db.scalar("select usage.doubt()") is not None:
        db.attach()
        assert db.verify(repair=True).trusted
    settled(db)
    db.close()


@needs_15
def test_dump_and_restore_from_15_to_18(old: embedded.Server, new: embedded.Server) -> None:
    """With version 18's pg_dump: exact at once, read raw, and trusted after attach and a repair."""
    db = prepared(old)
    file = new.folder / "dump"
    old.folder.chmod(0o755)
    new.run("pg_dump", "-Fc", "-f", str(file), "-d", db.dsn, timeout=240)
    new.run("pg_restore", "--create", "--exit-on-error", "-d", new.dsn(), str(file), timeout=240)
    db.close()
    db = app_of(new.dsn(), "Europe/Oslo")
    assert db.scalar("select usage.doubt()") is not None
    db.compare()
    change(db)
    db.compare()
    db.attach()
    assert db.verify(repair=True).trusted
    settled(db)
    db.close()


UNLIKE_C = """
select c.oid::regclass::text, a.attname::text, coalesce(l.collname, '-')::text
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  join pg_type t on t.oid = a.atttypid
  left join pg_collation l on l.oid = a.attcollation
 where c.relnamespace = 'usage'::regnamespace
   -- a handful of names of our own, one page each
   and c.relname not in ('alembic_version', 'alembic_version_pkc', 'job', 'job_pkey', 'view_refresh', 'view_refresh_pkey')
   and c.relkind in ('r', 'm', 'i', 'c') and t.typcollation <> 0 and coalesce(l.collname, '-') not in ('C', 'ucs_basic')
   and (c.relkind = 'i' or c.relname = 'key_columns'
        or exists (select from pg_index i where i.indrelid = c.oid and a.attnum = any (i.indkey::smallint[])))
 order by 1, 2
"""


def test_no_index_of_ours_has_a_collation_that_a_server_may_change(db: Database) -> None:
    """Text that is indexed, unique, or part of a composite type that is: collate "C", whose order no library makes."""
    db.attach(hourly=True)
    assert db.execute(UNLIKE_C) == []


LOCALES = {
    "icu, Danish": "locale_provider icu icu_locale 'da-DK' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
    "icu, numbers by value, capitals first": "locale_provider icu icu_locale 'und-u-kn-kf-upper' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
    "libc C.UTF-8": "locale_provider libc lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
}


@needs_15
@pytest.mark.parametrize("name", LOCALES)
def test_another_locale_gives_the_same_answers(old: embedded.Server, name: str) -> None:
    """By another locale's order the same rows come in the same order, and a reindexed or new default collation changes nothing."""
    db = create_app(old, options=LOCALES[name])
    fill(db)
    db.attach(hourly=True)
    db.refresh()
    change(db)
    settled(db)
    assert db.execute(UNLIKE_C) == []
    # What a new ICU or glibc leads to: a note in the catalog of every database, and REINDEX.
    db.execute("update pg_database set datcollversion = 'of before' where datname = current_database()")
    db.close()
    db = app_of(old.dsn())
    settled(db)
    db.close()
