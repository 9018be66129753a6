"""TimescaleDB: a hypertable, and a real-time continuous aggregate."""

from __future__ import annotations

from benchmarks.peers import ExtensionPeer


class TimescaleDB(ExtensionPeer):
    """What changed below its watermark is unseen until a refresh."""

    name = "TimescaleDB"
    sql = "timescaledb"
    option = "timescaledb-dsn"
    refreshes = True
