"""Outboxes with one of everything, for moves, and what is to be found again after one."""

from __future__ import annotations

import json
import subprocess
import sys

from outboxd.outbox.engine import Engine
from outboxd.outbox.model import (
    Attempt,
    DestinationHold,
    EntryChange,
    EntryFilter,
    Incoming,
    Settlement,
)

BODY = '{"eventType":"t","summary":"%s","details":{"n":1.10,"nul":"\\u0000","face":"😀"}}'


def incoming(summary: str, at: int, **more: object) -> Incoming:
    return Incoming(
        (BODY % summary).encode(), "t", "warning", '{"clusters":["a"]}', "socket", at
    )._replace(**more)


def fill(engine: Engine, count: int = 30) -> None:
    """Pending, held, delivered, dead, doubtful, repeated, pruned entries; keys, hops."""
    engine.set_windows(7 * 86400, 3600)
    now = engine.clock.wall_ms()
    items = [incoming(f"event {n}", now - 1000 + n, producer=f"uid:{n % 3}") for n in range(count)]
    items[0] = items[0]._replace(dedup_key="k-0 ü", occurred_at=now - 5000)
    items[1] = items[1]._replace(dedup_key="marked", dedup_mark=7, producer="token:a")
    items[2] = items[2]._replace(hop='{"ageMs":4000,"host":"h"}', expires_at=now + 3_600_000)
    items[3] = items[3]._replace(dedup_key="pruned", producer="token:b")
    with engine.transaction():
        engine.accept(items)
    with engine.transaction():
        engine.accept([items[5], items[5], items[0]])  # repeats, and a duplicate
        seqs = list(engine.seq_range())
        entries = sorted(engine.entries_of(EntryFilter(), seqs), key=lambda entry: entry.seq)
        answered = Attempt(now, 12, "delivered", 201, None)
        failed = Attempt(now, 30, "unavailable", 503, 'said "no" ✗')
        refused = Attempt(now, 30, "rejected", 422, "bad")
        later = [
            Settlement(entries[6].seq, "pending", failed, now + 60_000, 1, True),
            Settlement(entries[7].seq, "dead", refused, dead_reason="rejected"),
            Settlement(entries[3].seq, "delivered", answered),
        ]
        engine.settle([*later, *(Settlement(e.seq, "delivered", answered) for e in entries[10:14])])
        for _ in range(3):
            engine.settle([Settlement(entries[8].seq, "pending", failed, now + 5)])
        engine.change(EntryChange.HOLD, entries[9].id)
        engine.set_destination_hold(DestinationHold("key revoked", "kim", now))
    with engine.transaction():
        engine.change(EntryChange.DROP, entries[14].id)
        if engine.move_note() is None and count > 20:
            engine.set_sending([entries[15].seq, entries[16].seq])


def seen(engine: Engine) -> dict[str, object]:
    """All that a move must keep, as the other verbs show it."""
    with engine.reading():
        entries = engine.entries_of(EntryFilter(), list(engine.seq_range()))
        return {
            "entries": [
                (*entry._replace(attempts="", short_id=""), json.loads(entry.attempts))
                for entry in entries
            ],
            "counts": engine.counts(),
            "waiting": dict(engine.waiting()),
            "hold": engine.destination_hold(),
            "keys": [
                engine.state_of_key(producer, key)
                for producer, key in (
                    ("uid:0", "k-0 ü"),
                    ("token:a", "marked"),
                    ("token:b", "pruned"),
                    ("token:c", "pruned"),
                )
            ],
            "next_due": engine.fetch(1000, (), "mixed", 0.25, 86400.0).next_due_at,
        }


# Runs `outboxd move` in a fork for each line of its input: "N FROM TO" dies at the
# N-th commit of either outbox, in the middle of a run that the kernel ends at once.
DIES = """
import os, signal, sys
from contextlib import contextmanager
from outboxd.cli.main import main
from outboxd.outbox import moving
import outboxd.outbox.sqlite.opening
ENGINES = [outboxd.outbox.sqlite.opening.SqliteEngine]
try:
    from outboxd.outbox.postgresql.engine import PostgresEngine
    ENGINES.append(PostgresEngine)
except ImportError:
    pass
moving.CHUNK_ROWS = 12
left = 1 << 30

def dying(transaction):
    @contextmanager
    def wrapped(self):
        global left
        with transaction(self):
            yield
            step()
        step()
    return wrapped

def step():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

for engine in ENGINES:
    engine.transaction = dying(engine.transaction)
null = os.open("/dev/null", os.O_WRONLY)
for line in sys.stdin:
    count, source, target = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        os.dup2(null, 1)
        left = int(count)
        os._exit(main(["move", source, target]))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Mover:
    """Moves in processes that die when they are told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", DIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def move(self, source: str, target: str, dies_at: int = 1 << 30) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(dies_at, source, target, sep="\t", file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0
