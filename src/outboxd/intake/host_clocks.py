"""Whether the clock of the host that an event comes from is wrong, as far as the event shows.

Pure. The delay of an event is carried by its age, which no wrong clock spoils; but
`occurredAt` is the host's own, and who reads it should know.
"""

from __future__ import annotations

from outboxd.event.hop import read_hop_text
from outboxd.outbox.model import Incoming

WRONG_MS = 60_000  # less may be the way here, and what a clock may be off in good order


def ahead_ms(incoming: Incoming) -> int | None:
    """How far the host's clock is ahead of ours (below 0: behind); None where the event
    does not show that it is wrong.

    A hop's age is how long ago it occurred, by the clock that `occurredAt` is of: both
    together are the host's present. Without a hop only what lies in the future shows.
    """
    occurred_at = incoming.occurred_at
    if occurred_at is None:
        return None
    ahead = occurred_at - incoming.received_at
    if incoming.hop is None:
        return ahead if ahead >= WRONG_MS else None
    ahead += read_hop_text(incoming.hop).age_ms
    return ahead if abs(ahead) >= WRONG_MS else None
