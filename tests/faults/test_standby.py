"""A hot standby: reads are exact there, and whatever writes says in one line where to go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator import embedded
from tests.harness import Database, create_with_source

ROOT = Path(__file__).resolve().parents[2]

WRITES = [
    ["migrate", "--down"], ["attach"], ["detach"], ["refresh"], ["verify"], ["verify", "--repair"], ["rebuild"],
    ["purge", "--keep", "30d"], ["seal", "--until", "2026-01-01"], ["metric", "remove", "tts"], ["schedule", "--once"],
]  # fmt: skip


class Standby:
    """A copy of a server that follows it, in the server's own folder, on another port."""

    def __init__(self, primary: embedded.Server) -> None:
        self.primary = primary
        self.data = primary.folder / "standby"
        primary.run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast",
                    "-h", str(primary.folder), "-U", "postgres")  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as conf:
            # The delay: on a slow machine our checks hold up the replay for more than its 30 s, and would then be cancelled.
            conf.write("port = 5433\nhot_standby = on\nmax_standby_streaming_delay = -1\n")
        self._run("start")

    def _run(self, action: str) -> None:
        self.primary.run("pg_ctl", "-D", str(self.data), "-l", str(self.primary.folder / "standby.log"), "-w", action)

    def promote(self) -> None:
        """Make it a primary."""
        self._run("promote")

    def dsn(self, database: str) -> str:
        """Return its connection string."""
        return f"{self.primary.dsn(database)} port=5433"

    def stop(self) -> None:
        """Stop it."""
        self.primary.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")


@pytest.fixture
def pair() -> Iterator[tuple[Database, Standby]]:
    """A primary with a refreshed database, late changes and a tail, and its standby."""
    bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
    if bin_dir and not (Path(bin_dir) / "pg_basebackup").exists():
        pytest.skip("this server has no pg_basebackup, which a standby is made by")
    with embedded.temporary_server(
        Path(bin_dir) if bin_dir else None, {"fsync": "off", "shared_buffers": "'32MB'", "wal_level": "replica"}
    ) as server:
        create_with_source(server.dsn(), "app")
        db = Database(server.dsn().replace(" dbname=postgres", ""), "app", "UTC", {})
        db.attach()
        for day in range(1, 29):
            db.insert(f"2026-02-{day:02d} 12:00+00", "ai", day % 3, '{"tokens_in": 1.25, "job_type": "chat"}')
        db.refresh()
        standby = Standby(server)
        try:
            yield db, standby
        finally:
            db.close()
            standby.stop()


def caught_up(db: Database, standby: Standby) -> Database:
    """Await that the standby has replayed all, and return its database."""
    end = db.scalar("select pg_current_wal_lsn()::text")
    copy = Database(standby.primary.dsn().replace(" dbname=postgres", " port=5433"), "app", "UTC", {})
    while not copy.scalar("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (end,)):
        pass
    return copy


def test_reads_are_exact_and_writes_say_where_to_go(pair: tuple[Database, Standby]) -> None:
    """With late changes, a tail and a late delete not yet refreshed; after a promotion everything goes on."""
    db, standby = pair
    db.insert("2026-02-03 13:00+00", "tts", 1, '{"characters": 5}')
    db.insert("now", "tts", 1, '{"characters": 5}')
    db.execute("delete from public.resource_usage_log where created_at < '2026-02-02'")
    copy = caught_up(db, standby)
    try:
        copy.compare()
        environment = {"PATH": os.environ["PATH"], "AGGREGATOR_DATABASE_URL": standby.dsn("app"), "NO_COLOR": "1"}
        for command in WRITES:
            result = subprocess.run([sys.executable, "-m", "aggregator", *command], cwd=ROOT, env=environment,
                                    capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
            assert result.returncode == 1, command
            assert "the server is read-only (a standby?): connect to the primary" in result.stderr, (
                command,
                result.stderr,
            )
            assert "Traceback" not in result.stderr
        show = subprocess.run([sys.executable, "-m", "aggregator", "show", "--days", "365"], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert show.returncode == 0, show.stderr
        standby.promote()
        copy.insert("2026-02-04 13:00+00", "tts", 1, '{"characters": 7}')
        copy.compare()
        copy.refresh()
        copy.compare()
        assert copy.verify().differences == 0
    finally:
        copy.close()
