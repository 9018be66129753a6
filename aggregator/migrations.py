"""Creating, upgrading and removing schema ``usage``, with Alembic."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from aggregator import capture
from aggregator.db import Connection, connect, transaction
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings
from alembic import command


class SchemaError(UsageError):
    """Schema usage is not what this version of aggregator needs."""


def script_folder() -> Path:
    """Return the folder of migrations: the checkout's, else the one inside the installed package.

    An editable install leaves a stale copy in the package, so the checkout wins.
    """
    package = Path(__file__).parent
    checkout = package.parent / "alembic"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "_alembic"


def _config(buffer: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=buffer) if buffer is not None else Config()
    config.set_main_option("script_location", str(script_folder()).replace("%", "%%"))
    return config


def head() -> str:
    """Return the newest revision that this version of aggregator knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(connection: Connection) -> str | None:
    """Return the database's revision, or None if schema usage is not there.

    Raises SchemaError for a schema of that name that is not ours.
    """
    with transaction(connection, read_only=True):
        found = connection.execute(
            "select exists (select from pg_namespace where nspname = 'usage'), to_regclass('usage.alembic_version') is not null"
        ).fetchone()
        assert found is not None
        if not found[0]:
            return None
        if found[1]:
            row = connection.execute("select max(version_num) from usage.alembic_version").fetchone()
            assert row is not None
            if row[0] is not None:
                return str(row[0])
        empty = connection.execute(
            "select not exists (select from pg_class where relnamespace = 'usage'::regnamespace"
            " and relname not like 'alembic_version%')"
            " and not exists (select from pg_proc where pronamespace = 'usage'::regnamespace)"
        ).fetchone()
        assert empty is not None
        if empty[0]:
            return None
    raise SchemaError(
        "a schema named usage is there that is not aggregator's: rename or drop it, or use another database"
    )


def require_current(connection: Connection) -> None:
    """Raise SchemaError, naming the command to run, unless the database is at this version's revision."""
    revision = current(connection)
    if revision == head():
        return
    if revision is None:
        raise SchemaError("schema usage is not there: run aggregator migrate")
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision in known:
        raise SchemaError(
            f"the database is at revision {revision}, behind this version ({head()}): run aggregator migrate"
        )
    raise SchemaError(
        f"the database is at revision {revision}, ahead of this version ({head()}): upgrade aggregator (pip install -U usage-aggregator)"
    )


def upgrade(settings: Settings) -> tuple[str | None, str]:
    """Bring the database to this version's revision; return the revisions before and after."""
    with connect(settings, name="aggregator migrate") as connection:
        before = current(connection)
        if before is not None and before != head():
            _require_known(before)
        encoding = connection.execute("show server_encoding").fetchone()
        if encoding != ("UTF8",):
            raise SchemaError(f"the database's encoding is {encoding and encoding[0]}; aggregator needs UTF8")
        may = connection.execute("select has_database_privilege(current_database(), 'CREATE')").fetchone()
        if before is None and may != (True,):
            raise SchemaError(
                "the role may not create a schema in this database: GRANT CREATE ON DATABASE … TO it, or migrate as the owner"
            )
        connection.execute("create schema if not exists usage")
    _run(settings, command.upgrade, "head")
    with connect(settings, name="aggregator migrate") as connection:
        capture.renew_functions(connection, settings)
        capture.restore_grants(connection)
    return before, head()


def downgrade(settings: Settings, *, discard_sealed: bool = False) -> str | None:
    """Remove schema usage and the triggers on the source; return the revision it was at.

    Raises AggregatorError while there is sealed history, unless ``discard_sealed``.
    """
    with connect(settings, name="aggregator migrate") as connection:
        before = current(connection)
        if before is None:
            return None
        _require_known(before)
        if before == head():
            capture.detach(connection, settings, discard_sealed=discard_sealed)
    _run(settings, command.downgrade, "base")
    with connect(settings, name="aggregator migrate") as connection, connection.transaction():
        connection.execute("drop table usage.alembic_version")
        connection.execute("drop schema usage")
    return before


def upgrade_to(revision: str, settings: Settings) -> None:
    """Create schema usage as of an earlier revision. For tests of upgrades."""
    with connect(settings, name="aggregator migrate") as connection:
        connection.execute("create schema if not exists usage")
    _run(settings, command.upgrade, revision)


def downgrade_to(revision: str, settings: Settings) -> None:
    """Go back to an earlier revision: data is kept as far as that revision knows it. For tests of upgrades."""
    _run(settings, command.downgrade, revision)


def offline_sql(*, down: bool = False) -> str:
    """Return the SQL of an upgrade from nothing to head (or of the way back)."""
    buffer = io.StringIO()
    config = _config(buffer)
    if down:
        command.downgrade(config, "head:base", sql=True)
        return buffer.getvalue() + "\nDROP TABLE IF EXISTS usage.alembic_version;\nDROP SCHEMA usage;\n"
    command.upgrade(config, "head", sql=True)
    return "CREATE SCHEMA usage;\n\n" + buffer.getvalue()


def _require_known(revision: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision not in known:
        raise SchemaError(
            f"the database is at revision {revision}, ahead of this version ({head()}):"
            " upgrade aggregator (pip install -U usage-aggregator)"
        )


def _run(settings: Settings, move: Callable[[Config, str], None], target: str) -> None:
    # Each revision is a transaction of its own, so a next try goes on from where the last one came.
    capture.with_lock_retries(settings, lambda: _try(settings, move, target), "schema usage")


def _try(settings: Settings, move: Callable[[Config, str], None], target: str) -> None:
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(settings.conninfo, application_name="aggregator migrate"),
        poolclass=sa.pool.NullPool,
    )
    config = _config()
    try:
        with engine.connect() as connection:
            config.attributes["lock_timeout"] = int(settings.lock_timeout * 1000)
            config.attributes["connection"] = connection
            move(config, target)
            connection.commit()
    except sa.exc.DBAPIError as exc:
        if isinstance(exc.orig, psycopg.Error):
            raise exc.orig from exc
        raise AggregatorError(str(exc.orig)) from exc
