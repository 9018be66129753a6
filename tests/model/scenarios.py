"""What is explored: two writers, two refreshers and readers at a time, with all that may befall them."""

from __future__ import annotations

from itertools import combinations_with_replacement

from tests.model.protocol import OldReader, Purger, Refresher, Scenario, Writer

# Against a frontier of 1 that moves to 2 and 3: late ones at 0, of the range that a step reads at 1 and 2, of the future at 4.
_INSERTS = [
    (("insert", "n", at), end) for at, end in ((0, "commit"), (1, "commit"), (2, "commit"), (4, "commit"), (1, "abort"))
]
_CHANGES = [
    (("delete", "a"), "commit"),
    (("move", "a", 2), "commit"),
    (("move", "b", 0), "commit"),
    (("insert", "n", 1), ("move", "n", 0), "commit"),
    (("insert", "n", 0), ("delete", "n"), "abort"),
]
_TRUNCATE = (("truncate",), "commit")


def _named(transaction: tuple[object, ...], name: str) -> tuple[object, ...]:
    """Return it with an event of its own, so that two writers insert two."""
    return tuple(
        (*step[:1], name, *step[2:]) if isinstance(step, tuple) and step[1:2] == ("n",) else step
        for step in transaction
    )


def _pairs() -> list[Scenario]:
    """Return any two transactions side by side, beside two refreshers, of which one is impatient, and may be killed."""
    return [
        Scenario(
            f"{first} beside {second}",
            (
                Writer((_named(first, "n"),)),
                Writer((_named(second, "m"),)),
                Refresher(2, killable=True),
                Refresher(3, impatient=True),
            ),
            raw=(("a", 0), ("b", 1)),
        )
        for first, second in combinations_with_replacement([*_INSERTS, *_CHANGES], 2)
    ]


QUICK = [
    Scenario(
        "a late event, and one of the range just read",
        (
            Writer(((("insert", "n", 0), "commit"),)),
            Writer(((("insert", "m", 1), "commit"),)),
            Refresher(2),
            Refresher(3),
        ),
    ),
    Scenario(
        "a writer of two transactions, and one that aborts",
        (
            Writer(((("insert", "n", 1), "commit"), (("move", "n", 0), "commit"))),
            Writer(((("insert", "m", 1), "abort"),)),
            Refresher(3, steps_of=1),
        ),
    ),
    Scenario(
        "several late changes, of which a step claims some",
        (
            Writer(((("insert", "n", 0), ("insert", "o", 1), "commit"),)),
            Writer(((("delete", "a"), "commit"),)),
            Refresher(3, partial=True, steps_of=1, impatient=True),
        ),
        frontier=2,
    ),
    Scenario(
        "a writer that stays open beyond the patience of a refresh",
        (
            Writer(((("insert", "n", 1), "commit"),)),
            Writer(((("delete", "a"), "commit"),)),
            Refresher(2, impatient=True, killable=True),
            Refresher(3),
        ),
    ),
    Scenario(
        "a TRUNCATE while a refresh runs",
        (Writer((_TRUNCATE,)), Writer(((("insert", "n", 0), "commit"), (("insert", "m", 2), "commit"))), Refresher(3)),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "a rewrite of the table while a refresh runs",
        (Writer(((("rewrite",), "commit"),)), Writer(((("insert", "n", 1), "commit"),)), Refresher(3), Refresher(3)),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "three refreshers that overtake each other",
        (Writer(((("insert", "n", 2), "commit"),)), Refresher(2), Refresher(3), Refresher(3)),
    ),
    Scenario(
        "events that no trigger saw, while two refreshers repair",
        (
            Writer(((("unseen", "n", 0), "commit"), (("unseen", "m", 0), "commit"))),
            Refresher(2, chunks=(1, 5)),
            Refresher(3),
        ),
    ),
    Scenario(
        "a seal and a purge, while a late event comes",
        (
            Writer(((("insert", "n", 0), "commit"), (("insert", "m", 1), "commit"))),
            Refresher(3),
            Purger(1),
        ),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "an event changed while the seal moves over it",
        (Writer(((("delete", "a"), "commit"),)), Refresher(3), Purger(1)),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "a sequence that a restore left behind, and a reader of before",
        (
            Writer(((("insert", "n", 1), "commit"), (("insert", "m", 2), "commit"))),
            Refresher(3, chunks=(1, 5)),
            OldReader(),
        ),
        raw=(("a", 0), ("b", 1)),
        frontier=2,
        sequence=0,
    ),
    Scenario(
        "a sequence left behind, and two refreshers that repair",
        (Writer(((("insert", "n", 1), "commit"),)), Refresher(3, chunks=(1, 5)), Refresher(3)),
        raw=(("a", 0), ("b", 1)),
        frontier=2,
        sequence=0,
        missing=1,
    ),
]
"""Those that each flaw is tried in, and that run always."""

THOROUGH = [
    *_pairs(),
    Scenario(
        "a TRUNCATE between two refreshers",
        (Writer((_TRUNCATE,)), Writer(((("insert", "n", 1), "commit"),)), Refresher(2, killable=True), Refresher(3)),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "a TRUNCATE after a seal",
        (Writer((_TRUNCATE,)), Writer(((("insert", "n", 0), "commit"),)), Refresher(3), Purger(1)),
        raw=(("a", 0), ("b", 1)),
    ),
    Scenario(
        "a sequence left behind, a reader of before, two refreshers, of which one gives up, and a TRUNCATE",
        (
            Writer(((("insert", "n", 1), "commit"), _TRUNCATE)),
            Refresher(3, impatient=True, killable=True),
            Refresher(3, chunks=(1, 5)),
        ),
        raw=(("a", 0), ("b", 1)),
        frontier=2,
        sequence=0,
    ),
    Scenario(
        "three steps, three late changes, two refreshers that claim some",
        (
            Writer(((("insert", "n", 0), ("move", "b", 0), "commit"), (("delete", "a"), "commit"))),
            Refresher(4, partial=True, steps_of=1),
            Refresher(3, partial=True, steps_of=1),
        ),
        raw=(("a", 0), ("b", 1)),
        frontier=2,
    ),
]
"""What takes minutes: by hand, and nightly. ``python -m tests.model``"""
