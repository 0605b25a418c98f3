"""Opens images of power cuts with the agent's own code, and looks whether promises hold.

Run as a program it does one share of a campaign, so that several cores help:
`python imagecheck.py RECORDING SEED IMAGES SHARE SHARES [by-summary]`; it
prints a JSON report. One image is named by recording, seed and number, and is
made again from these three.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from support import recording
from support.agent import AgentProcess, Zygote
from support.powercut import Disk
from support.recording import Recording, body_of

from outboxd.errors import OutboxdError
from outboxd.outbox.sqlite.opening import open_outbox
from outboxd.outbox.sqlite.rescue import wal
from outboxd.outbox.sqlite.rows import body_crc
from outboxd.spool.files import LookResult, SpoolFolder

WHOLE_AGENT_EVERY = 100
FAULTS_TOLD = 20
EVENT_BYTES_MAX = 256 * 1024
NOBODY = "http://127.0.0.1:9/"


class Promises:
    """What had been promised up to a step."""

    def __init__(self, summaries: dict[str, str]) -> None:
        self._summaries = summaries
        self.ids: dict[str, str] = {}
        self.stored: set[str] = set()
        self.sent: set[str] = set()

    def take(self, kind: str, names: tuple[str, ...]) -> None:
        if kind == "promised":
            # An answer that the kill cut off on its way has no reader.
            self.ids.update({id: self._summaries[id] for id in names if id in self._summaries})
        elif kind == "stored":
            self.stored.update(names)
        elif kind == "sent":
            self.sent.update(names)


class Row(NamedTuple):
    id: str
    state: str
    doubtful: bool
    summary: str


class Checker:
    """Opens images; says what is wrong with each."""

    def __init__(self, by_id: bool = True) -> None:
        self._by_id = by_id
        self._known: dict[str, str] = {}  # body -> its summary, of bodies that are right
        self.rows = self.promises = 0

    def check(self, image: Path, promises: Promises) -> list[str]:
        """With the agent's own opening and recovery, and the spool's own look."""
        try:
            opened = open_outbox(str(image / "outbox.db"))
        except OutboxdError as error:
            return [f"it does not open: {error}"]
        try:
            faults = []
            if opened.recovery is not None:
                faults.append(f"taken for damage: {opened.recovery.found}")
            rows, sending, bad = self._rows(opened.engine.connection)
            faults += bad
            progress = opened.engine.spool_progress()
        finally:
            opened.engine.connection.close()
            opened.lock.release()
        return faults + self._promised(image, rows, sending, progress, promises)

    def _rows(self, connection) -> tuple[list[Row], set[int], list[str]]:
        rows, bad = [], []
        (sending,) = connection.execute(
            "SELECT max(value) FROM meta WHERE key = 'sending'"
        ).fetchone()
        flying = set(json.loads(sending)) if sending else set()
        for seq, id, state, doubtful, body, crc in connection.execute(
            "SELECT e.seq, id, state, possible_duplicate, body, crc"
            " FROM entries e LEFT JOIN bodies b USING (seq)"
        ):
            if body is None or body_crc(seq, body.encode()) != crc:
                bad.append(f"entry {id}: its body is missing or wrong")
                continue
            summary = self._known.get(body)
            if summary is None:
                event = json.loads(body)
                summary = event["summary"]
                wanted = json.loads(body_of(summary))
                if event["details"] != wanted["details"]:
                    bad.append(f"entry {id}: its body is not the event's")
                self._known[body] = summary
            rows.append(Row(id, state, bool(doubtful) or seq in flying, summary))
        self.rows += len(rows)
        return rows, flying, bad

    def _promised(
        self,
        image: Path,
        rows: list[Row],
        sending: set[int],
        progress: dict[str, int],
        promises: Promises,
    ) -> list[str]:
        faults = []
        by_id = {row.id: row for row in rows}
        by_summary = Counter(row.summary for row in rows)
        self.promises += len(promises.ids) + len(promises.stored)
        for id, summary in promises.ids.items():
            if self._by_id and (id not in by_id or by_id[id].summary != summary):
                faults.append(f"lost: {summary}, receipt {id}")
            elif not by_summary[summary]:
                faults.append(f"lost: {summary}")
        waiting, again = _spooled(image, progress)
        for summary in promises.stored:
            if not by_summary[summary] and summary not in waiting:
                faults.append(f"lost from the spool: {summary}")
        for summary in again & set(by_summary):
            faults.append(f"a second event from the spool: {summary}")
        faults += [f"twice in the outbox: {s}" for s, count in by_summary.items() if count > 1]
        for row in rows:
            if row.state == "pending" and not row.doubtful and row.summary in promises.sent:
                faults.append(f"would be sent again unmarked: {row.summary}")
        return faults


def _spooled(image: Path, progress: dict[str, int]) -> tuple[set[str], set[str]]:
    """The summaries that wait in the spool, and those that would be taken as new."""
    folder = SpoolFolder(str(image / "spool"))
    waiting, fresh = set(), set()
    try:
        owned, _ = folder.owned(())
        for names in owned.values():
            for look in folder.look(names, EVENT_BYTES_MAX):
                assert look.verdict is LookResult.READ, look
                try:
                    summary = json.loads(look.data)["summary"]
                except ValueError:
                    continue  # its data was not synced, so nothing was promised
                if look.data == body_of(summary):
                    waiting.add(summary)
                    if look.key not in progress:
                        fresh.add(summary)
    finally:
        folder.close()
    return waiting, fresh


def check_with_agent(image: Path, promises: Promises, zygote: Zygote) -> list[str]:
    """Start the whole agent on it: what was promised is in its listing, once."""
    work = Path(tempfile.mkdtemp(prefix="outboxd-cut-"))
    agent = AgentProcess(
        work, NOBODY, zygote=zygote, outbox=image / "outbox.db", spool=image / "spool"
    )
    try:
        agent.start()
        agent.await_taken()
        listed = Counter(entry["summary"] for entry in _listing(agent))
        wanted = {*promises.ids.values(), *promises.stored}
        faults = [f"the agent does not list {summary}" for summary in wanted - set(listed)]
        faults += [f"the agent lists {s} {n} times" for s, n in listed.items() if n > 1]
        if agent.status()["outbox"]["lostToDamage"]:
            faults.append("the agent reports damage")
        agent.kill()
    except AssertionError as error:
        return [str(error)]
    finally:
        shutil.rmtree(work)
    return faults


def _listing(agent: AgentProcess) -> Iterator[dict]:
    cursor = ""
    while True:
        _, page = agent.request("GET", f"/v1/events?limit=1000{cursor}")
        yield from page["events"]
        if page["next"] is None:
            return
        cursor = f"&cursor={page['next']}"


def points(seed: int, images: int, steps: int) -> list[tuple[int, int]]:
    """After which step each image is taken: (step, image), in the order of steps."""
    draw = random.Random(seed)
    return sorted((draw.randrange(steps + 1), image) for image in range(images))


def run_share(
    source: Recording, seed: int, images: int, share: int, shares: int, by_id: bool
) -> dict:
    """Make and check every `shares`-th image."""
    # Images of one recording share most of their frames: sum each up only once.
    wal.checksum = lru_cache(8192)(wal.checksum)
    disk, promises, checker = Disk(source.state), Promises(source.summaries), Checker(by_id)
    work = Path(tempfile.mkdtemp(prefix="outboxd-cut-", dir=_memory()))
    zygote = Zygote()
    faulty: dict[int, list[str]] = {}
    done = whole = position = 0
    try:
        for number, (step, image) in enumerate(points(seed, images, len(source.steps))):
            while position < step:
                disk.take(position, source.steps[position])
                promises.take(source.steps[position].kind, source.steps[position].names)
                position += 1
            if number % shares != share:
                continue
            target = work / "image"
            disk.leave(target, f"{seed}-{image}")
            is_whole = image % WHOLE_AGENT_EVERY == WHOLE_AGENT_EVERY - 1
            if is_whole and by_id:
                faults = check_with_agent(target, promises, zygote)
                whole += 1
            else:
                faults = checker.check(target, promises)
            if faults:
                faulty[image] = faults[:FAULTS_TOLD]
            shutil.rmtree(target)
            done += 1
    finally:
        zygote.close()
        shutil.rmtree(work, ignore_errors=True)
    return {
        "images": done,
        "whole": whole,
        "promises": checker.promises,
        "faulty": faulty,
    }


def leave_image(source: Recording, seed: int, images: int, image: int, target: Path) -> int:
    """Make one image again, to look at; the step after which it was taken."""
    step = next(step for step, number in points(seed, images, len(source.steps)) if number == image)
    disk = Disk(source.state)
    for number in range(step):
        disk.take(number, source.steps[number])
    disk.leave(target, f"{seed}-{image}")
    return step


def _memory() -> str | None:
    """A file system in memory, where there is one: syncs cost nothing there."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> None:
    directory, seed, images, share, shares = sys.argv[1], *map(int, sys.argv[2:6])
    source = recording.read(Path(directory))
    print(json.dumps(run_share(source, seed, images, share, shares, len(sys.argv) < 7)))


if __name__ == "__main__":
    main()
