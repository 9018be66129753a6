"""A hundred clients at once, while writers write and refreshes run: no error, and no mixed snapshot in any answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.harness import COLLECTIONS, Database
from tests.web.conftest import SECRET, Answer, Server, serving

CLIENTS = 100
ASKS = 3


def adds_up(answer: Any) -> None:
    """Assert that the three sections are of one snapshot: the same events, by type and by collection."""
    by_collection: dict[Any, int] = {}
    daily: dict[Any, int] = {}
    for row in answer["by_collection"]:
        by_collection[row["resource_type"]] = by_collection.get(row["resource_type"], 0) + row["event_count"]
    for row in answer["daily"]:
        daily[row["resource_type"]] = daily.get(row["resource_type"], 0) + row["event_count"]
    assert by_collection == daily
    assert sum(row["event_count"] for row in answer["ai_drilldown"]) == daily.get("ai", 0)
    # The writers insert an event of each type at once, so every snapshot has as many of one as of the other.
    assert len(set(daily.values())) == 1
    tokens = sum(row["total_value"] for row in answer["by_collection"] if row["resource_type"] == "ai")
    assert tokens == sum(row["tokens_in"] for row in answer["ai_drilldown"]) == 2 * daily["ai"]


def write(db: Database, stop: threading.Event) -> None:
    connection = db.connect()
    n = 0
    while not stop.is_set():
        n += 1
        connection.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
            ' select %s, kind, \'{"tokens_in": 2, "size_bytes": 1}\', now() - make_interval(hours => %s)'
            " from unnest('{ai,cas}'::text[]) kind",
            (COLLECTIONS[n % 7], 30 * (n % 20)),
        )
        stop.wait(0.005)


def refresh(db: Database, stop: threading.Event) -> None:
    while not stop.is_set():
        db.refresh(wait_timeout=0)
        stop.wait(0.1)


def timed(server: Server, target: str) -> tuple[float, Answer]:
    begun = time.perf_counter()
    answer = server.get(target)
    return time.perf_counter() - begun, answer


def test_a_hundred_clients(web_db: Database) -> None:
    """Everybody gets 200 while all may wait, and 503 is all that else may come; p99 is printed."""
    web_db.execute("delete from public.resource_usage_log")
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 3) as threads:
        work = [
            threads.submit(write, web_db, stop),
            threads.submit(write, web_db, stop),
            threads.submit(refresh, web_db, stop),
        ]
        try:
            while web_db.scalar("select count(*) from public.resource_usage_log") < 200:
                time.sleep(0.02)
            for waiting, allowed in ((CLIENTS, {200}), (10, {200, 503})):
                limits = ("--http-max-reads=4", f"--http-max-waiting={waiting}", "--http-wait=60")
                with serving(web_db.dsn, *limits, AGGREGATOR_HTTP_JWT_SECRET=SECRET) as server:
                    asked = [
                        threads.submit(timed, server, "/admin/usage?days=365&receipt=true" if n % 2 else "/admin/usage")
                        for n in range(CLIENTS * ASKS)
                    ]
                    answers = [one.result() for one in asked]
                for _, answer in answers:
                    assert answer.status in allowed, answer
                    if answer.status == 200:
                        adds_up(answer.json)
                seconds = sorted(took for took, answer in answers if answer.status == 200)
                print(
                    f"\n{CLIENTS} clients, {waiting} may wait: {len(seconds)} of {len(answers)} answered,"
                    f" p50 {seconds[len(seconds) // 2]:.3f} s, p99 {seconds[int(len(seconds) * 0.99)]:.3f} s"
                )
                assert seconds
        finally:
            stop.set()
        for one in work:
            one.result()
    web_db.compare()
