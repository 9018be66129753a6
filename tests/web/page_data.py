"""What the database of the page's tests holds: events of all kinds, and texts that a page might trip over."""

from __future__ import annotations

import json
from typing import Any

from tests.harness import COLLECTIONS, Database

HTML_TITLE = "<img src=x onerror=\"document.title='owned'\"><b>Bold</b> & 'quoted'; drop table nodes"
ARABIC_TITLE = "\u202eمكتبة \u2067الأرشيف (2026) <i>"  # noqa: RUF001 -- right to left
LONG_TITLE = "Long " + "words and more words " * 50_000
LONG_ID = "00000000-0000-0000-0000-000000000008"
HTML_JOB = "<script>document.title='owned'</script>"
BEYOND_DOUBLES = 2**53 + 1


def fill(db: Database) -> None:
    """Fill the source. No event lies within half an hour of the edge of a window of whole days."""
    for number, title in ((1, HTML_TITLE), (2, ARABIC_TITLE)):
        db.execute("update public.nodes set title = %s where id = %s", (title, COLLECTIONS[number]))
    # A row for each type of it would be a megabyte each.
    db.execute("insert into public.nodes values (%s, %s)", (LONG_ID, LONG_TITLE))
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        """ values (%s, 'cas', '{"size_bytes": 3}', now() - interval '90 minutes')""",
        (LONG_ID,),
    )
    types = ["ai", "whisper", "cas", "ai", "bandwidth", "export", "livekit", "ai", "tts", None]
    for n in range(260):
        kind = types[n % len(types)]
        detail: dict[str, Any] = {
            "tokens_in": 1000 + 37 * n, "tokens_out": 3 * n, "duration_seconds": 61.37 * n, "size_bytes": 7**(n % 20),
            "characters": 90 * n, "participant_minutes": n / 4, "job_type": ["chat", None, "embed", HTML_JOB][n % 4],
            "model_level": ["high", "low", None][n % 3],
        }  # fmt: skip
        if n % 50 == 9:
            detail = dict.fromkeys(detail, "n/a")
        _insert(db, f"{n * 7 + 1} hours 30 minutes", kind, None if n % 9 == 8 else n % 7, detail)
    for n in range(3):
        _insert(db, f"{n} days 90 minutes", "ai", 4, {"tokens_in": BEYOND_DOUBLES, "job_type": "vast"})
    db.refresh()
    for n in range(12):
        _insert(db, f"{n + 2} days 150 minutes", "cas", 0, {"size_bytes": 10**15 + n})
    db.insert("2999-01-01 00:00+00", "cas", 0, '{"size_bytes": 5}')
    db.insert("12000-01-01 00:00+00", "cas", 0, '{"size_bytes": 7}')


def _insert(db: Database, ago: str, kind: str | None, collection: int | None, detail: dict[str, Any]) -> None:
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " values (%s, %s, %s, now() - %s::interval)",
        (None if collection is None else COLLECTIONS[collection], kind, json.dumps(detail), ago),
    )
