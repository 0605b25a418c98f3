"""Gives the real agent one fault at an exact system call, and counts what became of its promises.

strace makes the N-th write or sync of a thread fail, or kills the agent at its
entry. A point is one such fault; it is named by its fields, and happens again
when they are given again (the agent's threads take turns, so nearly).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from support.agent import GONE, AgentProcess, UnixConnection, Zygote
from support.receiver import Receiver
from support.waiting import PATIENCE_S

from outboxd.producer.spool import put

IN_FLIGHT_MAX = 16
# The outbox is written by SQLite's calls, the spool by those of the reader's threads.
OUTBOX_CALLS = ("pwrite64", "fdatasync", "ftruncate")
SPOOL_CALLS = ("fsync", "unlinkat", "renameat", "write")
# How many of each call a thread makes in one run, or a little more.
OFTEN = {"pwrite64": 220, "fdatasync": 22, "ftruncate": 3, "fsync": 4, "unlinkat": 4}
EXIT_DISK_FAILED = 74
EXIT_TRY_AGAIN = 75


class Point(NamedTuple):
    """One fault: the `number`-th `call` of a thread fails with `fault`, or SIGKILL."""

    call: str
    fault: str
    number: int
    is_fresh: bool  # whether the outbox is made in this run

    def strace(self, output: Path) -> tuple[str, ...]:
        what = "signal=SIGKILL" if self.fault == "SIGKILL" else f"error={self.fault}"
        calls = f"trace={self.call},getppid"
        inject = f"inject={self.call}:{what}:when={self.number}"
        return ("strace", "-f", "-qq", "-o", str(output), "-e", calls, "-e", inject)


class Outcome(NamedTuple):
    """What one point did."""

    is_hit: bool  # whether the agent came to that call at all
    exit_code: int
    refused: int  # answers of 507
    receipts: int
    duplicates: int
    faults: list[str]


def points(count: int, seed: int) -> list[Point]:
    """So many different points, over all kinds."""
    draw = random.Random(seed)
    kinds = [(call, fault) for call in OUTBOX_CALLS for fault in ("EIO", "SIGKILL")]
    kinds += [("pwrite64", "ENOSPC"), ("pwrite64", "SIGKILL"), ("fdatasync", "EIO")] * 2
    kinds += [(call, fault) for call in ("fsync", "unlinkat") for fault in ("EIO", "SIGKILL")]
    found: dict[Point, None] = {}
    while len(found) < count:
        call, fault = kinds[len(found) % len(kinds)]
        is_fresh = draw.random() < 0.5
        # Small numbers fall into the start, where few calls are made.
        most = OFTEN[call] if draw.random() < 0.7 else min(OFTEN[call], 60)
        point = Point(call, fault, draw.randrange(1, most + 1), is_fresh)
        if point in found or call in ("ftruncate", "fsync", "unlinkat"):
            kinds.append(kinds.pop(0))  # there are few of these to be had, or none any more
        found[point] = None
    return list(found)


def event(summary: str) -> bytes:
    return json.dumps({"eventType": "fault", "summary": summary}).encode()


class Load:
    """A little of everything, and what was promised for it."""

    def __init__(self, agent: AgentProcess, name: str) -> None:
        self.receipts: list[str] = []
        self.odd: list[str] = []
        self.refused = 0
        self._agent = agent
        self._name = name

    def run(self) -> None:
        work = [lambda: self._post("a"), lambda: self._post("b"), self._spool]
        threads = [threading.Thread(target=w) for w in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _post(self, part: str) -> None:
        connection = UnixConnection(str(self._agent.socket))
        try:
            for number in range(3):
                self._hand_in(connection, [f"{self._name}-{part}{number}"])
            self._hand_in(connection, [f"{self._name}-{part}batch{n}" for n in range(4)])
        except GONE:
            pass  # unknown: nothing was promised
        finally:
            connection.close()

    def _hand_in(self, connection: UnixConnection, summaries: list[str]) -> None:
        path = "/mgmt/v1/events" if len(summaries) == 1 else "/v1/events/batch"
        body = b"\n".join(event(summary) for summary in summaries)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection.request("POST", path, body)
            response = connection.getresponse()
            told = json.loads(response.read())
            results = told.get("results", [told])
            # A batch's lines are refused one by one.
            full = response.status == 507 or any(r.get("retry") for r in results)
            is_late = time.monotonic() > deadline
            if full and not is_late and not any("id" in result for result in results):
                self.refused += 1
                threading.Event().wait(0.1)  # as a producer would, only sooner
                continue
            break
        for summary, result in zip(summaries, results, strict=True):
            if result.get("status") == "accepted":
                self.receipts.append(summary)
            else:
                self.odd.append(f"{response.status} {result}")

    def _spool(self) -> None:
        for number in range(3):
            summary = f"{self._name}-s{number}"
            put(str(self._agent.spool), event(summary))
            self.receipts.append(summary)


class Range:
    """Where points are struck, one after the other: a zygote, a receiver, and an
    outbox left by an agent that was killed, to start from."""

    def __init__(self, base: Path) -> None:
        self.zygote, self.receiver = Zygote(), Receiver().start()
        self._earlier = base / "earlier"
        self._earlier.mkdir(parents=True)
        agent = AgentProcess(self._earlier, self.receiver.endpoint, zygote=self.zygote)
        agent.start()
        load = Load(agent, "earlier")
        load.run()
        agent.kill()
        self.receipts = [s for s in load.receipts if not self.receiver.arrivals[s]]

    def copy_earlier(self, directory: Path) -> None:
        for path in self._earlier.glob("outbox.db*"):
            shutil.copy(path, directory / path.name)
        shutil.copytree(self._earlier / "spool", directory / "spool")

    def close(self) -> None:
        self.zygote.close()
        self.receiver.stop()


def strike(point: Point, directory: Path, place: Range) -> Outcome:
    """Run an agent into the fault, start it again without, and count."""
    name, receiver = directory.name, place.receiver
    directory.mkdir()
    receiver.arrivals.clear()
    agent = AgentProcess(directory, receiver.endpoint, zygote=place.zygote)
    promised: list[str] = []
    if not point.is_fresh:
        place.copy_earlier(directory)
        promised += place.receipts
    output = directory / "strace"
    agent.strace = point.strace(output)
    load = Load(agent, name)
    exit_code = _run(agent, load, receiver)
    agent.strace = ()
    promised += load.receipts
    faults = list(load.odd)
    lines = output.read_text().splitlines()
    is_hit = (
        any("(INJECTED)" in line and "getppid" not in line for line in lines)
        or exit_code == -signal.SIGKILL
    )
    faults += _wrong_end(point, is_hit, exit_code, load, agent)
    agent.start()
    answer, _ = agent.request("POST", "/mgmt/v1/events", event(f"{name}-after"))
    if answer != 201:
        faults.append(f"afterwards the agent answers {answer}")
    promised.append(f"{name}-after")
    status = agent.await_empty()
    if status["outbox"]["lostToDamage"] or status["outbox"]["salvaged"]:
        faults.append(f"damage: {status['outbox']}")
    if agent.stop() != 0:
        faults.append("the agent did not stop cleanly afterwards")
    lost = [summary for summary in promised if not receiver.arrivals[summary]]
    faults += [f"lost: {summary}" for summary in lost]
    # What the earlier agent had in flight when it was killed may have arrived then.
    twice = [marks for marks in receiver.arrivals.values() if len(marks) > 1]
    faults += ["an unmarked duplicate" for marks in twice if not all(marks[1:])]
    duplicates = sum(len(marks) - 1 for marks in twice)
    if duplicates > IN_FLIGHT_MAX:
        faults.append(f"{duplicates} duplicates")
    return Outcome(is_hit, exit_code, load.refused, len(promised), duplicates, faults)


def _run(agent: AgentProcess, load: Load, receiver: Receiver) -> int:
    """Under load until all of it is delivered or the agent is gone; its exit code."""
    agent.start(ready=False)
    assert agent.pid is not None
    pid = agent.pid
    deadline = time.monotonic() + PATIENCE_S
    while not agent.answers():
        if is_gone(pid) or time.monotonic() > deadline:
            return agent.wait()
        time.sleep(0.01)
    load.run()
    while not is_gone(pid) and time.monotonic() < deadline:
        if all(receiver.arrivals[summary] for summary in list(load.receipts)):
            agent.signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    return agent.wait()


def is_gone(pid: int) -> bool:
    """Whether it has ended, though nobody has asked for its exit code yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def _wrong_end(
    point: Point, is_hit: bool, exit_code: int, load: Load, agent: AgentProcess
) -> list[str]:
    """Whether the agent ended as such a fault demands."""
    allowed = {0}
    if is_hit and point.fault == "SIGKILL":
        # Struck in its very last calls it may end by itself first.
        allowed = {-signal.SIGKILL, 0}
    elif is_hit and point.call in OUTBOX_CALLS:
        # The lock file's own lines are a courtesy: an error there means nothing.
        allowed = {EXIT_DISK_FAILED, 0} if point.call != "fdatasync" else {EXIT_DISK_FAILED}
        if point.fault == "ENOSPC":
            allowed = {0, EXIT_TRY_AGAIN}
    elif is_hit and point.call == "fsync":
        # Making the spool's directories is a start's first step; later on a
        # sync of the spool that fails makes at worst a known file, not a loss.
        allowed = {EXIT_DISK_FAILED, 0}
    wrong = []
    if exit_code not in allowed:
        wrong.append(f"exit code {exit_code}, not {sorted(allowed)}")
    text = agent.log_text()
    if "Traceback" in text:
        wrong.append(text[text.index("Traceback") :][:1500])
    return wrong


def told(point: Point, outcome: Outcome) -> str:
    return f"{point}: {outcome.faults[:4]}; replay: OUTBOXD_POINT='{json.dumps(point)}'"


def given() -> list[Point]:
    """The point that $OUTBOXD_POINT names, for a replay."""
    text = os.environ.get("OUTBOXD_POINT")
    return [Point(*json.loads(text))] if text else []
