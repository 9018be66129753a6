"""Settings, instants and connection strings: what is wrong is said in one line, without a secret."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from aggregator.db import DatabaseError, connect
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings, load_settings, parse_instant


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every setting of the environment."""
    for name in os.environ:
        if name.startswith(("AGGREGATOR_", "PG")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T00:00Z", datetime(2026, 3, 1, tzinfo=timezone.utc)),
        ("2026-03-01T00:00+01:00", datetime(2026, 2, 28, 23, tzinfo=timezone.utc)),
        ("2026-03-01 00:00:00.000001-05:45", datetime(2026, 3, 1, 5, 45, 0, 1, tzinfo=timezone.utc)),
        ("20260301T000000Z", datetime(2026, 3, 1, tzinfo=timezone.utc)),
        ("0001-01-01T00:00Z", datetime(1, 1, 1, tzinfo=timezone.utc)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=timezone.utc)),
    ],
)
def test_parse_instant(text: str, expected: datetime) -> None:
    """An ISO 8601 instant with an offset is read as an aware one in UTC, to the microsecond."""
    instant = parse_instant(text, "--since")
    assert instant == expected
    assert instant.tzinfo is timezone.utc


@pytest.mark.parametrize("text", ["2026-03-01", "2026-03-01T00:00", "2026-03-01 12:00:00.5"])
def test_parse_naive_instant(text: str) -> None:
    """A day or a naive time is refused: nobody knows which instant it is."""
    with pytest.raises(UsageError, match=r"^--since: .* has no time zone"):
        parse_instant(text, "--since")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "yesterday",
        "2026-02-30T00:00Z",
        "2026-03-01T25:00Z",
        "infinity",
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:00-05:00",
        "1e5",
    ],
)
def test_parse_no_instant(text: str) -> None:
    """What is no instant, or none that a datetime in UTC can hold, is refused, naming the option."""
    with pytest.raises(UsageError, match=r"^--until: .* is no instant") as caught:
        parse_instant(text, "--until")
    assert caught.value.exit_code == 2


def test_defaults() -> None:
    """Without an environment the settings are those of the existing application."""
    settings = load_settings()
    assert (settings.source_table, settings.title_table) == ("public.resource_usage_log", "public.nodes")
    assert settings.time_zone == "UTC"
    assert settings.database_url is None


def test_environment_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option beats the environment, None is no option, and an empty variable is none."""
    monkeypatch.setenv("AGGREGATOR_TIME_ZONE", "Europe/Oslo")
    monkeypatch.setenv("AGGREGATOR_STEP_EVENTS", "17")
    monkeypatch.setenv("AGGREGATOR_SOURCE_TABLE", "")
    settings = load_settings(time_zone=None, step_events=18)
    assert (settings.time_zone, settings.step_events) == ("Europe/Oslo", 18)
    assert settings.source_table == "public.resource_usage_log"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("time_zone", "Mars/Olympus", "is no IANA time zone"),
        ("time_zone", "Europe", "is no IANA time zone"),
        ("time_zone", "/etc/passwd", "is no IANA time zone"),
        ("time_zone", "../UTC", "is no IANA time zone"),
        ("step_events", "0", "greater than or equal to 1"),
        ("step_events", "many", "integer"),
        ("wait_timeout", "-1", "greater than or equal to 0"),
        ("lock_timeout", "0", "greater than or equal to 0.001"),
        ("lock_timeout", "0.0009", "greater than or equal to 0.001"),
        ("lock_timeout", "inf", "finite"),
        ("lock_timeout", "1e7", "less than or equal to 86400"),
        ("wait_timeout", "nan", "finite"),
        ("refresh_every", "inf", "finite"),
        ("step_events", "9223372036854775808", "less than or equal to"),
        ("verify_days", "99999999", "less than or equal to"),
        ("database_url", " ", "it is empty"),
        ("lock_retries", "-1", "greater than or equal to 0"),
    ],
)
def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    """A wrong setting is an error of usage that names its variable and option, and nothing else of the environment."""
    monkeypatch.setenv("AGGREGATOR_DATABASE_URL", "postgresql://user:s3cret@host/database")
    for give in ("environment", "option"):
        with monkeypatch.context() as patch:
            if give == "environment":
                patch.setenv(f"AGGREGATOR_{name.upper()}", value)
            with pytest.raises(UsageError, match=says) as caught:
                load_settings(**({} if give == "environment" else {name: value}))
        message = str(caught.value)
        assert message.startswith(f"AGGREGATOR_{name.upper()} (--{name.replace('_', '-')}): ")
        assert "\n" not in message
        assert "s3cret" not in message
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("title_table", "expected"), [("none", None), (" NONE ", None), ("public.nodes", "public.nodes")]
)
def test_no_title_table(title_table: str, expected: str | None) -> None:
    """The title table may be none."""
    assert load_settings(title_table=title_table).title_table_or_none == expected


def test_no_database() -> None:
    """Nothing says which database is meant: an error of usage, exit code 2, not whatever server answers."""
    with pytest.raises(UsageError, match="set AGGREGATOR_DATABASE_URL") as caught:
        _ = load_settings().conninfo
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="set AGGREGATOR_DATABASE_URL"):
        connect(load_settings())


@pytest.mark.parametrize("name", ["PGHOST", "PGDATABASE", "PGSERVICE", "PGHOSTADDR"])
def test_libpq_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Libpq's own variables say which database is meant; the URL goes before them."""
    monkeypatch.setenv(name, "somewhere")
    assert load_settings().conninfo == ""
    assert load_settings(database_url="host=elsewhere").conninfo == "host=elsewhere"


