"""A plain materialized view, refreshed concurrently."""

from __future__ import annotations

from benchmarks.peers import LocalPeer


class MaterializedView(LocalPeer):
    """Everything is added up anew at each refresh; whatever came since is unseen."""

    name = "materialized view"
    sql = "matview"
    refreshes = True
    captures = False
