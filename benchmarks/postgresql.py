"""The outbox's engine on PostgreSQL beside the one on SQLite: the same verbs, on one disk.

A server of its own in a directory of its own, with its defaults: every commit is synced.
Client and server share this machine's cores, which a real database would not.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.machine import TICKS
from benchmarks.table import Row
from outboxd.outbox.engine import Engine
from outboxd.outbox.model import Attempt, Incoming, Settlement
from outboxd.outbox.postgresql.engine import PostgresEngine
from outboxd.outbox.sqlite.engine import SqliteEngine

BODY = b'{"eventType":"deploy","summary":"billing 4.2 is out","details":{"by":"ci","n":%d}}'
A_TURN = 16


class Server(NamedTuple):
    """A running one."""

    url: str
    postmaster: int

    def cpu_s(self) -> float:
        """Of all its processes that are there."""
        first = str(self.postmaster)
        told = subprocess.run(["ps", "-o", "pid=", "--ppid", first], capture_output=True, text=True)
        return sum(_cpu_s(pid) for pid in (first, *told.stdout.split()))


def _cpu_s(pid: str) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def server(directory: Path, bin: Path) -> Iterator[Server]:
    """A fresh one on a Unix socket, as a user that is not root."""
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        nobody = pwd.getpwnam("nobody")
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    data = directory / "data"

    def run(*words: str) -> None:
        command = [str(bin / words[0]), *words[1:]]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=120, **user)

    run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--locale=C", "-E", "UTF8")
    options = f"-k {directory} -c listen_addresses=''"
    run("pg_ctl", "-D", str(data), "-o", options, "-l", str(directory / "log"), "-w", "start")
    try:
        postmaster = int((data / "postmaster.pid").read_text().split("\n")[0])
        yield Server(f"postgresql://postgres@/postgres?host={directory}", postmaster)
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


class Figure(NamedTuple):
    """Rows a second, and microseconds of CPU a row."""

    per_second: float
    client_us: float
    server_us: float


def accept(engine: Engine, rows: int) -> int:
    items = [
        Incoming(BODY % n, "deploy", "information", "", "socket", 1, producer="uid:0")
        for n in range(rows)
    ]
    with engine.transaction():
        engine.accept(items)
    engine.tidy()
    return rows


def deliver(engine: Engine) -> int:
    """A turn of the deliverer: what flew is settled, what will fly recorded, in one commit."""
    with engine.reading():
        claimed = engine.fetch(A_TURN, (), "mixed", 0.25, 86400.0).entries
    attempt = Attempt(1, 1, "delivered", 201, None)
    with engine.transaction():
        engine.settle([Settlement(entry.seq, "delivered", attempt) for entry in claimed])
        engine.set_sending([entry.seq for entry in claimed])
    engine.tidy()
    return len(claimed)


def measured(work: Callable[[], int], seconds: float, database: Server | None) -> Figure:
    before_s = database.cpu_s() if database is not None else 0.0
    own_s, began_s, rows = time.process_time(), time.monotonic(), 0
    while time.monotonic() < began_s + seconds:
        rows += work()
    took_s, own_s = time.monotonic() - began_s, time.process_time() - own_s
    server_s = database.cpu_s() - before_s if database is not None else 0.0
    return Figure(rows / took_s, own_s / rows * 1e6, server_s / rows * 1e6)


def rows(short: bool) -> list[Row]:
    """Intake at three sizes of a commit, and turns of the deliverer."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        print("no PostgreSQL server is installed: left out", file=sys.stderr)
        return []
    seconds, runs = (0.7, 3) if short else (3.0, 5)
    with tempfile.TemporaryDirectory(prefix="outboxd-benchmark-") as directory:
        Path(directory).chmod(0o755)
        home = Path(directory) / "pg"
        home.mkdir()
        with server(home, found[-1].parent) as database:
            shared = PostgresEngine(database.url, lease_s=600)
            assert shared.take_lease()
            alone = SqliteEngine(str(Path(directory) / "outbox.db"))
            try:
                return _compared(shared, alone, database, seconds, runs)
            finally:
                shared.close()
                alone.close()


def _compared(
    shared: Engine, alone: Engine, database: Server, seconds: float, runs: int
) -> list[Row]:
    works: list[tuple[str, str, Callable[[Engine], int]]] = [
        (f"accepted on PostgreSQL, {size} a commit", "rows/s", lambda e, n=size: accept(e, n))
        for size in (1, 10, 100)
    ]
    works.append((f"claimed and settled on PostgreSQL, {A_TURN} a turn", "events/s", deliver))
    table = []
    for name, unit, work in works:
        pairs = []
        for _ in range(runs):  # in turn, so that both meet the same minute
            if work is deliver:
                for engine in (shared, alone):
                    for _ in range(30):
                        accept(engine, 1000)
            pairs.append(
                (
                    measured(lambda w=work: w(shared), seconds, database),
                    measured(lambda w=work: w(alone), seconds, None),
                )
            )
        there = Figure(*(median(each) for each in zip(*(a for a, _ in pairs), strict=True)))
        here = Figure(*(median(each) for each in zip(*(b for _, b in pairs), strict=True)))
        note = (
            f"CPU a row: client {there.client_us:.0f} us, server {there.server_us:.0f} us;"
            f" SQLite {here.client_us:.0f} us"
        )
        table.append(
            Row(name, there.per_second, unit, here.per_second, "the engine on SQLite", note=note)
        )
    return table
