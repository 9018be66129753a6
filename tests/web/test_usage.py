"""GET /admin/usage and /admin/usage/totals: the contract's answers, and its errors in its order."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import UUID

from tests.harness import COLLECTIONS, ORACLE, Database, compare, snapshot
from tests.web.conftest import STRANGER, Client, token

KEYS = {
    "by_collection": ["collection_id", "collection_title", "resource_type", "event_count", "total_value", "secondary_value"],
    "ai_drilldown": ["collection_id", "collection_title", "job_type", "model_level", "tokens_in", "tokens_out", "event_count"],
    "daily": ["day", "resource_type", "event_count", "total_value"],
}  # fmt: skip


def oracle(db: Database, since: str, collection: str | None = None, until: str | None = None) -> dict[str, list[Any]]:
    """Return the contract's JSON from the raw query."""
    found: dict[str, list[Any]] = {}
    for section, keys in KEYS.items():
        query = ORACLE[section].replace("{source}", db.source).replace("{titles}", db.titles)
        rows = db.execute(query, {"since": since, "until": until, "collection": collection, "zone": db.zone})
        found[section] = [dict(zip(keys, map(_plain, row), strict=True)) for row in rows]
    for row in found["daily"]:
        row["day"] += "T00:00:00Z"
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else int(value) if isinstance(value, Decimal) else value


def test_sections_equal_the_raw_query(web_db: Database, client: Client) -> None:
    """Three keys in the contract's order, each row's keys too, and every value the raw query's; later events count."""
    since = web_db.scalar("select (now() - interval '20 days')::text")
    for _ in range(3):
        for collection in (None, COLLECTIONS[0]):
            wanted = oracle(web_db, since, collection)
            target = f"/admin/usage?since={quote(_iso(web_db, since))}" + (
                f"&collection_id={collection}" if collection else ""
            )
            answer = client.get(target)
            assert answer.status == 200
            assert json.dumps(answer.json) == json.dumps(wanted)
            assert wanted["by_collection"]
        web_db.insert(since, "ai", 0, '{"tokens_in": "7"}')
        web_db.insert("2999-01-01 00:00+00", "cas", 0, '{"size_bytes": 0.1}')
        web_db.refresh()
    compare(web_db.connection, "UTC")


def _iso(db: Database, instant: str) -> str:
    text = "select to_char(%s::timestamptz at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    return str(db.scalar(text, (instant,)))


def test_default_window_and_days(web_db: Database, client: Client) -> None:
    """Thirty days by default; integers of any size are clamped; a negative one is a day."""

    def events(parameters: str) -> int:
        answer = client.get(f"/admin/usage{parameters}")
        assert answer.status == 200, answer
        return sum(row["event_count"] for row in answer.json["daily"])

    web_db.insert("2020-01-01 00:00+00")
    assert events("") == events("?days=30") == 36
    assert events("?days=365") == events("?days=366") == events("?days=" + "9" * 5000) == events("?days=000366") == 40
    assert events("?days=1") == events("?days=0") == events("?days=-" + "9" * 5000) == events("?days=-0") == 2
    assert events("?days=%2B1&unknown=1&unknown=2&Days=x") == 2


def test_bytes_are_stable(web_db: Database, client: Client) -> None:
    """Equal answers are equal bytes, before and after a refresh."""
    first = client.get("/admin/usage?since=2020-01-01T00:00:00Z")
    assert first.body == client.get("/admin/usage?since=2020-01-01T00:00:00Z").body
    web_db.refresh()
    assert first.body == client.get("/admin/usage?since=2020-01-01T00:00:00Z").body
    assert first.headers["content-type"] == "application/json"


def test_empty(db: Database, new_client: Callable[..., Client]) -> None:
    """No usage: three empty lists."""
    db.execute("create table public.edges (source_id uuid, target_id uuid, edge_type text)")
    client = new_client(db, http_access_query="select $user is not null")
    assert client.get("/admin/usage").body == b'{"by_collection":[],"ai_drilldown":[],"daily":[]}'


WRONG = [
    "days=", "days=1.5", "days=1e3", "days=x", "days=1&days=1", "days= 1", "days=1_0", "days=%D9%A1", "days=0x1",
    "days=1%00", "days=%0A1", "days=--1", "days=%2B", "collection_id=", "collection_id=x", "collection_id=1",
    f"collection_id={COLLECTIONS[0]}x", f"collection_id={{{COLLECTIONS[0]}}}", f"collection_id=urn:uuid:{COLLECTIONS[0]}",
    f"collection_id={COLLECTIONS[0].replace('-', '')}", f"collection_id={COLLECTIONS[0]}&collection_id={COLLECTIONS[0]}",
    "collection_id=%27%3B%20drop%20table%20nodes%3B--", "collection_id=%00", f"collection_id={COLLECTIONS[0]}%0A",
    "since=2026-03-01", "since=2026-03-01T00:00:00", "since=2026-02-31T00:00:00Z", "since=", "since=now", "until=x",
    "since=2026-03-01T00:00:00 01:00", "since=infinity", "since=0001-01-01T00:00:00%2B01:00", "since=0000-01-01T00:00:00Z",
    "since=2026-03-01T00:00:00Z&until=2026-03-01T00:00:00Z", "receipt=", "receipt=1", "receipt=true&receipt=true",
]  # fmt: skip


