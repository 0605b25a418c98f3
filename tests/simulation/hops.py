"""Hosts, a gateway or two, and Komodor: real agents' rooms on one virtual loop.

Each agent has a wall clock of its own, days off from the others'. What lies
between two of them loses requests and answers, each agent may be killed at any
moment, and when the troubles are over everything must have arrived: told once,
or marked where nobody can know, with the delay of the whole way.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from simulation.checks import must
from simulation.history import with_settings
from simulation.memory import InlineWriter, MemoryEngine
from simulation.virtual_loop import VirtualClock, VirtualLoop, run

from outboxd.delivery.next_hop import HOP_WANTED, ON_THE_WAY_S
from outboxd.delivery.outcome import Answer, Fault
from outboxd.delivery.sender import Sender
from outboxd.errors import OutboxdError
from outboxd.event.hop import GREETING
from outboxd.event.komodor import Defaults
from outboxd.gateway.authority import GatewayProducer
from outboxd.gateway.tokens import ProducerLimits
from outboxd.intake.admission import Admission
from outboxd.intake.intake import Intake
from outboxd.intake.producer import Producer
from outboxd.outbox.model import Source
from outboxd.outbox.outbox import Outbox
from outboxd.times import parse_rfc3339, rfc3339

DAY_S = 86_400.0
DEDUP_S = 900.0  # how long gateways know an entry's id again
TRUE_NOW_MS = 1_750_000_000_000
REQUEST_TIMEOUT_S = 30.0
LATENCY_S = 0.05
WEATHERS = ("fine", "fine", "down", "requests lost", "answers lost", "some lost", "silence")
# Between two readings of a clock on the way lie a request and a commit for each hop.
UNCOUNTED_MS_MAX = 3 * 1_000


class Uncounted:
    """The door's metrics."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


@dataclass
class Sent:
    """One request on a link."""

    name: str
    at_s: float
    body: dict[str, Any]
    wall_ms: int  # of its sender
    entry_id: str  # its sender's
    is_doubtful: bool = False  # its sender cannot know whether it arrived
    arrived_at_s: float | None = None


@dataclass
class Link:
    """The way from an agent to the next one; its transport."""

    fleet: Fleet
    sender: Node
    to: Node | None  # None: Komodor
    weather: str = "fine"
    sent: list[Sent] = field(default_factory=list)

    def refresh(self) -> None:
        pass

    async def ask(self, id: str) -> Answer:
        raise AssertionError("nobody asks here")

    async def validate(self) -> Answer:
        raise AssertionError("nobody asks here")

    async def send(self, id: str, body: bytes, offers_hop: bool = False) -> Answer:
        event, node = json.loads(body), self.sender
        name, now_s = event["summary"], self.fleet.loop.time()
        sent = Sent(name, now_s, event, node.clock.wall_ms(), id)
        self.sent.append(sent)
        try:
            return await self._exchange(id, body, offers_hop, sent)
        except asyncio.CancelledError:
            sent.is_doubtful = True  # its sender was killed, and what it knew is gone
            raise

    async def _exchange(self, id: str, body: bytes, offers_hop: bool, sent: Sent) -> Answer:
        weather, rng = self.weather, self.fleet.rng
        if weather == "some lost":
            weather = rng.choice(("fine", "requests lost", "answers lost"))
        if weather == "down" or (self.to is not None and self.to.door is None):
            await asyncio.sleep(LATENCY_S * rng.random())
            return Answer(fault=Fault.CONNECT, sent=False)
        sent.is_doubtful = True
        await asyncio.sleep(LATENCY_S * rng.random())
        if weather == "silence":
            await asyncio.sleep(REQUEST_TIMEOUT_S)
            return Answer(fault=Fault.TIMEOUT)
        if weather == "requests lost":
            return Answer(fault=Fault.LOST)
        answer = await self._at_the_other_end(id, body, offers_hop, sent)
        await asyncio.sleep(LATENCY_S * rng.random())
        if answer is None or weather == "answers lost":
            return Answer(fault=Fault.LOST)
        sent.is_doubtful = False
        return answer

    async def _at_the_other_end(
        self, id: str, body: bytes, offers_hop: bool, sent: Sent
    ) -> Answer | None:
        """The answer, None where the other end died before it gave one."""
        if self.to is None:
            must("hop" not in sent.body, "Komodor got a hop")
            sent.arrived_at_s = self.fleet.loop.time()
            return Answer(201, body_start=b"{}")
        greeting = {GREETING.lower(): f"1; dedup={DEDUP_S:.0f}"}
        if offers_hop:
            return Answer(HOP_WANTED, greeting)
        if self.to.door is None:
            return None
        must("hop" in sent.body, "a gateway got an event without its hop")
        door = self.to.door
        producer = GatewayProducer(self.sender.name, ProducerLimits(), self.fleet.loop.time)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                told = await door.take(body, Source.SOCKET, producer, id)
        except TimeoutError:
            return None  # it was killed
        must(told.status in (200, 201), f"a gateway refused: {told}")
        sent.arrived_at_s = self.fleet.loop.time()
        return Answer(told.status, greeting, told.body)


