"""Connections of our own, their transactions, and database errors in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import IsolationLevel, errors
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict

from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings

Connection = psycopg.Connection[tuple[Any, ...]]

MINIMUM_SERVER = 150000
"""PostgreSQL 15: unique indexes with NULLS NOT DISTINCT, MERGE, triggers that clone ENABLE ALWAYS."""

_TRANSACTION_TIMEOUT_SINCE = 170000

_READ_ONLY = "the server is read-only (a standby?): connect to the primary"

_NETWORK = {
    "connect_timeout": "15",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""Unless the connection string says otherwise: a server that vanished without a word (a failover) is noticed in a minute."""


class DatabaseError(AggregatorError):
    """The database refused or failed."""


class _TextLoader(Loader):
    """Instants and days stay the server's text: infinity and years BC have no datetime."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


def connect(settings: Settings, *, name: str = "aggregator", autocommit: bool = True) -> Connection:
    """Open a connection of our own: instants come as text, in ISO format and UTC inside ``transaction``.

    Raises DatabaseError in one line, without the connection string.
    """
    conninfo = settings.conninfo
    try:
        given = conninfo_to_dict(conninfo)
        defaults: dict[str, Any] = {name: value for name, value in _NETWORK.items() if name not in given}
        connection = psycopg.connect(
            conninfo,
            autocommit=autocommit,
            application_name=name,
            prepare_threshold=None,
            client_encoding="utf8",
            **defaults,
        )
    # What libpq says may hold the password, or a part of it: a traceback shall not show it either.
    except psycopg.ProgrammingError:  # the connection string itself
        raise UsageError("AGGREGATOR_DATABASE_URL is no libpq URI or keyword string") from None
    except psycopg.OperationalError as exc:
        raise DatabaseError(
            f"cannot connect to the database: {_without_password(_first_line(exc), conninfo)}"
        ) from None
    for type_name in ("timestamptz", "date", "interval"):
        connection.adapters.register_loader(type_name, _TextLoader)
    if connection.info.server_version < MINIMUM_SERVER:
        version = connection.info.server_version // 10000
        connection.close()
        raise UsageError(
            f"PostgreSQL {version} is too old: aggregator needs PostgreSQL {MINIMUM_SERVER // 10000} or later"
        )
    return connection


@contextlib.contextmanager
def transaction(
    connection: Connection,
    *,
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    read_only: bool = False,
    lock_timeout: float = 5.0,
) -> Iterator[None]:
    """Run one transaction with settings of its own, whatever the server, role or pooler set as defaults.

    SET LOCAL and not start-up options: a transaction pooler hands each transaction another session. ``lock_timeout``
    is in seconds: a session of ours that waits for a lock forever could not be stopped.
    """
    mode = "read only" if read_only else "read write"
    with connection.transaction():
        try:
            connection.execute(
                f"set transaction isolation level {isolation.name.replace('_', ' ').lower()}, {mode}".encode()
            )
        except errors.FeatureNotSupported as exc:  # on a hot standby no transaction can be read-write
            raise DatabaseError(f"{_READ_ONLY} ({_first_line(exc)})") from exc
        set_local(connection, lock_timeout)
        yield


def set_local(connection: Connection, lock_timeout: float) -> None:
    """Settle what statements mean and how long they may wait, for the rest of the transaction; lock_timeout in seconds."""
    connection.execute(
        "set local timezone = 'UTC'; set local datestyle = 'ISO, YMD'; set local intervalstyle = 'postgres';"
        "set local search_path = pg_catalog, pg_temp; set local row_security = off; set local jit = off;"
        "set local standard_conforming_strings = on; set local quote_all_identifiers = off;"
        "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0;"
        f"set local lock_timeout = {int(lock_timeout * 1000)}".encode()
    )
    if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        connection.execute("set local transaction_timeout = 0")


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line that also says what to do where we know it."""
    if isinstance(error, AggregatorError):
        return str(error)
    text = _first_line(error)
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return f"{_READ_ONLY} ({text})"
    if isinstance(error, errors.InsufficientPrivilege):
        return f"the role lacks a privilege: {text}; see deploy/roles.sql, or connect as the owner of schema usage"
    missing = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction, errors.InvalidSchemaName)
    if isinstance(error, missing):
        # The server names what is missing in the text only.
        ours = re.search(r'\busage(\.|" does not exist)', text)
        advice = "is the schema there? run aggregator migrate, then aggregator attach"
        return f"{text}; {advice if ours else 'was it renamed or dropped? aggregator status says what to do'}"
    if isinstance(error, errors.LockNotAvailable):
        return f"a lock was not to be had in time, somebody holds it: {text}; try again later"
    # Of the lock table: which setting is too small.
    hint = error.diag.message_hint if isinstance(error, errors.OutOfMemory) else None
    return f"{text}; {hint}" if hint else text


def _first_line(error: BaseException) -> str:
    diagnostics = getattr(error, "diag", None)
    text = (diagnostics.message_primary if diagnostics is not None else None) or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _without_password(text: str, conninfo: str) -> str:
    try:
        password = conninfo_to_dict(conninfo).get("password")
    except psycopg.ProgrammingError:
        password = None
    text = re.sub(r"(password=)\S+", r"\1…", text)
    # A password with an @ that is not percent-encoded: libpq takes what follows it for the host, and names it.
    user = conninfo.partition("://")[2].partition("?")[0].rpartition("@")[0]
    for secret in (password, *re.split("[@/:]", user.partition(":")[2])):
        if secret:
            text = text.replace(str(secret), "…")
    return text