def test_wrong_parameters(client: Client) -> None:
    """400, in one sentence; but first comes who asks, and whether they may."""
    for path, wrong in itertools.product(("/admin/usage", "/admin/usage/totals", "/admin/usage/daily"), WRONG):
        if path.endswith("/daily") and wrong.startswith("receipt"):
            continue  # which it has none of
        answer = client.get(f"{path}?{wrong}")
        assert answer.status == 400, wrong
        assert answer.error
        assert client.get(f"{path}?{wrong}", None).status == 401
        assert client.get(f"{path}?{wrong}", token(sub=str(STRANGER))).status == 403


def test_order_of_checks_with_the_schema_gone(web_db: Database, client: Client) -> None:
    """401 before 403 before 400 before 500, and a failure says nothing of the inside."""
    web_db.execute("drop schema usage cascade")
    assert client.get("/admin/usage?days=x", None).status == 401
    assert client.get("/admin/usage?days=x", token(sub=str(STRANGER))).status == 403
    assert client.get("/admin/usage?days=x").status == 400
    answer = client.get("/admin/usage")
    assert (answer.status, answer.body) == (500, b'{"error":"the request failed"}')
    event, facts = client.log.lines[-1]
    assert event == "request failed"
    assert "usage" in facts["problem"]
    web_db.execute("drop table public.edges")
    assert client.get("/admin/usage?days=x").status == 500


def test_receipt_on_request(client: Client) -> None:
    """A fourth key, last, only when asked for."""
    answer = client.get("/admin/usage?receipt=true").json
    assert list(answer) == [*KEYS, "receipt"]
    assert answer["receipt"]["exact"] is True
    assert answer["receipt"]["as_of"].endswith("+00:00")
    assert list(client.get("/admin/usage?receipt=false").json) == list(KEYS)
    assert list(client.get("/admin/usage/totals?receipt=true").json) == ["totals", "receipt"]


def test_etag(web_db: Database, client: Client) -> None:
    """304 to who has the answer, in any of the forms; a new event is a new tag at once, without a refresh."""
    target = "/admin/usage?since=2020-01-01T00:00:00Z"
    first = client.get(target)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    for given in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        answer = client.get(target, if_none_match=given)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(target, None, if_none_match=tag).status == 401
    assert client.get(target, token(sub=str(STRANGER)), if_none_match=tag).status == 403
    web_db.execute("update public.nodes set title = 'another' where id = %s", (COLLECTIONS[0],))
    renamed = client.get(target, if_none_match=tag)
    assert renamed.status == 200
    web_db.insert("2026-03-01 00:00+00")
    assert client.get(target, if_none_match=renamed.headers["etag"]).status == 200


def test_packed(client: Client) -> None:
    """gzip for who takes it: the same answer under the same tag."""
    plain, packed = client.get("/admin/usage"), client.get("/admin/usage", accept_encoding="br, gzip;q=0.5")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["etag"] == plain.headers["etag"]
    for refused in ("identity", "gzip;q=0", "br"):
        assert "content-encoding" not in client.get("/admin/usage", accept_encoding=refused).headers


def test_totals(web_db: Database, client: Client) -> None:
    """Sums by the keys asked for, equal to the overview's; an unknown key or grain is a clear error."""
    overview = client.get("/admin/usage?since=2020-01-01T00:00:00Z").json
    answer = client.get("/admin/usage/totals?by=collection,resource_type&since=2020-01-01T00:00:00Z").json["totals"]
    names = ("collection_id", "collection_title", "resource_type", "event_count", "total_value", "secondary_value")
    ours = sorted(repr([row[name] for name in names[:5]]) for row in answer)
    assert ours == sorted(repr([row[name] for name in names[:5]]) for row in overview["by_collection"])
    assert list(answer[0])[:3] == list(names[:3])
    daily = client.get("/admin/usage/totals?grain=day&by=resource_type&since=2020-01-01T00:00:00Z").json["totals"]
    assert sorted((row["starts_at"], row["event_count"], row["total_value"]) for row in daily) == sorted(
        (row["day"], row["event_count"], row["total_value"]) for row in overview["daily"]
    )
    whole = client.get("/admin/usage/totals").json["totals"]
    assert [row["event_count"] for row in whole] == [36]
    assert next(iter(whole[0])) == "event_count"
    filled = client.get("/admin/usage/totals?grain=day&fill=true&days=9").json["totals"]
    assert len(filled) >= 9
    for wrong, word in {
        "by=": "by", "by=x": "'x'", "by=collection,": "by", "by=collection,collection": "repeated", "by=collection&by=job_type": "repeated",
        "grain=hour": "hour", "grain=": "grain", "grain=year": "year", "fill=yes": "fill",
        "grain=day&fill=true&since=0001-01-01T00:00:00Z": "",
    }.items():  # fmt: skip
        answer = client.get(f"/admin/usage/totals?{wrong}")
        assert answer.status == 400, wrong
        assert word in answer.error