class Node:
    """One agent, from crash to crash."""

    def __init__(self, fleet: Fleet, name: str, ahead_s: float) -> None:
        self.fleet = fleet
        self.name = name
        self.ahead_ms = round(ahead_s * 1000)
        self.clock = VirtualClock(fleet.loop, TRUE_NOW_MS + self.ahead_ms)
        self.engine = MemoryEngine(self.clock, key_window_s=DEDUP_S)
        self.link: Link
        self.door: Intake | None = None  # None: it does not run
        self._stopping: list[Any] = []
        self.crashes_s: list[float] = []
        self._cut_off: list[tuple[str, float]] = []  # ids in flight at a crash, and when known

    async def start(self) -> None:
        """A new process on what was committed."""
        if self.door is not None:
            return
        self.engine.reopen()
        self._doubt_what_is_not_settled()
        writers: list[InlineWriter] = []

        def make_writer(*arguments: Any) -> InlineWriter:
            writers.append(InlineWriter(*arguments))
            return writers[0]

        outbox = await Outbox.start(self.engine, make_writer=make_writer)
        writers[0].commit_s = lambda: self.fleet.rng.expovariate(50.0)
        settings = with_settings(
            stamp="always", backoff_max_s=60.0, hold_probe_s=60.0, concurrency_max=4
        )
        sender = Sender(
            outbox, self.link, settings, self.clock, self.fleet.rng.random, lambda fact: None
        )
        outbox.on_arrival = sender.arrived
        admission = Admission(outbox, lambda: 1 << 40, self.clock, 0, 0)
        self.door = Intake(
            outbox,
            admission,
            Uncounted(),
            self.clock,
            defaults=Defaults((), (), (), {}),
            event_type_max=60,
            event_bytes_max=262_144,
        )
        self._stopping = [writers[0], sender, self.fleet.loop.create_task(sender.run())]

    def _doubt_what_is_not_settled(self) -> None:
        """It died between an answer and its commit: what was answered goes out again.

        What stood as in flight in the last commit is in doubt, even if its connection
        had been refused since: the new process knows no more than that commit says.
        """
        execute = self.engine.connection.execute
        rows = execute("SELECT seq, id FROM entries WHERE state != 'delivered'")
        unsettled = dict(rows.fetchall())
        for sent in self.link.sent:
            if sent.arrived_at_s is not None and sent.entry_id in unsettled.values():
                sent.is_doubtful = True
        named = execute("SELECT value FROM meta WHERE key = 'sending'").fetchone()
        for seq in json.loads(named[0]) if named else ():
            if seq in unsettled:
                self._cut_off.append((unsettled[seq], self.fleet.loop.time()))

    def was_cut_off(self, sent: Sent) -> bool:
        """Whether its entry was in flight at a crash before."""
        return any(id == sent.entry_id and at_s <= sent.at_s for id, at_s in self._cut_off)

    def crash(self) -> None:
        """As with `kill -9`: what is not committed is gone."""
        if self.door is None:
            return
        writer, sender, task = self._stopping
        self.crashes_s.append(self.fleet.loop.time())
        self.door = None
        writer.kill()
        task.cancel()
        sender._in_flight.cancel()

    def pending(self) -> int:
        return self.engine.counts().pending


