"""Random programs over the outbox, each step compared with a model in a dict.

The model knows nothing of SQL: it is what the outbox promises, in as few words
as possible. A failing program prints its seed; OUTBOXD_SEED begins with it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from outboxd.clock import FakeClock, WindowClock
from outboxd.errors import UnknownId
from outboxd.outbox.listing import read_page
from outboxd.outbox.model import Attempt, EntryChange, EntryFilter, Incoming, Settlement
from outboxd.outbox.sqlite.engine import SqliteEngine

KEY_WINDOW_S = 600.0
HORIZON_S = 300.0
STEPS = 50


class Known(NamedTuple):
    """A remembered dedup key."""

    id: str
    until: int


class ModelEntry:
    """An entry as the promise has it."""

    def __init__(self, seq: int, id: str, body: bytes, key: str | None) -> None:
        self.seq, self.id, self.body, self.key = seq, id, body, key
        self.state = "pending"
        self.held = False
        self.due_at = 0
        self.ended_at = 0
        self.doubtful = False
        self.attempts = 0


class Model:
    """The outbox in two dicts."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.entries: dict[str, ModelEntry] = {}
        self.keys: dict[str, Known] = {}
        self.opened()

    def opened(self) -> None:
        """A process knows of no step of the clock before it."""
        self.key_clock = WindowClock(self.clock, round(KEY_WINDOW_S * 1000))

    def of_seq(self, seq: int) -> ModelEntry | None:
        return next((e for e in self.entries.values() if e.seq == seq), None)

    def known(self, key: str | None) -> Known | None:
        found = self.keys.get(key) if key is not None else None
        return found if found is not None and found.until > self.key_clock.now_ms() else None

    def sendable(self) -> set[int]:
        now = self.clock.wall_ms()
        return {
            e.seq
            for e in self.entries.values()
            if e.state == "pending"
            and not e.held
            and (e.due_at <= now or e.due_at > now + HORIZON_S * 1000)
        }

    def counts(self) -> tuple[int, int, int, int]:
        states = [e.state for e in self.entries.values()]
        held = sum(e.held for e in self.entries.values())
        return (*(states.count(s) for s in ("pending", "delivered", "dead")), held)