HOSTILE = [
    "'; drop table public.nodes; --",
    "<script>alert(1)</script>\u2028</script>",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202c",
    '"\\\t\n\x01{}[],\U0001f600',
    "%s %(user)s {0} $1",
]


def test_days_of_another_time_zone(web_db: Database, client: Client) -> None:
    """The raw query's days of that zone; without one those of the reporting zone; sealed days cannot be cut anew."""
    since = web_db.scalar("select (now() - interval '20 days')::text")
    web_db.insert(since, "ai", 0, '{"tokens_in": "7"}')
    target = f"/admin/usage/daily?since={quote(_iso(web_db, since))}"
    answer = client.get(target).json
    assert list(answer) == ["daily"]
    assert answer["daily"] == oracle(web_db, since)["daily"]
    for zone in ("Asia/Kathmandu", "America/St_Johns"):
        answer = client.get(f"{target}&time_zone={zone}&collection_id={COLLECTIONS[0]}").json
        wanted = web_db.execute(
            "select to_char(date_trunc('day', created_at, %(zone)s) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),"
            " resource_type, count(*) from public.resource_usage_log"
            " where created_at >= %(since)s and collection_id = %(collection)s group by 1, 2",
            {"zone": zone, "since": since, "collection": COLLECTIONS[0]},
        )
        found = [(row["day"], row["resource_type"], row["event_count"]) for row in answer["daily"]]
        assert sorted(found, key=str) == sorted(wanted, key=str)
        assert found
        assert [row[0] for row in found] == sorted([row[0] for row in found], reverse=True)
    for wrong in ("Atlantis/Poseidonis", "", "%00", "UTC&time_zone=UTC", "'"):
        assert client.get(f"{target}&time_zone={wrong}").status == 400, wrong
    web_db.execute("update usage.state set sealed_until = date_trunc('day', now(), 'UTC') - interval '2 days'")
    answer = client.get(f"{target}&time_zone=Asia/Kathmandu")
    assert answer.status == 400
    assert "are sealed" in answer.error
    assert client.get(target).status == 200


def test_text_is_text(web_db: Database, client: Client) -> None:
    """SQL, HTML, control and right-to-left characters in titles and keys come back as they are, and do nothing."""
    for n, text in enumerate(HOSTILE):
        web_db.execute("update public.nodes set title = %s where id = %s", (text, COLLECTIONS[n]))
        web_db.insert("2026-03-01 00:00+00", text, n, "{}")
        detail = json.dumps({"job_type": text, "model_level": text, "tokens_in": 1})
        web_db.insert("2026-03-01 00:00+00", "ai", n, detail)
    answer = client.get("/admin/usage?since=2026-03-01T00:00:00Z&until=2026-03-02T00:00:00Z").json
    assert {row["collection_title"] for row in answer["by_collection"]} == set(HOSTILE)
    assert {row["resource_type"] for row in answer["by_collection"]} == {*HOSTILE, "ai"}
    assert {row["job_type"] for row in answer["ai_drilldown"]} == set(HOSTILE)
    with snapshot(web_db.connection):
        since = "2026-03-01 00:00+00"
        assert json.dumps(answer) == json.dumps(oracle(web_db, since, until="2026-03-02 00:00+00"))
    headers = client.get("/admin/usage").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_ten_thousand_collections_and_a_title_of_a_megabyte(db: Database, new_client: Callable[..., Client]) -> None:
    """All of them, in order, the title whole."""
    db.execute(
        "create table public.edges (source_id uuid, target_id uuid, edge_type text);"
        "insert into public.nodes select md5(n::text)::uuid, 'Collection ' || n from generate_series(1, 10000) n;"
        "update public.nodes set title = repeat('x', 1024 * 1024) where id = md5('1')::uuid;"
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select md5(n::text)::uuid, 'cas', jsonb_build_object('size_bytes', n), now() from generate_series(1, 10000) n"
    )
    db.refresh()
    client = new_client(db, http_access_query="select $user is not null")
    rows = client.get("/admin/usage").json["by_collection"]
    assert [row["total_value"] for row in rows] == [float(n) for n in range(10000, 0, -1)]
    assert len(rows[-1]["collection_title"]) == 1024 * 1024
    packed = client.get("/admin/usage", accept_encoding="gzip")
    assert len(packed.body) < 1024 * 1024
