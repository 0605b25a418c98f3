"""What the parts of the agent tell each other of the destination, and of a gateway's producers.

Types alone: delivery and the gateway fill them, the API and the commands show
them, and so neither has to import the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol


class DestinationState(StrEnum):
    """How the destination stands."""

    UNTRIED = "untried"  # no answer yet since the start; leaves with the first
    OK = "ok"  # the last answers were good
    BACKING_OFF = "backingOff"  # unavailable; one probe at a time until one succeeds
    THROTTLED = "throttled"  # waits as long as the answer told
    HELD = "held"  # by the operator, or by an answer that only a person can mend


class Gateway(NamedTuple):
    """What a gateway says of itself."""

    dedup_s: float = 604_800.0  # how long it knows an entry's id again
    event_type_max: int = 60  # characters
    event_bytes_max: int = 256 * 1024


class DestinationStatus(NamedTuple):
    """The destination at one moment; times in ms since 1970 (UTC)."""

    endpoint: str
    state: str
    reason: str | None
    since_at: int
    next_probe_at: int | None
    permits: int
    in_flight: int
    # Whether it is a gateway, which sends on; None as long as nobody has said.
    is_gateway: bool | None = None
    gateway: Gateway | None = None  # what it says of itself


class OtherAccount(NamedTuple):
    """Another account whose entries are in the same database."""

    name: str
    pending: int
    gateway: str | None  # who delivers them; None: nobody


class Deliverer(NamedTuple):
    """Who delivers, where several gateways share an outbox."""

    outbox: str  # the database, as people name it
    account: str  # by the name that its gateways give it
    gateway: str | None  # None: nobody now
    is_here: bool
    lease_left_s: float | None  # below 0: it has ended so long ago; None: nobody has one
    unled_s: float  # for how long nobody has had one, as far as was seen
    answer_s: float | None  # how long the database took to answer; None: not yet
    trouble: str | None  # why the database cannot be used now
    standby_lag_s: float | None = None  # of the slowest standby; None: none, or none seen
    others: tuple[OtherAccount, ...] = ()


class Through(NamedTuple):
    """What became of a delivered entry behind the destination."""

    state: str | None  # as the gateway has it, or "unknown" to it; None: it could not be asked
    reason: str | None = None  # why not


class RefusedEvents(NamedTuple):
    """What was refused to one producer for one reason."""

    reason: str  # as in the metrics; "rate": it was throttled; "no_right": it may not act
    events: int  # of "no_right": requests
    at: int  # the last time, in ms since 1970
    told: str  # what it was answered then


class UserRefused(NamedTuple):
    """A user of this host who was refused something."""

    producer: str  # such as "uid:1000"
    refused: tuple[RefusedEvents, ...]  # the latest first


class RefusedUsers(NamedTuple):
    """Who of this host was refused since the agent's start; the last of them first."""

    users: tuple[UserRefused, ...] = ()
    left_out: int = 0  # of whom more is known than is shown here


class WrongClock(NamedTuple):
    """A host whose clock was wrong by its last event."""

    host: str  # "" where the event did not say
    ahead_ms: int  # of the gateway's clock; below 0: behind it
    at: int


class ProducerSeen(NamedTuple):
    """Who handed in over TCP, by name, and what became of it."""

    name: str
    accepted: int  # events
    accepted_at: int | None  # the last time
    refused: tuple[RefusedEvents, ...]
    clocks: tuple[WrongClock, ...]


class StrangerSeen(NamedTuple):
    """An address from which requests came whose sender nobody knows."""

    peer: str
    reason: str  # of the last one
    requests: int
    at: int


class Trouble(NamedTuple):
    """What of a gateway cannot be used."""

    message: str
    hint: str
    keeps_out: bool = False  # everybody; else what was there before is in force


class Callers(NamedTuple):
    """Who came to a gateway since its start; the last to come first."""

    producers: tuple[ProducerSeen, ...]
    producers_left_out: int  # of whom more is known than is shown here
    strangers: tuple[StrangerSeen, ...]
    unauthenticated: int  # requests, from all addresses


class GatewayStatus(NamedTuple):
    """How this agent stands as a gateway for others."""

    address: str | None  # None: closed
    connections: int
    connections_max: int
    connections_per_peer: int
    tokens: int  # names that have one
    certificate_ends_at: int | None
    troubles: tuple[Trouble, ...]
    callers: Callers


class Destination(Protocol):
    """What the API may ask of the delivery side."""

    def status(self) -> DestinationStatus: ...

    async def hold(self, reason: str, by: str) -> None: ...

    async def release(self, by: str) -> None: ...

    async def ask_through(self, id: str) -> Through:
        """What became of an entry that it took. Makes no second event, whoever answers."""

    def wake(self) -> None:
        """Something became sendable: look again."""
