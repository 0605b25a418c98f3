"""The agent is killed again and again under load: every receipt must be worth something.

Four producers and a spool writer hand events in; the agent gets SIGKILL at
random moments and is started again. In the end each event that got a receipt
(or whose spool file was in place) has arrived; what arrived twice was in
flight at a kill, and the later arrival says so.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
from support.agent import GONE, AgentProcess, UnixConnection, Zygote
from support.receiver import Receiver
from support.waiting import PATIENCE_S

IN_FLIGHT_MAX = 16


class Producers:
    """Threads that hand in events and keep the receipts."""

    def __init__(self, agent: AgentProcess, seed: int) -> None:
        self.receipts: list[str] = []  # summaries of events that are promised
        self.errors: list[str] = []
        self._agent = agent
        self._stop = threading.Event()
        self._random = random.Random(seed)
        work = [lambda n=n: self._post(n) for n in range(4)]
        work.append(self._spool)
        self._threads = [threading.Thread(target=w, daemon=True) for w in work]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert self.errors == []

    def _post(self, number: int) -> None:
        connection = None
        count = 0
        while not self._stop.is_set():
            count += 1
            summary = f"p{number}-{count}"
            try:
                connection = connection or UnixConnection(str(self._agent.socket))
                body = json.dumps({"eventType": "kill", "summary": summary})
                connection.request("POST", "/mgmt/v1/events", body)
                response = connection.getresponse()
                told = json.loads(response.read())
            except GONE:
                # Unknown: it may be there or not, and nothing was promised.
                if connection is not None:
                    connection.close()
                    connection = None
                self._stop.wait(0.01)
                continue
            if response.status != 201 or told["status"] != "accepted":
                self.errors.append(f"{response.status} {told}")
                return
            self.receipts.append(summary)
        if connection is not None:
            connection.close()

    def _spool(self) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            summary = f"s-{count}"
            aside = self._agent.spool / "tmp" / f"{count}"
            try:
                aside.write_text(json.dumps({"eventType": "kill", "summary": summary}))
                os.rename(aside, self._agent.spool / "new" / f"{count}")
            except FileNotFoundError:
                pass  # before the first start has made the directories
            else:
                self.receipts.append(summary)
            self._stop.wait(0.005)


def run_cycles(tmp_path: Path, cycles: int, seed: int, agent: AgentProcess, receiver: Receiver):
    random_ = random.Random(seed)
    producers = Producers(agent, seed)
    agent.start()
    producers.start()
    for _ in range(cycles):
        time.sleep(random_.uniform(0.005, 0.12))  # a random moment is the point of it
        agent.kill()
        agent.start()
    producers.stop()
    status = agent.await_empty(120)
    assert agent.stop() == 0
    return producers.receipts, status


def check(receipts: list[str], receiver: Receiver, cycles: int) -> dict[str, int]:
    lost = [summary for summary in receipts if not receiver.arrivals[summary]]
    assert lost == [], f"{len(lost)} of {len(receipts)} lost: {lost[:5]}"
    twice = {s: marks for s, marks in receiver.arrivals.items() if len(marks) > 1}
    unmarked = {s: marks for s, marks in twice.items() if not all(marks[1:])}
    assert unmarked == {}
    extra = sum(len(marks) - 1 for marks in twice.values())
    assert extra <= cycles * IN_FLIGHT_MAX
    return {"receipts": len(receipts), "duplicates": extra}


# So many kills on one outbox; then another, since a start checks what is there.
CYCLES_A_ROUND = 50


@pytest.mark.timeout(1800)
def test_nothing_is_lost_when_the_agent_is_killed_again_and_again(tmp_path, full, seed):
    rounds, cycles = (20, CYCLES_A_ROUND) if full else (1, 15)
    zygote = Zygote()
    try:
        for number in range(rounds):
            directory = tmp_path / str(number)
            directory.mkdir()
            figures = one_round(directory, cycles, seed + number, zygote)
            print(f"{cycles} kills: {figures}")
    finally:
        zygote.close()


def one_round(directory: Path, cycles: int, seed: int, zygote: Zygote) -> dict[str, int]:
    receiver = Receiver().start()
    try:
        agent = AgentProcess(directory, receiver.endpoint, zygote=zygote)
        receipts, status = run_cycles(directory, cycles, seed, agent, receiver)
        figures = check(receipts, receiver, cycles)
    finally:
        receiver.stop()
    assert figures["receipts"] > cycles
    assert status["outbox"]["dead"] == 0
    assert status["outbox"]["lostToDamage"] == 0
    return figures


ANSWERS_FIRST = """
import outboxd.intake.intake as door
from outboxd.outbox.model import Receipt
import asyncio, sys, uuid_utils

async def keep(self, items, mark=None):
    # Deliberately wrong: the receipt goes out, the commit follows.
    async def later():
        await asyncio.sleep(0.02)
        await self._outbox.accept(items, mark)
    asyncio.ensure_future(later())
    return [Receipt(str(uuid_utils.uuid7()), "accepted", "pending") for _ in items]

door.Intake.keep = keep
"""


def test_an_agent_that_answers_before_it_commits_is_caught(tmp_path, monkeypatch):
    """The negative control: the same check must fail on a broken agent."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(ANSWERS_FIRST)
    monkeypatch.setenv("PYTHONPATH", str(broken))
    receiver = Receiver().start()
    zygote = Zygote()
    try:
        agent = AgentProcess(tmp_path, receiver.endpoint, zygote=zygote)
        receipts, _ = run_cycles(tmp_path, 10, 1, agent, receiver)
        with pytest.raises(AssertionError, match="lost"):
            check(receipts, receiver, 10)
    finally:
        zygote.close()
        receiver.stop()
