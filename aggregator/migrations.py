"""Creating, upgrading and removing schema ``usage``, with Alembic.

Alembic and SQLAlchemy are imported by what migrates: all commands ask for the revision, and would start half as fast.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import psycopg

from aggregator import capture, jobs
from aggregator import sql as sql_files
from aggregator.db import Connection, connect, set_local, transaction
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

SQL = sql_files.load("migrations")


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
    from alembic.config import Config

    config = Config(output_buffer=buffer) if buffer is not None else Config()
    config.set_main_option("script_location", str(script_folder()).replace("%", "%%"))
    return config


def revisions() -> list[str]:
    """Return the revisions that this version of aggregator knows, oldest first: their files are named after them."""
    return sorted(path.name.partition("_")[0] for path in (script_folder() / "versions").glob("[0-9]*_*.py"))


def head() -> str:
    """Return the newest revision that this version of aggregator knows."""
    return revisions()[-1]


def current(connection: Connection) -> str | None:
    """Return the database's revision, or None if schema usage is not there.

    Raises SchemaError for a schema of that name that is not ours.
    """
    with transaction(connection, read_only=True):
        found = connection.execute(
            "select exists (select from pg_namespace where nspname = 'usage'),"
            " to_regclass('usage.alembic_version') is not null and to_regclass('usage.frontier_seq') is not null"
        ).fetchone()
        assert found is not None
        if not found[0]:
            return None
        if found[1]:
            row = connection.execute("select max(version_num) from usage.alembic_version").fetchone()
            assert row is not None
            if row[0] is not None:
                return str(row[0])
        if connection.execute(SQL["is_empty"]).fetchone() == (True,):
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
    if revision in revisions():
        raise SchemaError(
            f"the database is at revision {revision}, behind this version ({head()}): run aggregator migrate"
        )
    raise SchemaError(
        f"the database is at revision {revision}, ahead of this version ({head()}): upgrade aggregator (pip install -U usage-aggregator)"
    )


def upgrade(settings: Settings) -> tuple[str | None, str]:
    """Bring the database to this version's revision, all or nothing; return the revisions before and after."""
    with connect(settings, name="aggregator migrate") as connection:
        before = current(connection)
        if before is not None:
            _require_known(before)
            _require_free(connection)
        with transaction(connection, read_only=True):
            row = connection.execute(
                "select getdatabaseencoding(), has_database_privilege(current_database(), 'CREATE')"
            ).fetchone()
        assert row is not None
        encoding, may_create = row
        if encoding != "UTF8":
            raise SchemaError(f"the database's encoding is {encoding}; aggregator needs UTF8")
        if before is None and not may_create:
            raise SchemaError(
                "the role may not create a schema in this database: GRANT CREATE ON DATABASE … TO it, or migrate as the owner"
            )
    _run(settings, "upgrade", "head")
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
        _require_free(connection)
        if before == head():
            capture.detach(connection, settings, discard_sealed=discard_sealed)
    _run(settings, "downgrade", "base")
    return before


def upgrade_to(revision: str, settings: Settings) -> None:
    """Create schema usage as of an earlier revision. For tests of upgrades."""
    _run(settings, "upgrade", revision)


def downgrade_to(revision: str, settings: Settings) -> None:
    """Go back to an earlier revision: data is kept as far as that revision knows it. For tests of upgrades."""
    _run(settings, "downgrade", revision)


def _require_free(connection: Connection) -> None:
    """Raise BusyError while a command is at work that would find another schema in the middle."""
    with transaction(connection, read_only=True):
        row = connection.execute("select to_regclass('usage.job') is not null").fetchone()
    if row == (True,):
        jobs.require_free(connection, "migrate")


def offline_sql(*, down: bool = False) -> str:
    """Return the SQL of an upgrade from nothing to head (or of the way back)."""
    from alembic import command

    buffer = io.StringIO()
    config = _config(buffer)
    if down:
        command.downgrade(config, "head:base", sql=True)
        return buffer.getvalue() + "\nDROP TABLE IF EXISTS usage.alembic_version;\nDROP SCHEMA usage;\n"
    command.upgrade(config, "head", sql=True)
    return buffer.getvalue().replace("BEGIN;\n", "BEGIN;\n\nCREATE SCHEMA usage;\n", 1)


def _require_known(revision: str) -> None:
    if revision not in revisions():
        raise SchemaError(
            f"the database is at revision {revision}, ahead of this version ({head()}):"
            " upgrade aggregator (pip install -U usage-aggregator)"
        )


def _run(settings: Settings, move: Literal["upgrade", "downgrade"], target: str) -> None:
    capture.with_lock_retries(settings, lambda: _try(settings, move, target), "schema usage")


def _own(settings: Settings) -> Connection:
    """Open a connection for SQLAlchemy, which first asks for this and that: not through the role's own search_path."""
    connection = connect(settings, name="aggregator migrate", autocommit=False)
    set_local(connection, settings.lock_timeout)
    return connection


def _require_ours(connection: Connection) -> None:
    """Raise SchemaError where others could put code into the schema that is about to be filled: ours would call it.

    In the transaction that fills it: whoever may create schemas could have made it a moment ago.
    """
    row = connection.execute(SQL["others"]).fetchone()
    if row is None:
        return
    user, owner, creators = row
    if owner is not None:
        raise SchemaError(
            f"schema usage belongs to {owner}, who could put code into it that runs with the rights of {user}:"
            f" DROP SCHEMA usage, or ALTER SCHEMA usage OWNER TO {user}"
        )
    if creators is not None:
        raise SchemaError(
            f"{creators} may create in schema usage, and so put code into it that runs with the rights of {user}:"
            f" REVOKE CREATE ON SCHEMA usage FROM {creators}"
        )


def _try(settings: Settings, move: Literal["upgrade", "downgrade"], target: str) -> None:
    """Move to a revision in one transaction, which others neither wait for longer than its own work, nor deadlock with."""
    import sqlalchemy as sa

    from alembic import command

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: _own(settings),
        poolclass=sa.pool.NullPool,
    )
    config = _config()
    try:
        with engine.begin() as connection:
            own = cast(Connection, connection.connection.driver_connection)
            own.execute("set transaction isolation level read committed, read write")
            set_local(own, settings.lock_timeout)
            own.execute(SQL["mutex"])
            own.execute(SQL["create_schema"])
            _require_ours(own)
            own.execute(SQL["lock_tables"])
            config.attributes["connection"] = connection
            (command.upgrade if move == "upgrade" else command.downgrade)(config, target)
            if target == "base":
                own.execute(SQL["drop_schema"])
            elif target == "head":
                capture.renew_functions(own)
                own.execute(capture.SQL["restore_grants"])
    except sa.exc.DBAPIError as exc:
        if isinstance(exc.orig, psycopg.Error):
            raise exc.orig from exc
        raise AggregatorError(str(exc.orig)) from exc
