"""The soak for some seconds, so that it does not rot. For an hour: make soak."""

from __future__ import annotations

import io

from rich.console import Console

from tests.soak import soak
from tests.soak.__main__ import table


def test_a_short_soak() -> None:
    """A round or two with faults: no difference, nobody hangs, no writer waits for us, and the report says what was done."""
    report = soak.Soak(8, 1, round_seconds=5).run()
    text = io.StringIO()
    Console(file=text, width=120).print(table(report))
    print(text.getvalue())
    assert report.failures == []
    assert report.rounds >= 1  # a round in which somebody did nothing is a failure
    assert report.probes > 0
    assert "differences and failures" in text.getvalue()
