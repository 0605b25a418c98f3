"""`outboxd demo`: the main job, for real, in under 30 seconds.

Real processes, real sockets, real files in a temporary directory. What it says
at the end comes from the receipts that it was given and from what the sandbox
received, never from what the agent believes of itself.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

from outboxd.cli import render
from outboxd.cli.stage import Stage
from outboxd.errors import EX_OK, OutboxdError
from outboxd.producer.command_line import Arguments

EXIT_LOST = 1
DRAIN_TIMEOUT_S = 60.0
REFRESH_S = 0.1


def run(arguments: Arguments) -> int:
    """Play it; 0 where nothing was lost."""
    signal.signal(signal.SIGTERM, _interrupt)
    stage = Stage()
    kept = False
    try:
        code = Demo(stage).play()
        if arguments.keep and code == EX_OK:
            _say_how_to_play(stage)
            kept = True
        return code
    except OSError as error:
        raise OutboxdError(f"the demo could not go on: {error}") from error
    finally:
        if not kept:
            stage.close()


class Demo:
    """The play in its acts, and the account of what was handed in."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._accepted: Counter[str] = Counter()  # by way in, receipts only
        self._numbers: set[str] = set()  # of the events that got a receipt
        self._number = 0
        self._lock = threading.Lock()
        self._screen = Screen()

    def play(self) -> int:
        """All acts, and the sum at the end."""
        stage, screen = self._stage, self._screen
        stage.start_sandbox()
        screen.tell(f"a sandbox stands in for Komodor: {stage.sandbox_url}")
        stage.start_agent()
        screen.tell(f"an agent runs, process {stage.agent_pid}")

        self._hand_in(posts=30, batch=20, files=20, emits=2)
        self._wait_until(lambda: self._pending() == 0, "delivered as they come")

        stage.faults(outage=True)
        screen.tell("the endpoint goes down")
        self._hand_in(posts=40, batch=30, files=25, emits=2)
        self._wait_until(lambda: False, "kept in the outbox", timeout_s=0.5)

        producer = threading.Thread(target=self._post_through_a_crash, args=(60,), daemon=True)
        producer.start()
        self._wait_until(lambda: self._accepted["crash"] >= 20, "more come in")
        stage.kill_agent()
        screen.tell("the agent is killed with SIGKILL, in the middle of it")
        self._hand_in(posts=0, batch=0, files=10, emits=1)
        screen.tell("with no agent, the spool takes what comes")
        stage.start_agent()
        screen.tell(f"the agent starts again, process {stage.agent_pid}")
        producer.join(DRAIN_TIMEOUT_S)
        self._wait_until(lambda: False, "all of it is still there", timeout_s=0.5)

        stage.faults(outage=False)
        screen.tell("the endpoint is back")
        self._wait_until(lambda: self._pending() == 0, "the backlog drains")
        return self._account()

    # --- handing in ---

    def _hand_in(self, posts: int, batch: int, files: int, emits: int) -> None:
        """By every door; each counts once it has its receipt."""
        for _ in range(posts):
            number, event = self._event("socket")
            self._stage.post(event)
            self._keep("socket", number)
        if batch:
            events = [self._event("batch") for _ in range(batch)]
            receipts = self._stage.post(b"\n".join(line for _, line in events), "/v1/events/batch")
            assert len(receipts) == batch, "each line of the batch has its receipt"
            self._keep("batch", *(number for number, _ in events))
        for _ in range(files):
            number, event = self._event("spool")
            self._stage.spool(event)
            self._keep("spool", number)
        for _ in range(emits):
            number = self._next_number()
            words = ("demo", f"event {number}", "--cluster", "A", "--detail", f"number={number}")
            self._stage.emit(*words)
            self._keep("emit", number)
        told = f"{posts} by the socket, " if posts else ""
        told += f"{batch} in a batch, " if batch else ""
        self._screen.tell(f"handed in: {told}{files} by the spool, {emits} by emit")

    def _post_through_a_crash(self, count: int) -> None:
        """As a careful producer does: again with the same key, until there is a receipt."""
        for _ in range(count):
            number, event = self._event("socket")
            while True:
                try:
                    self._stage.post(event)
                    break
                except (OSError, http.client.HTTPException, ValueError):
                    time.sleep(0.05)
            self._keep("crash", number)
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

    def _pending(self) -> int:
        """Accepted and not yet received by the sandbox."""
        return len(self._numbers) - self._delivered

    def _wait_until(self, done: Any, what: str, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Show pending and delivered until it is so, or the time is up."""
        ends_at_s = time.monotonic() + timeout_s
        while True:
            self._delivered = self._stage.received_count()
            self._screen.show(what, max(0, self._pending()), self._delivered)
            if done() or time.monotonic() >= ends_at_s:
                break
            time.sleep(REFRESH_S)
        self._screen.settle()

    _delivered = 0

    def _account(self) -> int:
        """Receipts against what the sandbox received, event by event."""
        times = Counter(
            str(event["details"].get("number"))
            for event in self._stage.received()
            if event["eventType"] == "demo"
        )
        lost = sorted(number for number in self._numbers if not times[number])
        delivered = len(self._numbers) - len(lost)
        duplicated = sum(1 for number in self._numbers if times[number] > 1)
        ways = Counter(self._accepted)
        ways["socket"] += ways.pop("crash", 0)
        told = ", ".join(f"{count} {way}" for way, count in ways.items())
        self._screen.sum_up(
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_how_to_play(stage: Stage) -> None:
    config = f"-c {stage.config_path}"
    sandbox = stage.sandbox_url
    print(
        f"""Both go on running. To play with them:

  the agent's page      {stage.page_url}
  what Komodor has      {sandbox}/
  hand in an event      outboxd emit deploy 'v2 is out' --cluster A {config}
  or with curl          curl --unix-socket {stage.socket_path} \\
                          http://localhost/mgmt/v1/events \\
                          -d '{{"eventType": "deploy", "summary": "v2 is out"}}'
  how it stands         outboxd status {config}
  what there is         outboxd events {config}
  take it down          curl {sandbox}/sandbox/faults -d '{{"outage": true}}'
  and back              curl {sandbox}/sandbox/faults -d '{{"outage": false}}'
  kill the agent        kill -9 {stage.agent_pid}
  start it again        KOMODOR_API_KEY={stage.api_key} outboxd run {config}

To stop them:

  kill {stage.agent_pid} {stage.sandbox_pid}; rm -r {stage.directory}
"""
    )
