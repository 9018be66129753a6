"""Connections that only read, kept for the next request."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from psycopg_pool import ConnectionPool

from aggregator import db
from aggregator.settings import Settings
from aggregator.web.answers import Refusal

Result = TypeVar("Result")

_PATIENCE = 5.0
"""Seconds to wait for a connection while the database is away, and after which connecting is tried anew."""


class Reader:
    """Answers questions, each in one read-only transaction: READ COMMITTED, for SERIALIZABLE would abort writers."""

    def __init__(self, settings: Settings) -> None:
        self._set_timeout = f"set local statement_timeout = {round(settings.http_statement_timeout * 1000)}".encode()
        query = settings.http_access_query.replace("%", "%%")
        self._may_see = re.sub(r"\$user\b", "%(user)s::uuid", query).encode()
        self._pool: ConnectionPool[db.Connection] = ConnectionPool(
            settings.conninfo,
            kwargs={
                "autocommit": True,
                "application_name": "aggregator serve",
                "prepare_threshold": None,
                "connect_timeout": 5,
                "client_encoding": "utf8",
            },
            min_size=1,
            max_size=settings.http_max_reads,
            open=False,
            # One round trip, so that a restart of the database costs no request.
            check=ConnectionPool.check_connection,
            timeout=_PATIENCE,
            reconnect_timeout=_PATIENCE,
            name="aggregator",
        )

    def open(self) -> None:
        """Begin to connect, which goes on in the background."""
        # Its complaints are libpq's own words, which may hold parts of a connection string; requests that fail are logged.
        logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
        self._pool.open()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def ask(self, user: UUID | None, question: Callable[[db.Connection], Result]) -> Result:
        """Return the answer to a question, if the user may see usage; None is nobody, who is not asked about.

        The user's edges are read each time, in the same transaction: a role that was removed counts at once.
        """
        with self._pool.connection() as connection, db.transaction(connection, read_only=True):
            connection.execute(self._set_timeout)
            if user is not None:
                row = connection.execute(self._may_see, {"user": user}).fetchone()
                if row is None or row[0] is not True:
                    raise Refusal(403, "not an owner or admin of any collection")
            return question(connection)
