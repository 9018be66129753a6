"""What the command prints, wherever it prints it: pipes, terminals, full disks, odd encodings, harmful texts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import psycopg
import pytest

from aggregator import embedded
from tests.cli.test_cli import ROOT, _environment, one_line, run
from tests.harness import COLLECTIONS, Database, some

csv.field_size_limit(10_000_000)

LONG = "A collection with a title of forty chars"


@pytest.fixture
def awkward(db: Database) -> Database:
    """Events whose texts are markup, newlines, escapes and very long; sums that are large."""
    texts = {0: LONG, 1: "two\nlines \x1b[31m \u202ered", 2: "x" * 1_000_000, 3: "[/b]", 4: ""}
    for index, text in texts.items():
        db.execute("update public.nodes set title = %s where id = %s", (text, COLLECTIONS[index]))
    for index in range(5):
        db.insert("yesterday", "tts", index, '{"characters": 34630000123}')
        db.insert("yesterday", "ai", index, '{"tokens_in": 4253000111, "tokens_out": 4253000112, "job_type": "a [/b]"}')
    db.insert("infinity", "[/b]", 0)
    db.execute("update usage.metric set unit = '[/b]' where resource_type = 'ai'")
    return db


def on_terminal(
    dsn: str, *arguments: str, columns: int = 80, until: str | None = None, send: int | None = None, **environment: str
) -> tuple[int, str]:
    """Run the command on a pseudo-terminal, send it a signal once it printed a text; return its exit code and output."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = _environment(dsn, {"TERM": "xterm-256color", **environment})
    kept = {name: value for name, value in kept.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", *arguments],
        env=kept, cwd=ROOT, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen = bytearray()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and select.select([leader], [], [], 60)[0]:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
        if send is not None and until is not None and until.encode() in seen:
            process.send_signal(send)
            send = None
    os.close(leader)
    return process.wait(timeout=60), seen.decode()


def test_texts_are_never_markup(awkward: Database) -> None:
    """Types, titles, units, applications and errors that look like markup are printed as they are."""
    shown = run(awkward.dsn, "show", COLUMNS="200")
    assert shown.returncode == 0, shown
    for text in ("[/b] dated infinity", "a [/b]", "G [/b]"):
        assert text in shown.stdout
    awkward.refresh()
    awkward.execute("update usage.refresh_run set status = 'failed', error = 'a [/b] error'")
    with contextlib.closing(awkward.connect(autocommit=False, application_name="app[/red]x")) as writer:
        writer.execute("insert into public.resource_usage_log (created_at) values (now())")
        status = run(awkward.dsn, "status", AGGREGATOR_WAIT_TIMEOUT="0")
    assert status.returncode in {0, 1}
    assert "app[/red]x" in status.stdout
    assert "Traceback" not in status.stderr
    assert "a [/b] error" in run(awkward.dsn, "history").stdout


@pytest.mark.parametrize("columns", some(["80", "120", "60"], 2))
def test_numbers_are_whole_in_a_pipe(awkward: Database, columns: str) -> None:
    """At any width numbers are whole, texts are cut, and what is one line stays one."""
    shown = run(awkward.dsn, "show", COLUMNS=columns)
    assert shown.returncode == 0, shown
    for text in ("34.63 G characters", "4,253,000,111", "4,253,000,112"):
        assert shown.stdout.count(text) >= 5, shown.stdout
    assert not re.search(r",\d*…", shown.stdout)
    receipt = [line for line in shown.stdout.splitlines() if line.startswith("as of")]
    assert len(receipt) == 1
    assert "rollups not yet built" in receipt[0]


def test_texts_cannot_harm_a_terminal(awkward: Database) -> None:
    """Newlines, escapes and bidi overrides become visible signs; a title of a megabyte is cut. JSON has them as they are."""
    shown = run(awkward.dsn, "show", COLUMNS="200").stdout
    assert "two␊lines ␛[31m �red" in shown
    assert "\x1b" not in shown
    assert len(shown) < 20_000
    titles = {
        row["collection_title"]
        for row in json.loads(run(awkward.dsn, "show", "--format", "json").stdout)["by_collection"]
    }
    assert {"two\nlines \x1b[31m \u202ered", "x" * 1_000_000} <= titles


def test_csv_tells_null_from_empty(awkward: Database) -> None:
    """The empty text is quoted, null is not; and every row is read back."""
    awkward.insert("yesterday", "", None)
    printed = run(awkward.dsn, "show", "--format", "csv").stdout
    assert 'by_collection,,,,"",,,1,0.0,0.0,,\n' in printed
    assert f'by_collection,,{COLLECTIONS[4]},"",tts' in printed
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert {row["collection_title"] for row in rows} >= {"[/b]", "two\nlines \x1b[31m \u202ered", ""}


@pytest.mark.parametrize("columns", some(["80", "120"], 2))
def test_histories_and_differences_are_readable(awkward: Database, columns: str) -> None:
    """verify, history and metric list at 80 columns: no value is folded or cut, and empty columns are left out."""
    awkward.execute("update usage.metric set unit = 'tokens' where resource_type = 'ai'")
    awkward.refresh()
    awkward.execute(
        "update usage.daily_fact set total_value = total_value + 12345678901234"
        " where key_id in (select id from usage.key where resource_type = 'tts')"
    )
    found = run(awkward.dsn, "verify", COLUMNS=columns)
    assert found.returncode == 1
    assert found.stdout.count("-12,345,678,901,234") == 5, found.stdout
    assert COLLECTIONS[0] in found.stdout
    assert "job type" not in found.stdout
    assert run(awkward.dsn, "verify", "--repair").returncode == 0
    for arguments, words in (
        (["history"], ["done", "late changes"]),
        (["history", "restatements"], ["repaired", "12,345,678,901,234", COLLECTIONS[0]]),
        (["history", "verifications"], ["yes"]),
        (["metric", "list"], ["participant_minutes", "characters"]),
    ):
        printed = run(awkward.dsn, *arguments, COLUMNS=columns).stdout
        for word in words:
            assert word in printed, printed


def test_days_outside_the_calendar(awkward: Database) -> None:
    """Events at infinity and in the year 20000 are in the open window, as in SQL; those at -infinity are not."""
    awkward.insert("20000-01-01Z", "cas", None)
    awkward.insert("-infinity", "never", None)
    printed = json.loads(run(awkward.dsn, "show", "--format", "json").stdout)
    assert printed == awkward.scalar("select usage.overview(30)")
    assert [row["resource_type"] for row in printed["daily"] if row["day"] == "infinity"] == ["[/b]", "cas"]
    rows = list(csv.DictReader(io.StringIO(run(awkward.dsn, "show", "--format", "csv").stdout)))
    assert [row["resource_type"] for row in rows if row["day"] == "infinity"] == ["[/b]", "cas"]
    assert "never" not in {row["resource_type"] for row in rows}


def test_until_alone_counts_back(db: Database) -> None:
    """--until without --since ends the window, and --days are counted back from there."""
    db.insert("2019-12-30 00:00Z", "ai", 0)
    db.insert("2019-12-29 23:59Z", "cas", 0)
    printed = run(db.dsn, "show", "--until", "2020-01-01T00:00Z", "--days", "2", "--format", "json").stdout
    assert [row["resource_type"] for row in json.loads(printed)["by_collection"]] == ["ai"]


def test_an_inexact_answer_says_so_beside_the_data(awkward: Database) -> None:
    """JSON and CSV of a window that cuts a sealed day: the reasons are on stderr."""
    awkward.insert("2026-03-01 12:00Z", "ai", 0)
    awkward.days_only()
    awkward.refresh()
    assert run(awkward.dsn, "purge", "--keep", "100d").returncode == 0
    for output in ("json", "csv"):
        shown = run(awkward.dsn, "show", "--since", "2026-03-01T11:00Z", "--format", output)
        assert "NOT EXACT: " in shown.stderr
        assert run(awkward.dsn, "show", "--format", output).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(awkward: Database) -> None:
    """Output that cannot be written is one line, exit 1."""
    for output in ("json", "csv", "table"):
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [sys.executable, "-m", "aggregator", "show", "--format", output], env=_environment(awkward.dsn, {}),
                cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
            )  # fmt: skip
        assert result.returncode == 1
        assert result.stderr.splitlines() == ["aggregator: [Errno 28] No space left on device"]