@dataclass
class Fleet:
    """Two hosts, one gateway or two in a row, and Komodor."""

    seed: int
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    given: dict[str, float] = field(default_factory=dict)  # name: when it occurred, in truth
    received_s: dict[str, float] = field(default_factory=dict)  # name: when a host took it
    own_times: dict[str, str] = field(default_factory=dict)  # name: occurredAt as it was given

    def __post_init__(self) -> None:
        self.rng = random.Random(f"fleet {self.seed}")

        def ahead_s() -> float:
            return self.rng.choice((0.0, 0.0, 3_600.0, -9 * DAY_S, 40 * DAY_S, 0.7))

        count = self.rng.choice((1, 1, 2))
        self.gateways = [Node(self, f"gateway{n}", ahead_s()) for n in range(count)]
        self.hosts = [Node(self, f"host{n}", ahead_s()) for n in range(2)]
        for node, to in zip(self.gateways, [*self.gateways[1:], None], strict=True):
            node.link = Link(self, node, to)
        for node in self.hosts:
            node.link = Link(self, node, self.gateways[0])
        self.nodes = [*self.hosts, *self.gateways]
        self.last = self.gateways[-1].link

    def play(self) -> None:
        engines = [node.engine.connection for node in self.nodes]
        try:
            run(self.loop, self._history())
        finally:
            for connection in engines:
                with closing(connection):
                    pass

    async def _history(self) -> None:
        for node in self.nodes:
            await node.start()
        for _ in range(self.rng.randint(6, 14)):
            await self._happen()
        for node in self.nodes:
            node.link.weather = "fine"
            await node.start()
        await self._give()
        until_s = self.loop.time() + 3 * DAY_S
        while any(node.pending() for node in self.nodes):
            must(self.loop.time() < until_s, "the backlog does not end")
            await asyncio.sleep(5.0)
        self.check()

    async def _happen(self) -> None:
        doing = self.rng.random()
        node = self.rng.choice(self.nodes)
        if doing < 0.45:
            node.link.weather = self.rng.choice(WEATHERS)
        elif doing < 0.65:
            node.crash()
            await asyncio.sleep(self.rng.choice((0.0, 5.0, 300.0)))
            await node.start()
        elif doing < 0.8:
            # Some are under way somewhere when one of them dies.
            node = self.rng.choice((node, self.gateways[-1]))
            for _ in range(3):
                await self._give()
            await asyncio.sleep(4 * LATENCY_S * self.rng.random())
            node.crash()
            await node.start()
        for _ in range(self.rng.randint(0, 4)):
            await self._give()
        # Long enough, now and then, for a gateway to forget.
        await asyncio.sleep(self.rng.choice((0.01, 1.0, 40.0, 400.0, 2 * DEDUP_S)))

    async def _give(self) -> None:
        host = self.rng.choice(self.hosts)
        if host.door is None:
            return
        name, now_s = f"e{len(self.given)}", self.loop.time()
        event = {"eventType": "t", "summary": name}
        occurred_s = now_s
        if self.rng.random() < 0.4:
            occurred_s = now_s - self.rng.choice((0.0, 90.0, DAY_S))
            occurred_at = TRUE_NOW_MS + round(occurred_s * 1000) + host.ahead_ms
            event["occurredAt"] = rfc3339(occurred_at)
        try:
            async with asyncio.timeout(10.0):
                told = await host.door.take(
                    json.dumps(event).encode(), Source.SOCKET, Producer("uid:1")
                )
        except (TimeoutError, OutboxdError):
            return  # no receipt
        must(told.status == 201, f"a host refused: {told}")
        self.given[name] = occurred_s
        self.received_s[name] = now_s
        if "occurredAt" in event:
            self.own_times[name] = event["occurredAt"]

    # --- what must hold ---

    def check(self) -> None:
        """When all is over."""
        for node in self.nodes:
            must(node.engine.counts().dead == 0, f"{node.name} has a dead letter")
        arrivals: dict[str, list[Sent]] = defaultdict(list)
        for sent in self.last.sent:
            if sent.arrived_at_s is not None:
                arrivals[sent.name].append(sent)
        lost = self.given.keys() - arrivals.keys()
        must(not lost, f"lost: {sorted(lost)}")
        for name, some in arrivals.items():
            self._check_duplicates(name, some)
            for sent in some:
                if name in self.given:
                    self._check_delay(name, sent)
                self._check_attempts(name, sent)
        for node in self.nodes:
            if node.link is not self.last:
                self._check_hops(node)

    def _check_duplicates(self, name: str, arrivals: list[Sent]) -> None:
        """Each one but one is marked; and there is a reason for each mark.

        Of one entry only the first to arrive may lack it. Where a gateway has forgotten an
        event that still waits there, it keeps it a second time, as an entry that is
        marked: of these two either may be sent first.
        """
        unmarked = [s for s in arrivals if not s.body["details"].get("possibleDuplicate")]
        must(len(unmarked) <= 1, f"{name} twice, and not marked")
        for sent in unmarked:
            first = next(one for one in arrivals if one.entry_id == sent.entry_id)
            must(sent is first, f"{name} twice, and not marked")
        doubts = [sent for sent in self.last.sent if sent.name == name and sent.is_doubtful]
        forgotten = self._forgotten(name)
        must(
            len(arrivals) - 1 <= len(doubts) + forgotten,
            f"{name} arrived {len(arrivals)} times for {len(doubts)} doubts",
        )
        for sent in arrivals:
            if sent.body["details"].get("possibleDuplicate"):
                before = any(one.at_s < sent.at_s for one in doubts)
                before = before or self.last.sender.was_cut_off(sent)
                must(before or forgotten, f"{name} is marked without a doubt")

    def _forgotten(self, name: str) -> int:
        """How often it was sent to a gateway with the word that this one may have forgotten it."""
        links = [node.link for node in self.nodes if node.link is not self.last]
        return sum(
            sent.name == name and "possibleDuplicate" in sent.body.get("hop", {})
            for link in links
            for sent in link.sent
        )

    def _check_hops(self, node: Node) -> None:
        """Towards a gateway what it may have forgotten, and only that, is a possible duplicate."""
        by_name: dict[str, list[Sent]] = defaultdict(list)
        for sent in node.link.sent:
            by_name[sent.name].append(sent)
        for name, some in by_name.items():
            for number, sent in enumerate(some):
                if "possibleDuplicate" not in sent.body.get("hop", {}):
                    self._check_remembered(sent, some[:number])
                    continue
                doubts = [one.at_s for one in some[:number] if one.is_doubtful]
                crashed = doubts and any(doubts[0] < at_s <= sent.at_s for at_s in node.crashes_s)
                if crashed or node.was_cut_off(sent):
                    # After a crash nobody knows when the answer was lost.
                    doubts.append(self.received_s.get(name, 0.0))
                old = any(sent.at_s - at_s > DEDUP_S - ON_THE_WAY_S for at_s in doubts)
                must(old or self._came_marked(node, name), f"{name} is marked towards a gateway")

    def _check_remembered(self, sent: Sent, before: list[Sent]) -> None:
        """What is sent to a gateway without a mark it knows again, or never had."""
        arrived_s = [
            one.arrived_at_s
            for one in before
            if one.entry_id == sent.entry_id and one.arrived_at_s is not None
        ]
        must(
            "hop" not in sent.body or not arrived_s or sent.at_s - max(arrived_s) <= DEDUP_S,
            f"{sent.name} is forgotten by a gateway, and not marked",
        )

    def _came_marked(self, node: Node, name: str) -> bool:
        return any(
            sent.name == name and "possibleDuplicate" in sent.body.get("hop", {})
            for other in self.nodes
            if other.link.to is node
            for sent in other.link.sent
        )

    def _check_delay(self, name: str, sent: Sent) -> None:
        """The delay is that of the whole way, whatever the clocks say."""
        details = sent.body["details"]
        if name in self.own_times:
            must(
                parse_rfc3339(details["occurredAt"]) == parse_rfc3339(self.own_times[name]),
                f"{name} has another time of its own",
            )
            return
        told_ms = sent.wall_ms - parse_rfc3339(details["occurredAt"])
        true_ms = (sent.at_s - self.given[name]) * 1000
        must(
            -50 <= true_ms - told_ms <= UNCOUNTED_MS_MAX + self._on_the_way_ms(name),
            f"{name} was {true_ms:.0f} ms on its way, and said {told_ms}",
        )

    def _on_the_way_ms(self, name: str) -> float:
        """What its requests themselves may have taken, until they arrived."""
        links = [node.link for node in self.nodes if node.link is not self.last]
        return sum(
            (sent.arrived_at_s - sent.at_s) * 1000
            for link in links
            for sent in link.sent
            if sent.name == name and sent.arrived_at_s is not None
        )

    def _check_attempts(self, name: str, sent: Sent) -> None:
        """They count requests of every hop, and no more than there were."""
        made = sum(
            one.name == name and one.at_s <= sent.at_s
            for node in self.nodes
            for one in node.link.sent
        )
        told = sent.body["details"]["deliveryAttempts"]
        must(len(self.gateways) + 1 <= told <= made, f"{name} tells {told} attempts of {made}")
