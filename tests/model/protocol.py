"""A model of the protocol, and a breadth-first search over all that can happen in it. docs/correctness.md argues from it.

What is modelled is what the argument rests on: transactions whose effects appear at once at their commit, snapshots, one
sequence that belongs to no snapshot, locks on the source and on the state's row. What is not: keys, values and SQL. An event
has an instant, a rollup a count for each instant: finer than days, so what holds here holds for any sum of them.

A process is a ``Program`` whose ``steps`` yields each state that can follow. The reader asks in *every* state, so it needs no
process; one that took its snapshot earlier is a program. ``flaws`` break a rule on purpose: each must be found out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

INSTANTS = 5
"""Instants 0 to 4."""

FLAWS = {
    "no wait": "a refresh folds without waiting for the writers that did not see its frontier",
    "newest writers left out": "a refresh waits for those of a snapshot, as pg_snapshot_xip() lists them",
    "sequence read before the id": "a writer compares with the sequence before it has a transaction id",
    "frontier of the snapshot": "a writer compares with the state row that it sees, instead of the sequence",
    "no mutex": "two refreshers read the sequence, and then set it",
    "covered kept": "late changes of the range that a step reads raw stay",
    "claim in a second snapshot": "late changes are added up in one snapshot and deleted in the next",
    "snapshot before the lock": "a fold takes its snapshot before it has the lock on the source",
    "state not locked": "two folds do not exclude each other",
    "marker unseen": "readers believe the rollups of a truncated source",
    "seal seen before it is there": "writers see the seal before the row has it",
    "purge without order": "raw events are deleted before writers see the seal",
    "repair without wait": "a repair turns trust on without waiting for the writers that nobody noted",
    "repair believed in any case": "a repair turns trust on, whatever was noticed meanwhile",
    "sequence mended unseen": "readers with an older snapshot cannot tell that the sequence was behind",
}
"""Rules that are broken on purpose."""


class World(NamedTuple):
    """What is committed: a snapshot is one of these."""

    raw: frozenset[tuple[str, int]]
    """Events: a name, and an instant."""
    late: frozenset[tuple[str, int, int]]
    """Late changes: a name of their own, a sign, an instant."""
    markers: frozenset[str]
    rollup: tuple[int, ...]
    frontier: int
    seal: int
    trusted: bool
    repair: str
    """The repair that may turn trust on; empty: none, it has to begin anew."""
    doubts: int
    """How many times a sequence left behind was noticed."""
    gaps: int
    """How many times the source changed in a way that no trigger saw: the fingerprint of what there is."""
    known: int
    """The fingerprint that the state has."""
    truncated: int
    """How many times, or rewritten: a snapshot of before reads an empty table."""
    kept: tuple[int, ...]
    """What the record of each instant has to be: not a part of the system, but of the proof."""


class Process(NamedTuple):
    """Where a process is, and what it remembers and holds."""

    at: str = "start"
    lock: str = ""
    """On the source: '', 'read' (ACCESS SHARE), 'write' (ROW EXCLUSIVE) or 'all' (ACCESS EXCLUSIVE)."""
    id: int = 0
    """Its transaction id, if it has one."""
    state_lock: bool = False
    mutex: bool = False
    snapshot: World | None = None
    pending: tuple[tuple[Any, ...], ...] = ()
    """What its commit will do."""
    memory: tuple[Any, ...] = ()
    turn: int = 0
    """Which of its transactions, or tries."""


class State(NamedTuple):
    """Everything at one moment."""

    world: World
    sequence: int
    seal_sequence: int
    doubt_sequence: int
    next_id: int
    last_done: int
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Program:
    """What a process does; ``flaws`` are those of the whole scenario."""

    def steps(self, state: State, me: int, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        """Yield what can happen next, with a name."""
        raise NotImplementedError


def _with(state: State, me: int, process: Process, **changes: Any) -> State:
    processes = (*state.processes[:me], process, *state.processes[me + 1 :])
    return state._replace(processes=processes, **changes)


def _may_lock(state: State, me: int, mode: str) -> bool:
    held = {other.lock for number, other in enumerate(state.processes) if number != me and other.lock}
    return not held if mode == "all" else "all" not in held


def _state_is_free(state: State, me: int, flaws: frozenset[str]) -> bool:
    return "state not locked" in flaws or not any(
        other.state_lock for number, other in enumerate(state.processes) if number != me
    )


def _added(rollup: tuple[int, ...], changes: Iterator[tuple[int, int]] | Sequence[tuple[int, int]]) -> tuple[int, ...]:
    counts = list(rollup)
    for instant, by in changes:
        counts[instant] += by
    return tuple(counts)


@dataclass(frozen=True)
class Writer(Program):
    """Transactions of the host, one after the other.

    Each is statements and an end: ``("insert", name, instant)``, ``("move", name, instant)``, ``("delete", name)``,
    ``("truncate",)``, ``("rewrite",)``, ``("unseen", name, instant)`` for an event that came by no trigger's way; then
    ``"commit"``, or ``"abort"``. A statement locks the source, gets an id, and only then looks at
    the sequence. Transactions are READ COMMITTED, which is the hardest: with an older snapshot they see fewer rows.
    """

    transactions: tuple[tuple[Any, ...], ...]

    def steps(self, state: State, me: int, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        process = state.processes[me]
        if process.turn >= len(self.transactions):
            return
        *statements, end = self.transactions[process.turn]
        done = len(process.memory)
        if process.at == "start":
            mode = "all" if {("truncate",), ("rewrite",)} & set(statements) else "write"
            if _may_lock(state, me, mode):
                seen = state.world.frontier
                process = process._replace(at="locked", lock=mode, pending=(("seen", seen, state.sequence),))
                yield "locks", _with(state, me, process)
        elif process.at == "locked":
            process = process._replace(at="writing", id=state.next_id)
            yield "gets an id", _with(state, me, process, next_id=state.next_id + 1)
        elif done < len(statements):
            found = self._statement(state, process, statements[done], f"{me}.{process.turn}.{done}", flaws)
            if found is not None:
                yield str(statements[done]), _with(state, me, found._replace(memory=(*process.memory, done)))
        else:
            world = self._committed(state.world, process) if end == "commit" else state.world
            last_done = max(state.last_done, process.id)
            process = Process(turn=process.turn + 1)
            yield str(end), _with(state, me, process, world=world, last_done=last_done)

    def _statement(
        self, state: State, process: Process, statement: Any, name: str, flaws: frozenset[str]
    ) -> Process | None:
        kind, *what = statement
        unlogged: dict[str, tuple[tuple[Any, ...], ...]] = {
            "truncate": (("marker", name), ("empty",)),
            "rewrite": (("rewritten",),),
            "unseen": (("add", tuple(what)), ("gap",)),
        }
        if kind in unlogged:
            return process._replace(pending=(*process.pending, *unlogged[kind]))
        _, seen_row, seen_sequence = process.pending[0]
        frontier = state.sequence
        if "frontier of the snapshot" in flaws:
            frontier = seen_row
        elif "sequence read before the id" in flaws:
            frontier = seen_sequence
        event = str(what[0])
        if kind == "insert":
            return self._logged(process, name, frontier, state.seal_sequence, None, (event, int(what[1])))
        held = any(
            change[0] in {"add", "remove"} and change[1][0] == event
            for other in state.processes
            if other is not process
            for change in other.pending
        )
        if held:
            return None  # waits for a row lock
        mine = {change[1] for change in process.pending if change[0] == "add"}
        old = next((one for one in (*state.world.raw, *mine) if one[0] == event), None)
        if old is None:
            return process
        new = (event, int(what[1])) if kind == "move" else None
        return self._logged(process, name, frontier, state.seal_sequence, old, new)

    def _logged(
        self,
        process: Process,
        name: str,
        frontier: int,
        seal: int,
        old: tuple[str, int] | None,
        new: tuple[str, int] | None,
    ) -> Process:
        changes: list[tuple[Any, ...]] = []
        if old is not None:
            changes.append(("remove", old))
            if seal <= old[1] < frontier:
                changes.append(("late", (name + "-", -1, old[1])))
        if new is not None:
            changes.append(("add", new))
            if new[1] < frontier and (old is None or old[1] >= seal or new[1] >= seal):
                changes.append(("late", (name + "+", 1, new[1])))
        return process._replace(pending=(*process.pending, *changes))

    def _committed(self, world: World, process: Process) -> World:
        raw, late, markers, kept = set(world.raw), set(world.late), set(world.markers), world.kept
        truncated, gaps = world.truncated, world.gaps
        for kind, *what in process.pending:
            if kind == "add":
                raw.add(what[0])
                kept = _added(kept, [(what[0][1], 1)])
            elif kind == "remove":
                raw.discard(what[0])
                at: int = what[0][1]
                # Below the seal the record stays, unless the change was logged before there was one.
                if at >= world.seal or any(
                    change[0] == "late" and change[1][1:] == (-1, at) for change in process.pending
                ):
                    kept = _added(kept, [(at, -1)])
            elif kind == "late":
                late.add(what[0])
            elif kind == "marker":
                markers.add(what[0])
            elif kind == "empty":
                kept = tuple(n if instant < world.seal else 0 for instant, n in enumerate(kept))
                raw, truncated = set(), truncated + 1
            elif kind == "rewritten":
                truncated += 1
            elif kind == "gap":
                gaps += 1
        return world._replace(
            raw=frozenset(raw),
            late=frozenset(late),
            markers=frozenset(markers),
            kept=kept,
            truncated=truncated,
            gaps=gaps,
        )


@dataclass(frozen=True)
class Refresher(Program):
    """Advance to ``target``, wait, fold in steps; may be killed, or stop waiting, at any time.

    If the sequence was left behind, it notes that first, and repairs afterwards.
    """

    target: int
    steps_of: int = INSTANTS
    """Instants that a step reads at most."""
    partial: bool = False
    """A step may claim some late changes only."""
    impatient: bool = False
    killable: bool = False
    chunks: tuple[int, ...] = (INSTANTS,)
    """Where the parts end that a repair compares."""

    def steps(self, state: State, me: int, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        process = state.processes[me]
        if process.at == "done":
            return
        if self.killable and process.at != "start":
            yield "is killed", _with(state, me, Process(at="done", turn=process.turn))
        yield from getattr(self, "_" + process.at.replace(" ", "_"))(state, me, process, flaws)

    def _start(self, state: State, me: int, process: Process, _flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if state.sequence >= state.world.frontier and state.doubt_sequence == state.world.doubts:
            unseen = state.world.gaps != state.world.known or not state.world.trusted
            yield "begins", _with(state, me, process._replace(at="to advance", memory=("mend" if unseen else "fold",)))
        else:
            process = process._replace(at="behind")
            yield "finds the sequence behind", _with(state, me, process, doubt_sequence=state.doubt_sequence + 1)

    def _behind(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if _state_is_free(state, me, flaws):
            world = state.world._replace(trusted=False, repair="", doubts=state.doubt_sequence)
            yield "notes it", _with(state, me, process._replace(at="to advance", memory=("mend",)), world=world)

    def _to_advance(
        self, state: State, me: int, process: Process, flaws: frozenset[str]
    ) -> Iterator[tuple[str, State]]:
        if "no mutex" in flaws or not any(other.mutex for other in state.processes):
            value = max(self.target, state.sequence, state.world.frontier)
            process = process._replace(at="advancing", mutex=True, pending=(("to", value),))
            yield f"reads the sequence, for {value}", _with(state, me, process)

    def _advancing(
        self, state: State, me: int, process: Process, _flaws: frozenset[str]
    ) -> Iterator[tuple[str, State]]:
        value = process.pending[0][1]
        process = process._replace(at="to wait", mutex=False)
        yield f"sets the sequence to {value}", _with(state, me, process, sequence=value)

    def _to_wait(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        ids = frozenset(
            other.id
            for other in state.processes
            if other.lock in {"write", "all"}
            and other.id
            and not ("newest writers left out" in flaws and other.id > state.last_done)
        )
        skipped = "no wait" in flaws or ("repair without wait" in flaws and process.memory[0] != "fold")
        process = process._replace(at="waiting", pending=(*process.pending, ("for", frozenset() if skipped else ids)))
        yield f"looks who writes: {sorted(ids)}", _with(state, me, process)

    def _waiting(self, state: State, me: int, process: Process, _flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        _, to = process.pending[0]
        ids: frozenset[int] = process.pending[1][1]
        then = {"fold": "to fold", "mend": "to repair", "repair": "to compare"}[str(process.memory[0])]
        if not ids & {other.id for other in state.processes}:
            memory = ("fold", to) if then == "to fold" else (*process.memory, to, 0)
            yield "has waited", _with(state, me, process._replace(at=then, pending=(), memory=memory))
        elif self.impatient:  # a repair is left to the next refresh; this one folds late changes only
            yield "stops waiting", _with(state, me, process._replace(at="to fold", pending=(), memory=("fold", -1)))

    # A transaction that folds: lock, snapshot, commit.

    def _to_fold(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        yield from self._begin(state, me, process, flaws, "folding")

    def _begin(
        self, state: State, me: int, process: Process, flaws: frozenset[str], then: str
    ) -> Iterator[tuple[str, State]]:
        lock_first = "snapshot before the lock" not in flaws
        if lock_first != bool(process.lock or process.snapshot):
            if lock_first and _may_lock(state, me, "read"):
                yield "locks the source", _with(state, me, process._replace(lock="read"))
            elif not lock_first and process.snapshot and _may_lock(state, me, "read"):
                yield "locks the source", _with(state, me, process._replace(lock="read", at=then))
        elif _state_is_free(state, me, flaws):
            process = process._replace(snapshot=state.world, state_lock=True, at=then if lock_first else process.at)
            yield "takes its snapshot", _with(state, me, process)

    def _folding(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        seen = process.snapshot
        assert seen is not None
        now = state.world
        if seen.markers:
            unsealed = {change for change in seen.late if change[2] >= seen.seal}
            yield "starts anew", self._commit(
                state, me, process,
                now._replace(
                    rollup=tuple(n if at < seen.seal else 0 for at, n in enumerate(now.rollup)),
                    late=now.late - unsealed, markers=now.markers - seen.markers, frontier=seen.seal,
                    trusted=now.trusted or now.gaps == now.known, repair="",
                ),
                "to fold",
            )  # fmt: skip
            return
        target = int(process.memory[1])
        upper = max(seen.frontier, min(target, seen.frontier + self.steps_of))
        read = seen.raw if seen.truncated == now.truncated else frozenset()
        below = sorted({change[2] for change in seen.late if change[2] < seen.frontier})
        for limit in {seen.frontier, *([below[0] + 1] if self.partial and below else [])}:
            claimed = {change for change in seen.late if change[2] < limit}
            covered = {change for change in seen.late if seen.frontier <= change[2] < upper}
            dropped = claimed | (set() if "covered kept" in flaws else covered)
            if "claim in a second snapshot" in flaws:
                dropped |= {change for change in now.late if change[2] < limit}
            changes = [(change[2], change[1]) for change in claimed]
            changes += [(at, 1) for _, at in read if seen.frontier <= at < upper]
            more = upper < target or limit < seen.frontier
            yield f"folds up to {upper}, late ones below {limit}", self._commit(
                state, me, process,
                now._replace(rollup=_added(now.rollup, changes), late=now.late - dropped, frontier=upper),
                "to fold" if more else "done",
            )  # fmt: skip

    @staticmethod
    def _commit(state: State, me: int, process: Process, world: World, then: str) -> State:
        return _with(state, me, Process(at=then, turn=process.turn, memory=process.memory), world=world)

    # A repair of everything, by a refresh that found the sequence behind.

    def _to_repair(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if _state_is_free(state, me, flaws):
            world = state.world._replace(trusted=False, repair=f"{me}", known=state.world.gaps)
            yield (
                "begins a repair",
                _with(state, me, process._replace(at="to advance", memory=("repair",)), world=world),
            )

    def _to_compare(
        self, state: State, me: int, process: Process, flaws: frozenset[str]
    ) -> Iterator[tuple[str, State]]:
        yield from self._begin(state, me, process, flaws, "comparing")

    def _comparing(
        self, state: State, me: int, process: Process, _flaws: frozenset[str]
    ) -> Iterator[tuple[str, State]]:
        seen = process.snapshot
        assert seen is not None
        kind, to, chunk = process.memory
        if seen.markers:
            process = process._replace(memory=("fold", to))
            yield "finds it truncated", self._commit(state, me, process, state.world, "to fold")
            return
        first = self.chunks[chunk - 1] if chunk else 0
        span = range(max(first, seen.seal), min(self.chunks[chunk], seen.frontier))
        expected = dict.fromkeys(span, 0)
        for _, at in seen.raw:
            if at in expected:
                expected[at] += 1
        for _, sign, at in seen.late:
            if at in expected:
                expected[at] -= sign
        world = state.world._replace(
            rollup=_added(state.world.rollup, [(at, n - seen.rollup[at]) for at, n in expected.items()])
        )
        last = chunk == len(self.chunks) - 1
        process = process._replace(memory=("believe", to) if last else (kind, to, chunk + 1))
        yield "repairs", self._commit(state, me, process, world, "believing" if last else "to compare")

    def _believing(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if _state_is_free(state, me, flaws):
            mine = state.world.repair == f"{me}" and state.world.gaps == state.world.known
            mine = mine or "repair believed in any case" in flaws
            world = state.world._replace(trusted=True, repair="") if mine else state.world
            process = process._replace(at="to fold", memory=("fold", process.memory[1]))
            yield "believes" if mine else "does not believe", _with(state, me, process, world=world)


@dataclass(frozen=True)
class Purger(Program):
    """Seal below ``cut``, if it is folded and there is no doubt; let writers see it; delete the raw events below it."""

    cut: int

    def steps(self, state: State, me: int, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        process = state.processes[me]
        if process.at != "done":
            yield from getattr(self, "_" + process.at.replace(" ", "_"))(state, me, process, flaws)

    def _start(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if state.world.frontier < self.cut:
            return
        process = process._replace(at="to seal")
        if "seal seen before it is there" in flaws:
            yield "lets writers see it", _with(state, me, process, seal_sequence=self.cut)
        elif _in_order(state):
            yield "begins", _with(state, me, process)

    def _to_seal(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        if not process.lock:
            if _may_lock(state, me, "read"):
                yield "locks the source", _with(state, me, process._replace(lock="read"))
        elif _state_is_free(state, me, flaws):
            process = process._replace(at="sealing", snapshot=state.world, state_lock=True)
            yield "takes its snapshot", _with(state, me, process)

    def _sealing(self, state: State, me: int, process: Process, _flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        seen, world = process.snapshot, state.world
        assert seen is not None
        if seen.markers or not seen.trusted or seen.gaps != seen.known or seen.frontier < self.cut:
            yield "is refused", _with(state, me, Process(at="done"))
            return
        folded = {change for change in seen.late if change[2] < self.cut}
        world = world._replace(
            rollup=_added(world.rollup, [(change[2], change[1]) for change in folded]),
            late=world.late - folded,
            seal=self.cut,
        )
        yield "seals", _with(state, me, Process(at="sealed"), world=world)

    def _sealed(self, state: State, me: int, _process: Process, _flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        yield "is killed", _with(state, me, Process(at="to delete"))
        yield "lets writers see it", _with(state, me, Process(at="to delete"), seal_sequence=self.cut)

    def _to_delete(self, state: State, me: int, process: Process, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        seen_by_writers = state.seal_sequence >= state.world.seal or "purge without order" in flaws
        if not (seen_by_writers and _in_order(state)):
            process = Process(at="to delete")
            yield "lets writers see it", _with(state, me, process, seal_sequence=state.world.seal)
        elif _may_lock(state, me, "write") and _state_is_free(state, me, flaws):
            process = process._replace(at="deleting", lock="write", id=state.next_id, state_lock=True)
            yield "begins to delete", _with(state, me, process, next_id=state.next_id + 1)

    def _deleting(self, state: State, me: int, process: Process, _flaws: frozenset[str]) -> Iterator[tuple[str, State]]:
        world = state.world
        if not process.pending:
            changes: list[tuple[Any, ...]] = [("begun",)]
            for event in sorted(event for event in world.raw if event[1] < world.seal):
                changes.append(("remove", event))
                if state.seal_sequence <= event[1] < state.sequence:
                    changes.append(("late", (event[0] + "-purged", -1, event[1])))
            yield "deletes", _with(state, me, process._replace(pending=tuple(changes)))
            return
        gone = {change[1] for change in process.pending if change[0] == "remove"}
        late = {change[1] for change in process.pending if change[0] == "late"}
        world = world._replace(raw=world.raw - gone, late=world.late | late)
        last_done = max(state.last_done, process.id)
        yield "commits", _with(state, me, Process(at="done"), world=world, last_done=last_done)


@dataclass(frozen=True)
class OldReader(Program):
    """A reader in a transaction of its own: the snapshot first, much later the question."""

    def steps(self, state: State, me: int, flaws: frozenset[str]) -> Iterator[tuple[str, State]]:  # noqa: ARG002
        process = state.processes[me]
        if process.at == "start":
            yield "takes its snapshot", _with(state, me, process._replace(at="reading", snapshot=state.world))
        elif process.at == "reading":  # the sequence of writers first, the one of doubts afterwards
            process = process._replace(at="doubting", memory=(state.sequence,))
            yield "reads the sequence", _with(state, me, process)
        elif process.at == "doubting":
            process = process._replace(at="answers", memory=(*process.memory, state.doubt_sequence))
            yield "reads the sequence of doubts", _with(state, me, process)


def _in_order(state: State) -> bool:
    world = state.world
    return world.trusted and not world.markers and world.gaps == world.known and state.sequence >= world.frontier


def wrong(world: World, sequence: int, doubt_sequence: int, flaws: frozenset[str]) -> str:
    """Return what a reader of this snapshot gets wrong; empty: nothing."""
    believed = (
        world.trusted
        and world.gaps == world.known
        and (not world.markers or "marker unseen" in flaws)
        and sequence >= world.frontier
        and (doubt_sequence == world.doubts or "sequence mended unseen" in flaws)
    )
    top = world.frontier if believed else world.seal
    for at in range(INSTANTS):
        answer = world.rollup[at] if at < top else sum(instant == at for _, instant in world.raw)
        answer += sum(sign for _, sign, instant in world.late if instant == at and at < top)
        right = sum(instant == at for _, instant in world.raw) if at >= world.seal else world.kept[at]
        if answer != right:
            return f"at {at}: {answer} for {right}"
    return ""


@dataclass(frozen=True)
class Scenario:
    """Programs side by side, from a world in which some is folded."""

    name: str
    programs: tuple[Program, ...]
    raw: tuple[tuple[str, int], ...] = (("a", 0),)
    frontier: int = 1
    sequence: int | None = None
    """What writers see at the start; None: the frontier. Less: a restore left it behind."""
    missing: int = 0
    """By how many the rollup is wrong at instant 0 that a sequence left behind hides: events that nobody logged."""

    def start(self) -> State:
        """Return the state that everything begins with."""
        counts = _added((0,) * INSTANTS, [(at, 1) for _, at in self.raw])
        rollup = tuple(n if at < self.frontier else 0 for at, n in enumerate(counts))
        world = World(
            frozenset(self.raw), frozenset(), frozenset(), _added(rollup, [(0, -self.missing)]), self.frontier, 0, True,
            "", 0, 0, 0, 0, counts,
        )  # fmt: skip
        sequence = self.frontier if self.sequence is None else self.sequence
        return State(world, sequence, 0, 0, 1, 0, (Process(),) * len(self.programs))


@dataclass(frozen=True)
class Found:
    """What a search found: how many states, and the way to a wrong answer, if there is one."""

    states: int
    wrong: str
    path: tuple[str, ...]


def explore(scenario: Scenario, flaws: frozenset[str] = frozenset(), limit: int = 2_000_000) -> Found:
    """Visit every state that can be reached, nearest first; raise OverflowError for more than ``limit``."""
    start = scenario.start()
    before: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    checked: set[tuple[World, int, int]] = set()
    while queue:
        state = queue.popleft()
        asked = [(state.world, state.sequence, state.doubt_sequence)]
        for process in state.processes:
            if process.at == "answers":
                assert process.snapshot is not None
                asked.append((process.snapshot, *process.memory))
        for question in asked:
            if question not in checked:
                checked.add(question)
                if answer := wrong(*question, flaws):
                    return Found(len(before), answer, _path(before, state))
        for me, program in enumerate(scenario.programs):
            for label, after in program.steps(state, me, flaws):
                if after not in before:
                    before[after] = (state, f"{type(program).__name__} {me} {label}")
                    queue.append(after)
        if len(before) > limit:
            raise OverflowError(f"{scenario.name}: more than {limit:,} states")
    return Found(len(before), "", ())


def _path(before: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    path: list[str] = []
    while (came := before[state]) is not None:
        state, label = came
        path.append(label)
    return tuple(reversed(path))
