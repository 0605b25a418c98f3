"""Outboxes filled in advance, and bare SQLite beside them."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

from benchmarks.load import BODY
from outboxd.event.komodor import Defaults, parse, scope_text, wire_body
from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.sqlite.engine import SqliteEngine


def incoming() -> Incoming:
    """The benchmark's event, as the door hands it on."""
    event = parse(BODY)
    defaults = Defaults()
    scope = scope_text(event, defaults)
    return Incoming(
        wire_body(event, defaults, scope),
        event.event_type,
        event.severity,
        scope,
        "batch",
        time.time_ns() // 1_000_000,
    )


def fill(path: Path, count: int) -> None:
    """So many events, all pending."""
    engine = SqliteEngine(str(path))
    item = incoming()
    while count > 0:
        portion = min(count, 5000)
        with engine.transaction():
            engine.accept([item] * portion)
        if engine.log_bytes() > 64 << 20:
            engine.checkpoint()
        count -= portion
    engine.close()


def fill_delivered(path: Path, count: int) -> None:
    """So many delivered events over the last day, of some thousand kinds by a hundred producers."""
    engine = SqliteEngine(str(path))
    kinds = [_kind(number) for number in range(13_000)]
    now = time.time_ns() // 1_000_000
    attempt = Attempt(now, 1, "delivered", 201, None)
    for start in range(0, count, 5000):
        seqs = range(start, min(start + 5000, count))
        ages_ms = (round((count - seq) / count * 86_400_000) for seq in seqs)
        items = [
            kinds[seq % len(kinds)]._replace(received_at=now - age_ms)
            for seq, age_ms in zip(seqs, ages_ms, strict=True)
        ]
        with engine.transaction():
            engine.accept(items)
            engine.settle([Settlement(seq + 1, "delivered", attempt) for seq in seqs])
        if engine.log_bytes() > 64 << 20:
            engine.checkpoint()
    engine.close()


def _kind(number: int) -> Incoming:
    """One of many different events."""
    scope = {
        "clusters": [f"cluster-{number % 20}"],
        "namespaces": [f"namespace-{number % 100}"],
        "servicesNames": [f"service-{number % 650}"],
    }
    severity = ("information", "warning", "error")[number % 3]
    event = {
        "eventType": f"event type {number % 40}",
        "summary": f"billing 4.2.{number} is out",
        "severity": severity,
        "scope": scope,
        "details": {"commit": "3f2c1a9", "pipeline": number, "by": "ci", "duration": "3m 12s"},
    }
    return incoming()._replace(
        body=json.dumps(event).encode(),
        event_type=str(event["eventType"]),
        severity=severity,
        scope=json.dumps(scope),
        producer=f"token:hosts-{number % 100}",
    )


def deliver_all(path: Path, ended_before_s: float) -> None:
    """Settle everything as delivered, long ago."""
    engine = SqliteEngine(str(path))
    attempt = Attempt(0, 1, "delivered", 201, None)
    (last,) = engine.connection.execute("SELECT max(seq) FROM entries").fetchone()
    for start in range(1, last + 1, 5000):
        with engine.transaction():
            engine.settle(
                [Settlement(seq, "delivered", attempt) for seq in range(start, start + 5000)]
            )
        if engine.log_bytes() > 64 << 20:
            engine.checkpoint()
    engine.close()


def bare_sqlite(path: Path, count: int, rows_a_commit: int) -> float:
    """Rows a second of executemany with the same durability, one table, the same bodies."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, body TEXT)")
    rows = [(BODY.decode(),)] * rows_a_commit
    began_s = time.perf_counter()
    for _ in range(count // rows_a_commit):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO t (body) VALUES (?)", rows)
        connection.execute("COMMIT")
    taken_s = time.perf_counter() - began_s
    connection.close()
    return count / taken_s
