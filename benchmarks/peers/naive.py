"""The same rollup by INSERT … ON CONFLICT DO UPDATE from a row trigger."""

from __future__ import annotations

from benchmarks.peers import LocalPeer


class NaiveTrigger(LocalPeer):
    """Each event updates its day's row at once: whole days are exact, and writers of one key wait for each other."""

    name = "naive trigger"
    sql = "naive"
