"""The benchmark at its least size, end to end, so that it does not rot; its numbers mean nothing here."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from benchmarks import bench, report, results
from benchmarks.measure import DifferentError, Recorder
from benchmarks.results import HOURLY, RAW, ROLLUPS, Measurement, Results, Size
from benchmarks.writes import placed

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_a_run_of_two_histories(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every subject is measured, answers are equal, what cannot be measured is said, and a page is filled."""
    path = tmp_path / "results.json"
    code = bench.main([
        "--dsn", server, "--events", "3000", "--days", "40", "--growth", "0.002,0.003", "--collections", "10", "--types", "3",
        "--skew", "1.5", "--repeat", "1", "--json", str(path), "--plots", str(tmp_path),
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert "every answer of ours equalled the raw query's" in said.out
    assert "skipped, 2,000 events: TimescaleDB: no --timescaledb-dsn was given" in said.out
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [size["events"] for size in written["sizes"]] == [2000, 3000]
    assert {one["subject"] for size in written["sizes"] for one in size["measurements"]} == {
        "reads", "hourly", "first build", "refresh", "verify", "writes", "storage", "late changes unseen",
    }  # fmt: skip
    with_hours = {one["what"] for one in written["sizes"][0]["measurements"] if HOURLY in one["values"]}
    assert {"all rollups, against one raw pass", "rollups with their indexes"} <= with_hours
    assert not any("hourly" in skipped for skipped in written["sizes"][0]["skipped"])
    assert all(one["values"][ROLLUPS] for size in written["sizes"] for one in size["measurements"])
    assert not [
        size["failures"] or size["different"] for size in written["sizes"] if size["failures"] or size["different"]
    ]
    assert all("met" in target for target in written["targets"])

    found = results.read([path, path])
    assert [size.events for size in found.sizes] == [2000, 3000]
    unseen = {
        one.what.partition(",")[0]: one.values
        for one in found.main.measurements
        if one.subject == "late changes unseen"
    }
    assert unseen["events counted wrongly"][ROLLUPS] == [0]
    assert unseen["events counted wrongly"]["naive trigger"] == [0]
    assert unseen["events counted wrongly"]["materialized view"][0] > 0

    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert report.main([str(path), "--into", str(page)]) == 0
    filled = page.read_text(encoding="utf-8")
    assert "| by collection, 30 days to the second |" in filled
    assert "Not measured." not in filled
    assert report.fill(filled, found) == filled
    # A run of one history leaves the table of growth as it is.
    alone = report.fill(filled, Results(found.facts, found.sizes[:1]))
    assert alone != filled
    assert alone.partition("<!-- results: growth -->")[2] == filled.partition("<!-- results: growth -->")[2]


def test_the_page_asks_for_what_there_is() -> None:
    """Every part that docs/performance.md marks is one that the report has, and none is missing."""
    marked = re.findall(r"<!-- results: ([^>]*?) -->\n", PAGE.read_text(encoding="utf-8"))
    assert sorted(marked) == sorted(report.parts(Results({}, [Size(1, 1)])))


def test_a_failure_loses_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """A contender that fails, or is different, is noted and left out; the others are measured, and the run has failed."""
    record = Recorder(argparse.Namespace(repeat=3, budget=60.0), Size(1, 1))

    def fails() -> float:
        raise RuntimeError("out of paper")

    def differs() -> float:
        raise DifferentError("6 is not 7")

    found = record.interleave("case", {"fine": lambda: 1.0, "fails": fails, "differs": differs})
    assert found == {"fine": [1.0, 1.0, 1.0]}
    assert record.size.failures[0].startswith("case, fails: RuntimeError: out of paper")
    assert record.size.different == ["case, differs: 6 is not 7"]
    assert Results({}, [record.size]).failed
    assert "DIFFERENT" in capsys.readouterr().err


def test_a_contender_that_had_its_time_rests() -> None:
    """A contender over its budget is not measured again; if its first time was over already, that one counts."""
    record = Recorder(argparse.Namespace(repeat=3, budget=-1.0), Size(1, 1))
    assert record.interleave("case", {"slow": lambda: 1.0}) == {"slow": [1.0]}


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is nothing to choose from"
)
def test_single_inserts_are_measured_on_known_cpus(server: str) -> None:
    """Client and server are kept on one CPU each, or on one together, and let go; none is touched if one is elsewhere."""
    here = os.sched_getaffinity(0)
    with psycopg.connect(server) as one, psycopg.connect(server) as other:
        pids = [one.info.backend_pid, other.info.backend_pid]
        for together in (False, True):
            with placed([one, other], together=together) as done:
                assert done
                mine = os.sched_getaffinity(0)
                theirs = [os.sched_getaffinity(pid) for pid in pids]
                assert len(mine) == 1
                assert len(theirs[0]) == 1
                assert theirs[0] == theirs[1]
                assert (theirs[0] == mine) == together
            assert [os.sched_getaffinity(pid) for pid in (0, *pids)] == [here] * 3
        elsewhere = SimpleNamespace(info=SimpleNamespace(backend_pid=pids[1], host="db.example.org"))
        with placed([one, elsewhere], together=False) as done:  # type: ignore[list-item]
            assert not done
            assert [os.sched_getaffinity(pid) for pid in (0, *pids)] == [here] * 3


def test_ratios() -> None:
    """Reads are that many times as fast, anything else costs that many times as much; targets are met, missed or open."""
    read = Measurement("reads", "by collection, 30 days to the second", "ms", {RAW: [90, 100, 110], ROLLUPS: [5, 4, 3]})
    size_ = Measurement("storage", "rollups with their indexes", "MB", {"raw table": [100], ROLLUPS: [30]})
    assert read.ratio(RAW) == pytest.approx(25)
    assert size_.ratio("raw table") == pytest.approx(0.3)
    found = Results({}, [Size(1, 1, [read, size_])])
    met = {(outcome.target.what, outcome.target.against): outcome.met for outcome in found.targets()}
    assert met["by collection, 30 days to the second", RAW] is True
    assert met["rollups with their indexes", "raw table"] is False
    assert met["by collection, 365 days to the second", RAW] is None