def test_an_encoding_that_lacks_characters(awkward: Database) -> None:
    """In ASCII tables have signs for what is missing, JSON escapes, and CSV, which cannot, is refused in one line."""
    shown = run(awkward.dsn, "show", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.isascii()
    assert "34.63 G characters" in shown.stdout
    document = run(awkward.dsn, "show", "--format", "json", PYTHONIOENCODING="ascii")
    assert "two\nlines \x1b[31m \u202ered" in {
        r["collection_title"] for r in json.loads(document.stdout)["by_collection"]
    }
    one_line(run(awkward.dsn, "show", "--format", "csv", PYTHONIOENCODING="ascii"), 1, "PYTHONIOENCODING=utf-8")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["show", "--database-url", ""], {}, "empty"),
        (["attach"], {"AGGREGATOR_LOCK_TIMEOUT": "inf"}, "LOCK_TIMEOUT"),
        (["attach"], {"AGGREGATOR_LOCK_TIMEOUT": "0.0001"}, "LOCK_TIMEOUT"),
        (["refresh", "--step-events", str(2**63)], {}, "STEP_EVENTS"),
        (["show", "--watch", "1"], {}, "terminal"),
        (["show", "--watch", "nan"], {}, "--watch"),
        (["show", "--watch", "1", "--format", "csv"], {}, "--format"),
    ],
)
def test_wrong_usage(awkward: Database, arguments: list[str], environment: dict[str, str], words: str) -> None:
    """One line that says what is wrong, and exit code 2."""
    one_line(run(awkward.dsn, *arguments, **environment), 2, words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["history", "--limit", str(2**63)],
        ["demo", "--days", "99999999"],
        ["demo", "--seed", str(2**80)],
        ["demo", "--events", "0"],
    ],
)
def test_numbers_out_of_bounds(arguments: list[str]) -> None:
    """The option parser refuses what no integer or interval of the server can hold."""
    result = run("host=/nowhere", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert arguments[1] in result.stderr


def test_no_color(awkward: Database) -> None:
    """With NO_COLOR there are no escape codes, on a terminal either; without it there are."""
    assert "\x1b" not in run(awkward.dsn, "show", NO_COLOR="1").stdout
    code, printed = on_terminal(awkward.dsn, "show", NO_COLOR="1")
    assert (code, "\x1b" in printed) == (0, False)
    assert "\x1b[" in on_terminal(awkward.dsn, "show")[1]


def test_watch(awkward: Database) -> None:
    """Draws until Ctrl-C, then leaves the last tables on the screen and exits 0."""
    code, printed = on_terminal(awkward.dsn, "show", "--watch", "0.1", until="By day", send=signal.SIGINT)
    assert code == 0, printed
    other, _, normal = printed.rpartition("\x1b[?1049l")
    assert "every 0.1 s until Ctrl-C" in other
    assert "34.63 G characters" in normal


def test_refresh_shows_how_far_it_is(db: Database) -> None:
    """On a terminal: events done of about so many, and the time left; without statistics nobody knows, and none is shown."""
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 2}', now() - n * interval '1 min' from generate_series(1, 20000) n"
    )
    db.execute("analyze public.resource_usage_log")
    code, printed = on_terminal(db.dsn, "refresh", "--step-events", "200", columns=120)
    assert code == 0
    assert re.search(r"folding \S+ +\d+/\d{5} \d:\d\d:\d\d left \d:\d\d:\d\d", re.sub(r"\x1b\[[\d;]*m", "", printed)), (
        printed
    )
    db.execute("truncate public.resource_usage_log")
    db.execute("insert into public.resource_usage_log (created_at) select now() from generate_series(1, 20)")
    lines = run(db.dsn, "refresh").stderr
    assert "20 events, " in lines
    assert "20 of about 20" not in lines


