"""What the other end of the line is: Komodor, or a gateway that sends on.

A gateway says so in the header `Outboxd-Gateway` of every answer that it gives to
somebody it knows. What goes to it carries no stamps but the member `hop`, and the
last hop adds it all up. As long as nobody has said what it is, a request offers a
hop in a header of its own, which Komodor passes over; a gateway then asks for it
(425) before it takes the event. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from outboxd.delivery.late import as_sent, stamped
from outboxd.event.hop import GREETING, NO_HOP, further, hop_text, read_hop_text
from outboxd.outbox.model import Claimed, Entry
from outboxd.status import Gateway
from outboxd.times import rfc3339

HOP_WANTED = 425  # RFC 8470, Too Early: nothing was kept, and it is to be sent again
VERSION = "1"
# A request may take so long until the gateway looks whether it knows the event.
ON_THE_WAY_S = 60.0


def read_greeting(value: str) -> Gateway | None:
    """The gateway that a header's value describes; None where it is of a version
    that we do not speak. What is missing or no number counts as usual."""
    version, *parts = (part.strip() for part in value.split(";"))
    if version != VERSION:
        return None
    told = dict(part.partition("=")[::2] for part in parts)

    def number(name: str, usual: int) -> int:
        text = told.get(name, "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else usual

    return Gateway(number("dedup", 604_800), number("type", 60), number("bytes", 256 * 1024))


class NextHop:
    """What is known of the other end; learned from its answers."""

    __slots__ = ("gateway", "is_known")

    def __init__(self) -> None:
        self.gateway: Gateway | None = None
        self.is_known = False

    def learn(self, status: int | None, headers: Mapping[str, str]) -> None:
        """From an answer."""
        greeting = headers.get(GREETING.lower())
        if greeting is not None:
            self.is_known, self.gateway = True, read_greeting(greeting)
        elif status is not None and 200 <= status < 300:
            # Anybody may refuse or fail on the way; who takes an event is the other end.
            self.is_known, self.gateway = True, None

    @property
    def is_gateway(self) -> bool | None:
        """None as long as nobody has said."""
        return self.gateway is not None if self.is_known else None

    def shown_body(
        self, entry: Entry, now_ms: int, stamp: str, late_after_s: float, host: str
    ) -> bytes:
        """The body as it was sent last, or for what is pending as it would be sent now.

        What was never sent shows what its producer wrote. An entry does not say whom
        it was sent to: the other end is taken to be the same as it is now.
        """
        found = as_sent(entry, now_ms)
        if found is None:
            return entry.body
        claimed, at_ms = found
        return self.body(claimed, at_ms, stamp, late_after_s, host)

    def body(
        self,
        claimed: Claimed,
        now_ms: int,
        stamp: str,
        late_after_s: float,
        host: str,
        doubted_for_s: float | None = None,
    ) -> bytes:
        """The body to send: with stamps to Komodor, with the hop to a gateway.

        `doubted_for_s`: how long ago it was sent first of whose answers one was lost;
        None where that is not known (any more).
        """
        if self.gateway is None:
            return stamped(claimed, now_ms, stamp, late_after_s)
        return hop_body(claimed, now_ms, self.gateway, host, doubted_for_s)


def hop_body(
    claimed: Claimed,
    now_ms: int,
    gateway: Gateway,
    host: str,
    doubted_for_s: float | None = None,
) -> bytes:
    """The stored body with what is the agents' own: `occurredAt` if the producer gave
    it, what is left of the ttl, and the hop.

    The entry's id goes along as its dedup key, so that a lost answer makes no
    duplicate as long as the gateway knows that id. Where nobody knows when an answer
    was lost, it may have been right after the receipt.
    """
    since = claimed.received_at if claimed.occurred_at is None else claimed.occurred_at
    before = NO_HOP if claimed.hop is None else read_hop_text(claimed.hop)
    if claimed.hop is not None:
        since = claimed.received_at  # the time before is in the hop
    elapsed_s = doubted_for_s
    if elapsed_s is None:
        elapsed_s = (now_ms - claimed.received_at) / 1000
    hop = further(
        before,
        age_ms=now_ms - since,
        attempts=claimed.attempt_count + 1,
        repeats=claimed.repeats,
        last_occurred_at=claimed.last_occurred_at,
        possible_duplicate=claimed.possible_duplicate
        and elapsed_s > gateway.dedup_s - ON_THE_WAY_S,
        host=host,
    )
    members = [f',"hop":{hop_text(hop)}']
    if claimed.occurred_at is not None:
        members.append(f',"occurredAt":"{rfc3339(claimed.occurred_at)}"')
    if claimed.expires_at is not None:
        left_s = max(0.001, (claimed.expires_at - now_ms) / 1000)
        members.append(f',"ttlSeconds":{left_s:.3f}')
    return claimed.body[:-1] + "".join(members).encode() + b"}"
