"""The other end of the line, Komodor or a gateway that sends on, and the body for it.

Komodor gets the stored body with the stamps that are due in its details, when it
is sent late or in doubt. A gateway says that it is one in the header
`Outboxd-Gateway` of every answer that it gives to somebody it knows. What goes to
it carries no stamps but the member `hop`, and the last hop adds it all up. As long
as nobody has said what it is, a request offers a hop in a header of its own, which
Komodor passes over; a gateway then asks for it (425) before it takes the event.

Pure: the time is an argument. It never changes what the producer wrote: a key that
is there stays. The one exception is `possibleDuplicate`, which is a fact about this
delivery that only the agent can know.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.json import decode

from outboxd.event.hop import GREETING, NO_HOP, Hop, further, hop_text, read_hop_text
from outboxd.event.komodor import merge_details
from outboxd.outbox.model import Claimed, Entry
from outboxd.status import Gateway
from outboxd.times import rfc3339
from outboxd.units import format_duration

HOP_WANTED = 425  # RFC 8470, Too Early: nothing was kept, and it is to be sent again
VERSION = "1"
# A request may take so long until the gateway looks whether it knows the event.
ON_THE_WAY_S = 60.0
POSSIBLE_DUPLICATE = "possibleDuplicate"
_OURS = frozenset({POSSIBLE_DUPLICATE})


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


def is_late(claimed: Claimed, now_ms: int, late_after_s: float) -> bool:
    """Whether more time than `late_after_s` has passed since it occurred."""
    return _age_ms(claimed, now_ms) > late_after_s * 1000


def stamps(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> dict[str, object]:
    """The details to add, empty for an ordinary delivery in time.

    `stamp` is the setting: late, always or never.
    """
    added: dict[str, object] = {}
    is_told_late = stamp == "always" or (stamp == "late" and is_late(claimed, now_ms, late_after_s))
    is_doubtful = claimed.possible_duplicate or claimed.hop is not None
    if not (is_told_late or is_doubtful or claimed.repeats):
        return added  # the usual case
    hop = further(
        _hop(claimed),
        age_ms=0,
        attempts=claimed.attempt_count + 1,
        repeats=claimed.repeats,
        last_occurred_at=claimed.last_occurred_at,
        possible_duplicate=claimed.possible_duplicate,
        host="",
    )
    if is_told_late:
        age_ms = _age_ms(claimed, now_ms)
        occurred_at = now_ms - age_ms if claimed.occurred_at is None else claimed.occurred_at
        added["occurredAt"] = rfc3339(occurred_at)
        # The wall clock may have been set back since: no delay is negative.
        added["deliveryDelay"] = format_duration(max(0.0, age_ms / 1000))
        added["deliveryAttempts"] = hop.attempts
    if hop.repeats:
        added["repeats"] = hop.repeats
        if hop.last_occurred_at is not None:
            added["lastOccurredAt"] = rfc3339(hop.last_occurred_at)
    if hop.possible_duplicate:
        added[POSSIBLE_DUPLICATE] = True
    return added


def stamped(claimed: Claimed, now_ms: int, stamp: str, late_after_s: float) -> bytes:
    """The body to send: the stored one, with the stamps that are due."""
    added = stamps(claimed, now_ms, stamp, late_after_s)
    return merge_details(claimed.body, added, overwrite=_OURS) if added else claimed.body


def as_sent(entry: Entry, now_ms: int) -> tuple[Claimed, int] | None:
    """The entry as it was when it was sent last (while it is pending: as it is now), and
    when that was; None for what died without an attempt."""
    attempts = decode(entry.attempts)
    if entry.ended_at is not None and not attempts:
        return None
    sent = entry.ended_at is not None
    claimed = Claimed(
        seq=entry.seq,
        id=entry.id,
        body=entry.body,
        received_at=entry.received_at,
        occurred_at=entry.occurred_at,
        expires_at=entry.expires_at,
        attempt_count=entry.attempt_count - sent,
        spent=entry.spent,
        possible_duplicate=entry.possible_duplicate,
        repeats=entry.repeats,
        last_occurred_at=entry.last_occurred_at,
        source=entry.source,
        hop=entry.hop,
    )
    return claimed, int(attempts[-1][0]) if sent else now_ms


def _hop(claimed: Claimed) -> Hop:
    return NO_HOP if claimed.hop is None else read_hop_text(claimed.hop)


def _age_ms(claimed: Claimed, now_ms: int) -> int:
    """Since it occurred. Where another agent had it before, that one told its age
    when it sent it, which no wrong clock of its host can spoil."""
    if claimed.hop is not None:
        return _hop(claimed).age_ms + now_ms - claimed.received_at
    return now_ms - (claimed.received_at if claimed.occurred_at is None else claimed.occurred_at)
