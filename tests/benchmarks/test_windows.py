"""The load of windows at its least, so that it does not rot; its numbers mean nothing here."""

from __future__ import annotations

import pytest

from benchmarks import windows
from benchmarks.reads import READS


def test_windows_a_second(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One and two connections read beside a writer and refreshes; answers are compared, and none differs."""
    code = windows.main([
        "--dsn", server, "--events", "3000", "--days", "40", "--collections", "10", "--seconds", "2.5", "--connections", "1,2",
        "--check-every", "5",
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows] == [[kind, number] for kind in windows.KINDS for number in ("1", "2")]
    for _, _, a_second, _, _, compared, differences, refreshes, written in rows:
        assert int(a_second.replace(",", "")) > 0
        assert int(compared.replace(",", "")) > 0
        assert differences == "0"
        assert int(refreshes.replace(",", "")) > 0
        assert int(written.replace(",", "")) > 0


def test_a_difference_fails(server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not the raw query's is said, and is the exit code."""
    monkeypatch.setitem(READS, "by_collection", READS["by_collection"] + " limit 0")
    code = windows.main([
        "--dsn", server, "--events", "2000", "--days", "10", "--collections", "3", "--seconds", "0.5", "--connections", "1",
        "--check-every", "1",
    ])  # fmt: skip
    assert code == 1
    assert "DIFFERENT: by_collection" in capsys.readouterr().err