def test_a_wrong_password() -> None:
    """One line, exit code 1, and never the password."""
    with embedded.temporary_server() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role guarded login password 'right'")
            hba = server.data / "pg_hba.conf"
            hba.write_text("local all guarded scram-sha-256\n" + hba.read_text())
            connection.execute("select pg_reload_conf()")
        for url in (
            f"{server.dsn(user='guarded')} password=s3cret",
            f"postgresql://guarded:s3cret@/postgres?host={server.folder}",
        ):
            result = run(url, "show")
            one_line(result, 1, "password authentication failed")
            assert "s3cret" not in result.stderr


HOSTILE = {
    "AGGREGATOR_STEP_EVENTS": "abc", "AGGREGATOR_SOURCE_TABLE": "public.other", "AGGREGATOR_DATABASE_URL": "host=nowhere",
    "PGPORT": "1", "PGHOST": "nowhere", "PGHOSTADDR": "192.0.2.1", "PGSSLMODE": "require", "PGDATABASE": "other",
    "PGOPTIONS": "-c search_path=nothing", "PGSERVICE": "nothing",
}  # fmt: skip


def test_the_demo_is_on_its_own() -> None:
    """Whatever the environment says the demo works, again and again, and leaves nothing in the temporary folder."""
    with _short_folder() as folder:
        for _ in range(2):
            result = run(None, "demo", "--events", "1000", **HOSTILE, TMPDIR=str(folder))
            assert result.returncode == 0, result
            assert "equal, to the last digit" in result.stdout
            assert list(folder.iterdir()) == []


@pytest.mark.parametrize("moment", ["starting", "making"])
def test_an_ended_demo_leaves_nothing(moment: str) -> None:
    """SIGTERM while the server starts or works: no process and no folder is left."""
    with _short_folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "aggregator", "demo", "--events", "3000000"],
            env=_environment(None, {"TMPDIR": str(folder)}), cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        while moment not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 130
        assert list(folder.iterdir()) == []
        assert not [name for name in _command_lines() if str(folder) in name]


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """Make a temporary folder that the server's user may enter, and whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return found


def test_completion() -> None:
    """The shell is offered commands and options."""
    program = Path(sys.executable).with_name("aggregator")

    def complete(line: str) -> set[str]:
        environment = _environment(
            None, {"_AGGREGATOR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        )
        return set(
            subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout.split()
        )

    assert complete("aggregator re") == {"refresh", "rebuild"}
    assert "--watch" in complete("aggregator show --")