@pytest.mark.parametrize("name", ["PGUSER", "PGPORT", "PGPASSWORD", "PGOPTIONS"])
def test_libpq_environment_that_names_no_database(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable that names no server or database is not enough, nor is an empty one."""
    monkeypatch.setenv(name, "5432")
    monkeypatch.setenv("PGHOST", "")
    with pytest.raises(UsageError):
        _ = load_settings().conninfo


def test_pghost_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a URL goes where PGHOST says."""
    monkeypatch.setenv("PGHOST", "/nonexistent/folder")
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    with pytest.raises(DatabaseError, match="/nonexistent/folder") as caught:
        connect(load_settings())
    assert "s3cret" not in str(caught.value)


UNREACHABLE = [
    "postgresql://user:s3cret@127.0.0.1:1/database",
    "postgres://user:s3cret@127.0.0.1:1,127.0.0.1:2/database",
    "postgresql://user@127.0.0.1:1/database?password=s3cret",
    "host=127.0.0.1 port=1 user=user password=s3cret",
    "host=127.0.0.1 port=1 user=user password='s3cret with blanks'",
    "postgresql://user:s3cret%40more@127.0.0.1:1/database",
    "postgresql://user:word@s3cret@host.invalid/database",
    "postgresql://user:word/s3cret@host.invalid/database",
    "postgresql://user:word:s3cret@host.invalid:s3cret/database",
    "postgresql://user:s3cret@host.invalid:port/database",
    "postgresql://user:s3cret/word@host.invalid/database",
    "postgresql://user:word?s3cret@host.invalid/database",
    "postgresql://user:wo%zzs3cret@127.0.0.1/database",
    "postgresql://user:s3cret@127.0.0.1:1/database?nonsense=1",
    "host=127.0.0.1 password=s3cret nonsense",
    "password = s3cret host=127.0.0.1 port=1",
    "s3cret",
]
"""Connection strings that lead nowhere or are wrong, such as passwords that should have been percent-encoded."""


@pytest.mark.parametrize("url", UNREACHABLE)
def test_no_password_in_errors(url: str) -> None:
    """No error of a connection shows the password, or a part of it, in one line; whatever is wrong with the string."""
    with pytest.raises(AggregatorError) as caught:
        connect(load_settings(database_url=url))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in {1, 2}


def test_no_password_in_settings() -> None:
    """Settings are shown without the connection string."""
    settings = Settings(database_url="postgresql://user:s3cret@host/database")  # type: ignore[arg-type]
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [("verify_days", 10_000_000), ("keep_history_days", 10_000_000), ("keep", "999999w"), ("keep", "10000000d")],
)
def test_days_that_no_date_reaches(name: str, value: object) -> None:
    """More than a thousand years of days is refused, naming the setting and the bound."""
    with pytest.raises(UsageError, match=rf"AGGREGATOR_{name.upper()}.*365000"):
        load_settings(**{name: value})


def test_a_server_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection asks for keepalives and a timeout of unanswered data, unless the connection string has its own."""
    asked: list[dict[str, object]] = []

    def refuse(conninfo: str, **options: object) -> None:
        asked.append({**conninfo_to_dict(conninfo), **options})
        raise psycopg.OperationalError("a test says so")

    monkeypatch.setattr(psycopg, "connect", refuse)
    for url in ("host=a", "postgresql://a/b?keepalives_idle=7&tcp_user_timeout=0&connect_timeout=3"):
        with pytest.raises(DatabaseError):
            connect(Settings(database_url=url))  # type: ignore[arg-type]
    names = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    assert [[given[name] for name in names] for given in asked] == [
        ["15", "30", "10", "3", "60000"],
        ["3", "7", "10", "3", "0"],
    ]
