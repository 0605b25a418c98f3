"""What the demo's plays are made of: events handed in, receipts kept, and the sum.

What is summed up at the end comes from the receipts that were given and from what
the sandbox received, never from what an agent believes of itself.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter
from typing import Any

from outboxd.cli import render
from outboxd.cli.stage import Stage, StageAgent
from outboxd.errors import EX_OK

EXIT_LOST = 1
DRAIN_TIMEOUT_S = 60.0
REFRESH_S = 0.1
CRASH = "crash"  # by the socket, while the agent is killed


class Play:
    """The account of what was handed in, and the screen that tells it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.screen = Screen()
        self._accepted: Counter[str] = Counter()  # by way in, receipts only
        self._numbers: set[str] = set()  # of the events that got a receipt
        self._number = 0
        self._lock = threading.Lock()

    def accepted(self, way: str) -> int:
        """Receipts that were given by this way."""
        return self._accepted[way]

    def _where(self, agent: StageAgent) -> str:
        return f" on {agent.name}" if len(self.stage.agents) > 1 else ""

    # --- handing in ---

    def hand_in(
        self, agent: StageAgent, posts: int = 0, batch: int = 0, files: int = 0, emits: int = 0
    ) -> None:
        """By every door; each counts once it has its receipt."""
        for _ in range(posts):
            number, event = self._event("socket")
            agent.post(event)
            self._keep("socket", number)
        if batch:
            events = [self._event("batch") for _ in range(batch)]
            receipts = agent.post(b"\n".join(line for _, line in events), "/v1/events/batch")
            assert len(receipts) == batch, "each line of the batch has its receipt"
            self._keep("batch", *(number for number, _ in events))
        for _ in range(files):
            number, event = self._event("spool")
            agent.spool(event)
            self._keep("spool", number)
        for _ in range(emits):
            number = self._next_number()
            words = ("demo", f"event {number}", "--cluster", "A", "--detail", f"number={number}")
            agent.emit(*words)
            self._keep("emit", number)
        ways = (
            *((posts, "by the socket"), (batch, "in a batch")),
            *((files, "by the spool"), (emits, "by emit")),
        )
        told = ", ".join(f"{count} {way}" for count, way in ways if count)
        self.screen.tell(f"handed in{self._where(agent)}: {told}")

    def start_posting(self, agent: StageAgent, count: int) -> threading.Thread:
        """A producer in the background, which ends once it has all its receipts."""
        producer = threading.Thread(target=self._post_on, args=(agent, count), daemon=True)
        producer.start()
        return producer

    def _post_on(self, agent: StageAgent, count: int) -> None:
        """As a careful producer does: again with the same key, until there is a receipt."""
        for _ in range(count):
            number, event = self._event("socket")
            while True:
                try:
                    agent.post(event)
                    break
                except (OSError, http.client.HTTPException, ValueError):
                    time.sleep(0.05)
            self._keep(CRASH, number)
            time.sleep(0.01)

    def _event(self, way: str) -> tuple[str, bytes]:
        number = self._next_number()
        event = {
            "eventType": "demo",
            "summary": f"event {number}, by {way}",
            "scope": {"clusters": ["A"], "namespaces": ["C"]},
            "details": {"number": number},
            "dedupKey": f"demo-{number}",
        }
        return number, json.dumps(event).encode()

    def _next_number(self) -> str:
        with self._lock:
            self._number += 1
            return str(self._number)

    def _keep(self, way: str, *numbers: str) -> None:
        with self._lock:
            self._accepted[way] += len(numbers)
            self._numbers.update(numbers)

    # --- watching ---

    def pending(self) -> int:
        """Accepted and not yet received by the sandbox."""
        return len(self._numbers) - self._delivered

    def wait_until(self, done: Any, what: str, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Show pending and delivered until it is so, or the time is up."""
        ends_at_s = time.monotonic() + timeout_s
        while True:
            self._delivered = self.stage.received_count()
            self.screen.show(what, max(0, self.pending()), self._delivered)
            if done() or time.monotonic() >= ends_at_s:
                break
            time.sleep(REFRESH_S)
        self.screen.settle()

    _delivered = 0

    def account(self) -> int:
        """Receipts against what the sandbox received, event by event."""
        times = Counter(
            str(event["details"].get("number"))
            for event in self.stage.received()
            if event["eventType"] == "demo"
        )
        lost = sorted(number for number in self._numbers if not times[number])
        delivered = len(self._numbers) - len(lost)
        duplicated = sum(1 for number in self._numbers if times[number] > 1)
        ways = Counter(self._accepted)
        ways["socket"] += ways.pop(CRASH, 0)
        told = ", ".join(f"{count} {way}" for way, count in ways.items())
        self.screen.sum_up(
            [
                ("accepted", len(self._numbers), f"receipts given: {told}"),
                ("delivered", delivered, "of these, received by the sandbox"),
                ("lost", len(lost), f"events {', '.join(lost[:20])}" if lost else ""),
                ("duplicated", duplicated, "received more than once" if duplicated else ""),
            ]
        )
        return EXIT_LOST if lost else EX_OK


class Screen:
    """What the demo says: a line an act, and one line that changes in a terminal."""

    def __init__(self) -> None:
        self._started_at_s = time.monotonic()
        self._live = sys.stdout.isatty()
        self._coloured = render.colours()
        self._shown = ""

    def tell(self, text: str) -> None:
        """Something happened."""
        moment = render.colour(
            f"{time.monotonic() - self._started_at_s:5.1f}s", "dim", self._coloured
        )
        print(f"{moment}  {text}", flush=True)

    def show(self, what: str, pending: int, delivered: int) -> None:
        """How it stands; in place in a terminal, else kept for `settle`."""
        self._shown = f"        pending {pending:>4}   delivered {delivered:>4}   {what}"
        if self._live:
            print(f"\r{self._shown}\x1b[K", end="", flush=True)

    def settle(self) -> None:
        """The line that changed stays as it is now."""
        print("" if self._live else self._shown, flush=True)

    def sum_up(self, rows: list[tuple[str, int, str]]) -> None:
        """The end."""
        print()
        for name, count, note in rows:
            bad = name == "lost" and count
            name_shown = f"{name:<11}"
            if name == "lost":
                name_shown = render.colour(name_shown, "red" if bad else "green", self._coloured)
            print(f"  {name_shown}{count:>5}   {note}".rstrip())
        print(flush=True)
