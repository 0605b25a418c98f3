"""A scripted way to Komodor, and Komodor at its end; it implements the transport.

The weather says what happens to the requests of a time; some events are
poisoned and never get through. It keeps what arrived and how each request
ended, for the checks.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate

from simulation.virtual_loop import VirtualClock

from outboxd.delivery.outcome import Answer, Fault

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0

# Weather in which no request at all is taken, by what it means for the sender.
OUTAGES = (
    "refused", "dns", "connect timeout", "silence", "reset", "500", "502", "503", "408", "425",
    "portal", "garbage", "lost answers", "late answers",
)  # fmt: skip
HOLDS = ("401", "402", "403", "404", "405", "407", "301", "302", "307", "308", "certificate")
THROTTLES = ("429", "429 date", "429 bare", "429 for hours", "503 told", "limit")
CALM = ("fine", "slow", "some fail", "some lost", "some slow", "cut")
REJECTS = ("400 for all", "422 for all")
# What a firewall, or Komodor itself, may have against single events: each class
# of the table.
GRUDGES = (
    *("400", "500", "503", "408", "reset", "garbage", "portal", "hang"),
    *("403", "404", "302", "page", "429", "429 bare", "503 told"),
)
# Weather in which a request may arrive although no answer comes.
DOUBTFUL = ("lost answers", "late answers")


@dataclass
class Request:
    """One request, as the network saw it."""

    number: int
    incarnation: int
    id: str
    name: str
    marked: bool
    began_s: float
    weather: str
    weather_serial: int
    details: dict
    ended_s: float | None = None
    arrived: bool = False
    answer: Answer | None = None  # None: in flight, or its sender died or stopped
    unsettled: bool = True  # until the outbox has it


@dataclass
class Network:
    """Implements `send` as the transport does."""

    clock: VirtualClock
    rng: random.Random
    latency_s: float = 0.05
    weather: str = "fine"
    weather_serial: int = 0
    skew_s: float = 0.0  # of the server's clock
    limit: float = 10.0  # requests a second in the weather "limit"
    good_key: str = "k1"
    key: str = "k1"  # the agent's
    incarnation: int = 0
    poison: dict[str, str] = field(default_factory=dict)  # of names: one of GRUDGES
    requests: list[Request] = field(default_factory=list)
    flying: set[int] = field(default_factory=set)
    on_start: Callable[[Request], None] = lambda request: None
    on_end: Callable[[Request], None] = lambda request: None
    _window: int = -1
    _in_window: int = 0

    def turn(self, weather: str) -> None:
        """Another weather, from the next request on."""
        self.weather = weather
        self.weather_serial += 1

    def refresh(self) -> None:
        """Connections are no part of this network."""

    async def send(self, id: str, body: bytes, offers_hop: bool = False) -> Answer:
        event = json.loads(body)
        details = event.get("details", {})
        request = Request(
            len(self.requests),
            self.incarnation,
            id,
            event["summary"],
            details.get("possibleDuplicate") is True,
            self.clock.monotonic_s(),
            self.weather,
            self.weather_serial,
            details,
        )
        self.requests.append(request)
        self.flying.add(request.number)
        self.on_start(request)
        try:
            answer = await self._exchange(request)
        except asyncio.CancelledError:
            # The sender is gone; what is on the wire may still come through.
            if not request.arrived and self._would_take(request) and self.rng.random() < 0.5:
                request.arrived = True
            raise
        else:
            request.answer = answer
            request.ended_s = self.clock.monotonic_s()
            self.on_end(request)
            return answer
        finally:
            self.flying.discard(request.number)

    def _would_take(self, request: Request) -> bool:
        fine = request.weather in CALM or request.weather in DOUBTFUL
        return fine and request.name not in self.poison and self.key == self.good_key

    async def _exchange(self, request: Request) -> Answer:
        weather, draw = request.weather, self.rng.random
        if weather in ("some fail", "some lost", "some slow") and draw() < 0.7:
            weather = "fine"
        if weather == "some fail":
            weather = self.rng.choice(OUTAGES[:10])
        elif weather == "some lost":
            weather = "lost answers"
        if weather in _BEFORE_ARRIVAL:
            fault, longest_s = _BEFORE_ARRIVAL[weather]
            await asyncio.sleep(longest_s if longest_s >= 10 else longest_s * draw())
            return Answer(fault=fault, sent=False)
        if weather in ("silence", "late answers"):
            limit_s = REQUEST_TIMEOUT_S - self.latency_s
            await asyncio.sleep(self.latency_s)
            if weather == "late answers":
                request.arrived = self._answer_of_komodor(request).status == 201
            await asyncio.sleep(limit_s)
            return Answer(fault=Fault.TIMEOUT)
        slow = weather in ("slow", "some slow")
        await asyncio.sleep(self.rng.uniform(5.0, 25.0) if slow else self.latency_s * draw())
        if weather == "reset":
            return Answer(fault=Fault.LOST)
        if weather == "garbage":
            return Answer(fault=Fault.GARBAGE)
        if weather == "lost answers":
            request.arrived = self._answer_of_komodor(request).status == 201
            return Answer(fault=Fault.LOST)
        answer = self._answer_of_weather(weather)
        if answer is None:
            if self.poison.get(request.name) == "hang":
                await asyncio.sleep(REQUEST_TIMEOUT_S)
                return Answer(fault=Fault.TIMEOUT)
            answer = self._answer_of_komodor(request)
            request.arrived = answer.status == 201
            if request.arrived and weather == "cut":
                # The status line came through, and of the rest what there is to be had.
                start = self.rng.choice((b"", b'{"i', b"\x1f\x8b\x08", b"OK"))
                answer = Answer(201, {"content-type": "text/html"}, start, complete=False)
        await asyncio.sleep(self.latency_s * draw())
        return answer

    def _answer_of_komodor(self, request: Request) -> Answer:
        if self.key != self.good_key:
            return Answer(401)
        if (kind := self.poison.get(request.name)) is not None:
            return _of_grudge(kind)
        return Answer(201, body_start=b'{"id": "x"}')

    def _answer_of_weather(self, weather: str) -> Answer | None:
        """What something in between, or an unwell Komodor, says; None: nothing."""
        if weather == "portal":
            return _of_grudge("portal")
        if weather in REJECTS:
            return Answer(int(weather[:3]), body_start=b"no")
        if weather == "certificate":
            return Answer(fault=Fault.CERTIFICATE, sent=False)
        if weather in OUTAGES or weather in HOLDS:
            headers = {"location": "https://elsewhere.example/"} if weather[0] == "3" else {}
            return Answer(int(weather), headers)
        if weather in THROTTLES:
            return self._throttle(weather)
        return None

    def _throttle(self, weather: str) -> Answer | None:
        wait_s = self.rng.randint(1, 40)
        if weather == "limit":
            window = int(self.clock.monotonic_s())
            if window != self._window:
                self._window, self._in_window = window, 0
            self._in_window += 1
            return None if self._in_window <= self.limit else Answer(429, {"retry-after": "1"})
        if weather == "429 bare":
            return Answer(429)
        if weather == "429 for hours":
            return Answer(429, {"retry-after": str(self.rng.choice([7200, 10**30]))})
        if weather == "429 date":
            now_s = self.clock.wall_ms() / 1000 + self.skew_s
            return Answer(
                429,
                {
                    "retry-after": formatdate(now_s + wait_s, usegmt=True),
                    "date": formatdate(now_s, usegmt=True),
                },
            )
        return Answer(int(weather[:3]), {"retry-after": str(wait_s)})


def _of_grudge(kind: str) -> Answer:
    """What is answered to an event that something has a grudge against."""
    page = b"<!doctype html><html>please sign in</html>"
    if kind in ("portal", "page"):
        return Answer(200 if kind == "portal" else 406, {"content-type": "text/html"}, page)
    if kind in ("reset", "garbage"):
        return Answer(fault=Fault.LOST if kind == "reset" else Fault.GARBAGE)
    if kind == "429":
        return Answer(429, {"retry-after": "5"})
    if kind == "503 told":
        return Answer(503, {"retry-after": "5"})
    return Answer(429 if kind == "429 bare" else int(kind))


_BEFORE_ARRIVAL = {
    "refused": (Fault.CONNECT, 0.01),
    "dns": (Fault.DNS, 5.0),
    "connect timeout": (Fault.CONNECT_TIMEOUT, CONNECT_TIMEOUT_S),
}
