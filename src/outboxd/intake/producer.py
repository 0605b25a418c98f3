"""Who hands an event in, and what that one may say.

The base is a user of this host, who may say everything. What else a producer is
limited to stands where it is authenticated; this room only asks.
"""

from __future__ import annotations

from typing import Protocol

from outboxd.errors import EventError
from outboxd.event.komodor import Event


class NotAllowed(EventError):
    """The event is valid, and this producer may not say it: 422, so that a sending
    agent makes a dead letter of it and does not hold everything."""


class ProducerWatch(Protocol):
    """Who is told what becomes of a producer's events, by its name."""

    # Whether anybody hands in of whom more is told than refusals.
    follows_events: bool

    def accepted(self, producer: str, count: int) -> None: ...

    def refused(self, producer: str, reason: str, count: int, told: str) -> None: ...

    def clock_wrong(self, producer: str, host: str, ahead_ms: int) -> None: ...


class Producer:
    """Somebody who hands events in. Dedup keys count within its `name`."""

    __slots__ = ("name",)

    is_agent = False  # another agent of ours, whose `hop` is believed

    def __init__(self, name: str) -> None:
        self.name = name  # such as "uid:1000" or "token:web-hosts"

    def admit(self, event: Event) -> None:
        """Fill in what the producer stands for. Raises NotAllowed."""

    def wait_s(self, count: int) -> float:
        """Take `count` events out of its rate: 0.0, or the seconds after which they
        could be, and then none were taken."""
        return 0.0


def user(user_id: int) -> Producer:
    """A user of this host: a socket's peer, or a file's owner."""
    return Producer(f"uid:{user_id}")


# The agent itself, which reports the end of an outage.
AGENT = Producer("agent")
