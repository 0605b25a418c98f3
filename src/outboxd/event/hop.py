"""What one agent tells the next of an event's way so far: the member `hop`.

Pure. It carries an age and not an instant, so that a host's wrong clock does no
harm: each hop adds the time that the event spent with it. Only the last hop, the
one that speaks with Komodor, writes any of it into the event's details. It is
taken from authenticated peers alone; a producer that sends it is refused as for
any unknown field.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from outboxd.errors import EventError
from outboxd.event.jsontext import Number, kind_of, quoted, shown
from outboxd.event.strictjson import read_object
from outboxd.times import parse_rfc3339, rfc3339

# What both ends say beside the event. A request's header with the first two values:
OFFER = "Outboxd-Hop"
OFFERED = "offered"  # its sender is an agent, and does not know yet whether this is a gateway
ASKED = "asked"  # what became of the event with this key? None is taken
STATE = "Outboxd-State"  # the header that answers the latter: a state, or UNKNOWN
UNKNOWN = "unknown"  # to the gateway: it never had it, or has forgotten it
GREETING = "Outboxd-Gateway"  # of each answer to somebody who is known
# The one answer to all others.
UNAUTHENTICATED = "this needs a token of this gateway"

HOST_MAX = 253  # characters: the longest name that DNS has (RFC 1035)
AGE_MS_MAX = 100 * 366 * 86_400_000  # a century
COUNT_MAX = 1_000_000_000

FIELDS = ("ageMs", "attempts", "repeats", "lastOccurredAt", "possibleDuplicate", "host")


class Hop(NamedTuple):
    """The way of an event before it came here, summed over all hops."""

    age_ms: int = 0  # from its occurrence, else its first receipt, to when it was sent here
    attempts: int = 0  # requests made for it, the one that brought it here included
    repeats: int = 0  # identical events that were merged into it
    last_occurred_at: int | None = None  # when the last of those occurred
    possible_duplicate: bool = False  # the gateway no longer knows whether it had it before
    host: str = ""  # where it came in first


NO_HOP = Hop()


def read_hop(value: Any) -> Hop:
    """The hop that a parsed member holds; `value` comes from `strictjson`.

    Raises:
        EventError: it names the field. A sending agent is an older or newer one of
            ours, so unknown fields are passed over and missing ones are zero.
    """
    if type(value) is not dict:
        raise EventError(f"hop is {kind_of(value)}, not an object", "$.hop", None)
    last = value.get("lastOccurredAt")
    possible = value.get("possibleDuplicate", False)
    host = value.get("host", "")
    if type(possible) is not bool:
        raise _wrong("possibleDuplicate", possible, "true or false")
    if type(host) is not str:
        raise _wrong("host", host, "a string")
    return Hop(
        _whole(value, "ageMs", AGE_MS_MAX),
        _whole(value, "attempts", COUNT_MAX),
        _whole(value, "repeats", COUNT_MAX),
        None if last is None else _moment(last),
        possible,
        host[:HOST_MAX],
    )


def read_hop_text(text: str) -> Hop:
    """The hop that `hop_text` wrote."""
    return read_hop(read_object(f'{{"hop":{text}}}')["hop"][0])


def hop_text(hop: Hop) -> str:
    """The hop as the compact JSON of its member; what is zero is left out."""
    members = [f'"ageMs":{hop.age_ms}', f'"attempts":{hop.attempts}']
    if hop.repeats:
        members.append(f'"repeats":{hop.repeats}')
    if hop.last_occurred_at is not None:
        members.append(f'"lastOccurredAt":"{rfc3339(hop.last_occurred_at)}"')
    if hop.possible_duplicate:
        members.append('"possibleDuplicate":true')
    if hop.host:
        members.append(f'"host":{quoted(hop.host)}')
    return "{" + ",".join(members) + "}"


def further(
    before: Hop,
    *,
    age_ms: int,
    attempts: int,
    repeats: int,
    last_occurred_at: int | None,
    possible_duplicate: bool,
    host: str,
) -> Hop:
    """The way so far, this hop's part added: what to send to the next one.

    `age_ms` is the time that the event spent here, `attempts` the requests that were
    made from here, the one that is about to be made included.
    """
    lasts = [at for at in (before.last_occurred_at, last_occurred_at) if at is not None]
    return Hop(
        min(AGE_MS_MAX, before.age_ms + max(0, age_ms)),
        min(COUNT_MAX, before.attempts + attempts),
        min(COUNT_MAX, before.repeats + repeats),
        max(lasts, default=None),
        before.possible_duplicate or possible_duplicate,
        before.host or host,
    )


def _whole(members: dict[str, Any], name: str, most: int) -> int:
    value = members.get(name)
    if value is None:
        return 0
    if type(value) is not Number or not value.isdigit() or len(value) > 20:
        raise _wrong(name, value, f"a whole number from 0 to {most}")
    return min(int(value), most)


def _moment(value: Any) -> int:
    if type(value) is not str:
        raise _wrong("lastOccurredAt", value, "a time in RFC 3339")
    try:
        return parse_rfc3339(value)
    except ValueError:
        raise _wrong("lastOccurredAt", value, "a time in RFC 3339") from None


def _wrong(name: str, value: object, wanted: str) -> EventError:
    return EventError(f"hop.{name} {shown(str(value))} is not allowed", f"$.hop.{name}", wanted)