class Program:
    """One engine, one model, one random source."""

    def __init__(self, path: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.path = path
        self.model = Model(self.clock)
        self.engine = self._open()
        self.number = 0

    def _open(self) -> SqliteEngine:
        self.model.opened()
        return SqliteEngine(self.path, self.clock, KEY_WINDOW_S)

    def run(self) -> None:
        steps = [
            self.accept, self.accept, self.accept, self.settle, self.settle, self.fail,
            self.hold, self.release, self.retry, self.drop, self.prune, self.advance,
            self.jump, self.crash, self.crash_in_flight, self.rolled_back, self.unknown_id,
        ]  # fmt: skip
        try:
            for number in range(STEPS):
                self.random.choice(steps)()
                assert self.engine.counts() == self.model.counts()
                if number % 5 == 0:
                    self.compare()
            self.engine.close()
            self.engine = self._open()
            self.compare()
        finally:
            self.engine.connection.close()

    # --- steps ---

    def accept(self) -> None:
        items, wanted = [], []
        for _ in range(self.random.choice((1, 1, 2, 5, 70))):
            self.number += 1
            key = self.random.choice((None, None, f"k{self.random.randrange(12)}"))
            body = b'{"eventType":"t","summary":"%d","severity":"information"}' % self.number
            items.append(
                Incoming(body, "t", "information", "", "socket", self.clock.wall_ms(),
                         dedup_key=key)
            )  # fmt: skip
            wanted.append((body, key))
        seq = self.engine._next_seq
        with self.engine.transaction():
            receipts = self.engine.accept(items)
        for (body, key), receipt in zip(wanted, receipts, strict=True):
            known = self.model.known(key)
            if known is not None:
                first = self.model.entries.get(known.id)
                state = first.state if first is not None else "delivered"
                assert receipt[:3] == (known.id, "duplicate", state)
                continue
            assert receipt.status == "accepted"
            self.model.entries[receipt.id] = ModelEntry(seq, receipt.id, body, key)
            seq += 1
            if key is not None:
                until = self.clock.wall_ms() + round(KEY_WINDOW_S * 1000)
                self.model.keys[key] = Known(receipt.id, until)

    def _some(self, state: str | None = None) -> ModelEntry | None:
        found = [e for e in self.model.entries.values() if state in (None, e.state)]
        return self.random.choice(found) if found else None

    def settle(self) -> None:
        settlements = []
        # Each once, and in the order in which they were drawn: a set has one of its own.
        drawn = [self._some() for _ in range(self.random.randrange(1, 6))]
        for entry in dict.fromkeys(entry for entry in drawn if entry is not None):
            state = self.random.choice(("delivered", "delivered", "dead", "pending"))
            attempt = Attempt(self.clock.wall_ms(), 5, "delivered", 201, None)
            reason = "rejected" if state == "dead" else None
            doubtful = self.random.random() < 0.2
            settlements.append(
                Settlement(entry.seq, state, attempt, possible_duplicate=doubtful,
                           dead_reason=reason)
            )  # fmt: skip
            if entry.state != "pending":
                continue
            entry.state, entry.attempts = state, entry.attempts + 1
            entry.doubtful |= doubtful
            entry.due_at = 0
            if state != "pending":
                entry.ended_at, entry.held = self.clock.wall_ms(), False
        with self.engine.transaction():
            self.engine.settle(settlements)

    def fail(self) -> None:
        entry = self._some("pending")
        if entry is None:
            return
        entry.due_at = self.clock.wall_ms() + self.random.randrange(1, 60_000)
        entry.attempts += 1
        attempt = Attempt(self.clock.wall_ms(), 5, "unavailable", None, "refused")
        with self.engine.transaction():
            self.engine.settle([Settlement(entry.seq, "pending", attempt, entry.due_at, 1)])

    def hold(self) -> None:
        self._held(True)

    def release(self) -> None:
        self._held(False)

    def _held(self, held: bool) -> None:
        entry = self._some()
        if entry is None:
            return
        if entry.state == "pending":
            entry.held = held
        with self.engine.transaction():
            change = EntryChange.HOLD if held else EntryChange.RELEASE
            assert self.engine.change(change, entry.id).held == entry.held

    def retry(self) -> None:
        entry = self._some()
        if entry is None:
            return
        if entry.state != "delivered":
            entry.state, entry.due_at = "pending", 0
        with self.engine.transaction():
            assert self.engine.change(EntryChange.RETRY, entry.id).state == entry.state

    def drop(self) -> None:
        entry = self._some()
        if entry is None:
            return
        del self.model.entries[entry.id]
        known = self.model.keys.get(entry.key or "")
        if known is not None and known.id == entry.id:
            del self.model.keys[entry.key or ""]
        with self.engine.transaction():
            assert self.engine.change(EntryChange.DROP, entry.id).id == entry.id

    def prune(self) -> None:
        before = self.clock.wall_ms() - self.random.randrange(0, 100_000)
        position: int | None = 0
        while position is not None:
            with self.engine.transaction():
                position, _ = self.engine.prune(position, self.random.choice((1, 7, 1000)), before)
        with self.engine.transaction():
            self.engine.prune_dedup(1000)
        now = self.model.key_clock.now_ms()
        self.model.keys = {k: known for k, known in self.model.keys.items() if known.until > now}
        for entry in list(self.model.entries.values()):
            if entry.state == "delivered" and entry.ended_at < before:
                del self.model.entries[entry.id]

    def advance(self) -> None:
        self.clock.advance(self.random.choice((0.001, 1, 61, 700)))

    def jump(self) -> None:
        self.clock.jump(self.random.choice((-86400, 86400)))
        # Whoever looks at the window sees the step.
        self.engine.state_of_key("", "none")
        self.model.key_clock.now_ms()

    def crash(self) -> None:
        """The process dies: the connection goes without a farewell."""
        self.engine.connection.close()
        self.engine = self._open()

    def crash_in_flight(self) -> None:
        sendable = sorted(self.model.sendable())
        flying = self.random.sample(sendable, min(len(sendable), 3))
        with self.engine.transaction():
            self.engine.set_sending(flying)
        self.crash()
        with self.engine.transaction():
            assert self.engine.recover_sending() == len(flying)
        for seq in flying:
            entry = self.model.of_seq(seq)
            assert entry is not None
            entry.doubtful = True

    def rolled_back(self) -> None:
        item = Incoming(b'{"eventType":"t","summary":"x"}', "t", "error", "", "batch", 5)
        self.engine.begin()
        self.engine.accept([item])
        self.engine.rollback()

    def unknown_id(self) -> None:
        with pytest.raises(UnknownId):
            self.engine.get("no such id")

    # --- the comparison ---

    def compare(self) -> None:
        engine, model = self.engine, self.model
        assert engine.counts() == model.counts()
        listed = {e.id: e for e in read_page(engine, EntryFilter(), None, 10_000).entries}
        assert listed.keys() == model.entries.keys()
        for id, entry in model.entries.items():
            there = listed[id]
            assert (there.seq, there.state, there.held, there.body) == (
                entry.seq, entry.state, entry.held, entry.body,
            )  # fmt: skip
            assert (there.possible_duplicate, there.attempt_count) == (
                entry.doubtful, entry.attempts,
            )  # fmt: skip
        fetched = engine.fetch(10_000, (), "mixed", self.random.random(), HORIZON_S).entries
        assert {claimed.seq for claimed in fetched} == model.sendable()
        assert len(fetched) == len(model.sendable())


def test_programs_agree_with_the_model(tmp_path: Path, full: bool, seed: int):
    programs = 2000 if full else 40
    shm = Path("/dev/shm")
    directory = shm if shm.is_dir() and os.access(shm, os.W_OK) else tmp_path
    for number in range(seed, seed + programs):
        path = directory / f"outboxd-model-{os.getpid()}-{number}.db"
        try:
            Program(str(path), number).run()
        except BaseException:
            print(f"it was the program of seed {number}")
            raise
        finally:
            for leftover in path.parent.glob(path.name + "*"):
                leftover.unlink()


def test_the_comparison_catches_a_settlement_that_is_forgotten(tmp_path, monkeypatch):
    """The negative control."""
    original = SqliteEngine.settle
    monkeypatch.setattr(SqliteEngine, "settle", lambda self, s: original(self, s[1:]))

    def run() -> None:
        for seed in range(1, 20):
            Program(str(tmp_path / f"{seed}.db"), seed).run()

    with pytest.raises(AssertionError):
        run()
