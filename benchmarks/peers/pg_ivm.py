"""pg_ivm: a materialized view that is maintained at once."""

from __future__ import annotations

from benchmarks.peers import ExtensionPeer


class PgIvm(ExtensionPeer):
    """Each statement updates the view; a writer holds a lock on it until it commits."""

    name = "pg_ivm"
    sql = "pg_ivm"
    option = "pg-ivm-dsn"
