"""`outboxd wait`: until an event is delivered, for scripts that must know."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from outboxd.cli.events import why_it_waits
from outboxd.cli.queue import Queue, open_queue, resolve_id
from outboxd.cli.rows import ListedEntry, read_entry
from outboxd.errors import EX_OK, EX_UNAVAILABLE, Unavailable
from outboxd.producer.command_line import Arguments
from outboxd.status import Through
from outboxd.text import harmless

EXIT_DEAD = 1
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 1.0
# Even where the time is up a look is worth so long: a busy agent needs a moment.
LOOK_MIN_S = 2.0


class _Look(NamedTuple):
    """What one look showed."""

    entry: ListedEntry
    through: Through | None  # as the gateway has it, where that was wanted and could be asked

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        if self.through is None:
            return self.entry.state != "pending"
        return self.through.state in ("delivered", "dead", "unknown")


def run(arguments: Arguments) -> int:
    """0 delivered, 1 dead, 69 not in time or no agent, 65 unknown."""
    ends_at_s = time.monotonic() + arguments.timeout_s
    pause_s = PAUSE_FIRST_S
    agent_seen = False
    while True:
        try:
            # Connects anew for each look: it costs next to nothing, and the
            # agent may be restarted while we wait.
            longest_s = max(LOOK_MIN_S, ends_at_s - time.monotonic())
            with open_queue(arguments, longest_s) as queue:
                agent_seen = agent_seen or queue.running
                look = _look(queue, arguments)
                left_s = ends_at_s - time.monotonic()
                if look.is_over or left_s <= 0 or not agent_seen:
                    return _verdict(look, queue)
        except Unavailable:
            left_s = ends_at_s - time.monotonic()
            if not agent_seen or left_s <= 0:
                raise
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, PAUSE_MAX_S)


def _look(queue: Queue, arguments: Arguments) -> _Look:
    entry = read_entry(queue.get(resolve_id(queue, arguments.id)))
    if entry.state != "delivered" or not arguments.through:
        return _Look(entry, None)
    return _Look(entry, queue.through(entry.id))


def _verdict(look: _Look, queue: Queue) -> int:
    entry, through = look
    if through is not None:
        return _verdict_of_gateway(entry, through)
    if entry.state == "delivered":
        if entry.destination_is_gateway:
            _say(f"the gateway has {entry.id}; --through waits until it has delivered it, too")
        return EX_OK
    if entry.state == "dead":
        why = f": {harmless(entry.last_error)}" if entry.last_error else ""
        _say(f"{entry.id} is a dead letter ({entry.dead_reason}){why}")
        return EXIT_DEAD
    reason = why_it_waits(entry, time.time_ns() // 1_000_000, queue)
    _say(f"{entry.id} is still pending: {reason}")
    return EX_UNAVAILABLE


def _verdict_of_gateway(entry: ListedEntry, through: Through) -> int:
    if through.state == "delivered":
        return EX_OK
    if through.state == "dead":
        _say(f"{entry.id} is a dead letter of the gateway: `outboxd dead-letters` there says why")
        return EXIT_DEAD
    if through.state == "pending":
        _say(f"the gateway has {entry.id}, and it is still pending there")
    elif through.state == "unknown":
        _say(
            f"the gateway does not know {entry.id}, or no longer: its dedup window is over, the"
            " event was merged into an equal one, or another gateway took it"
        )
    else:
        why = harmless(through.reason or "the gateway could not be asked")
        _say(f"{entry.id} was delivered; what became of it behind that is not known: {why}")
    return EX_UNAVAILABLE


def _say(told: str) -> None:
    print(f"outboxd: {told}", file=sys.stderr)
