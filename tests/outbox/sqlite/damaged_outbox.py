"""Outboxes with known receipts, left by a process that was killed; and damage to them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from outboxd.outbox.sqlite.opening import Opened, open_outbox

WRITER = """
import json, sys, os
from outboxd.outbox.model import Attempt, Incoming, Settlement, SpoolMark
from outboxd.outbox.sqlite import connection
from outboxd.outbox.sqlite.opening import open_outbox

path, count, checkpoint_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection.PAGE_BYTES = int(sys.argv[4])
engine = open_outbox(path).engine
open(path + ".ballast", "wb").write(bytes(512))

def body(n):
    text = "y" * 9000 if n % 50 == 7 else "x" * (n * 37 % 400)
    return json.dumps({"eventType": f"type {n % 5}", "summary": f"event {n}", "severity":
        "warning", "scope": {"clusters": ["one"]}, "details": {"text": text}}).encode()

def commit(verb):
    engine.begin(); result = verb(); engine.commit(); return result

done = 0
while done < count:
    items = [Incoming(body(n), f"type {n % 5}", "warning", '{"clusters":["one"]}', "batch",
        engine.clock.wall_ms(), None, None, f"key {n}" if n % 3 == 0 else None)
        for n in range(done, min(done + 7, count))]
    receipts = commit(lambda: engine.accept(items))
    for n, receipt in zip(range(done, count), receipts):
        print(json.dumps({"n": n, "id": receipt.id, "seq": n + 1, "state": "pending",
            "body": items[n - done].body.decode()}))
    done += len(items)
    settled = []
    for seq in range(done - len(items) - 20, done - len(items) - 13):
        if seq < 1:
            continue
        state = ("delivered", "pending", "dead", "delivered")[seq % 4]
        settled.append(Settlement(seq, state, Attempt(engine.clock.wall_ms(), 5, "unavailable",
            503, "x"), due_at=5, spent=1, dead_reason="rejected" if state == "dead" else None))
        print(json.dumps({"seq": seq, "state": state}))
    if settled:
        commit(lambda: (engine.settle(settled), engine.set_sending([done - 1, done - 2])))
    commit(lambda: engine.mark_spool(SpoolMark(f"file {done // 40}", done)))
    if checkpoint_at and done >= checkpoint_at:
        engine.checkpoint()
        checkpoint_at = 0
print("ready", flush=True)
import time
time.sleep(60)
"""


class Built(NamedTuple):
    """An outbox as a kill left it, and what was promised."""

    path: Path
    receipts: dict[str, dict[str, Any]]  # by id
    page_bytes: int

    def copied_to(self, directory: Path) -> Path:
        """A copy to do damage to."""
        directory.mkdir(parents=True, exist_ok=True)
        for file in self.path.parent.iterdir():
            shutil.copy(file, directory / file.name)
        return directory / self.path.name


def build(directory: Path, count: int, checkpoint_at: int, page_bytes: int) -> Built:
    """Have a process write an outbox, and kill it."""
    path = directory / "outbox.db"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count), str(checkpoint_at), str(page_bytes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    by_seq: dict[int, dict[str, Any]] = {}
    for line in process.stdout:
        if line == "ready\n":
            break
        said = json.loads(line)
        by_seq.setdefault(said["seq"], {}).update(said)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(by_seq) == count
    return Built(path, {said["id"]: said for said in by_seq.values()}, page_bytes)


def flip(path: Path, kind: str, random_: random.Random, page_bytes: int) -> str:
    """Do one piece of damage; returns what was done."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        if kind == "bit":
            at, bit = random_.randrange(size), random_.randrange(8)
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
            return f"bit {bit} of byte {at} of {path.name}"
        page = random_.randrange(size // page_bytes)
        is_log = not path.name.endswith(".db")
        start = 32 + page * (page_bytes + 24) + 24 if is_log else page * page_bytes
        start = min(start, size - page_bytes)
        file.seek(start)
        if kind == "page":
            mask = random_.randbytes(page_bytes)
            before = file.read(page_bytes)
            file.seek(start)
            file.write(bytes(a ^ b for a, b in zip(before, mask, strict=True)))
        else:
            file.write(bytes(page_bytes))
        return f"{kind} at byte {start} of {path.name}"


def open_and_check(path: Path, built: Built) -> tuple[Opened, set[str], list[str]]:
    """Open the way the agent does; which receipts are missing, and what is wrong with others."""
    opened = open_outbox(str(path))
    rows = opened.engine.connection.execute(
        "SELECT e.id, e.state, e.possible_duplicate, b.body FROM entries e JOIN bodies b"
        " ON b.seq = e.seq"
    ).fetchall()
    found = {row[0]: row for row in rows}
    wrong = []
    for id, said in built.receipts.items():
        if id not in found:
            continue
        _, state, doubt, body = found[id]
        if body != said["body"]:
            wrong.append(f"{id}: the body is another")
        if state != said["state"] and not (state == "pending" and doubt):
            wrong.append(f"{id}: {state} instead of {said['state']}, and not marked")
    return opened, set(built.receipts) - set(found), wrong
