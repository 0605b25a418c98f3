"""`outboxd wait`: until an event is delivered, for scripts that must know."""

from __future__ import annotations

import sys
import time

from outboxd.cli.events import why_it_waits
from outboxd.cli.queue import Queue, open_queue, resolve_id
from outboxd.cli.rows import EntryRow, read_entry
from outboxd.errors import EX_OK, EX_UNAVAILABLE, Unavailable
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless

EXIT_DEAD = 1
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 1.0


def run(arguments: Arguments) -> int:
    """0 delivered, 1 dead, 69 not in time or no agent, 65 unknown."""
    ends_at_s = time.monotonic() + arguments.timeout_s
    pause_s = PAUSE_FIRST_S
    agent_seen = False
    while True:
        try:
            # Connects anew for each look: it costs next to nothing, and the
            # agent may be restarted while we wait.
            with open_queue(arguments) as queue:
                agent_seen = agent_seen or queue.running
                entry = read_entry(queue.get(resolve_id(queue, arguments.id)))
                left_s = ends_at_s - time.monotonic()
                if entry.state != "pending" or left_s <= 0 or not agent_seen:
                    return _verdict(entry, queue)
        except Unavailable:
            left_s = ends_at_s - time.monotonic()
            if not agent_seen or left_s <= 0:
                raise
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, PAUSE_MAX_S)


def _verdict(entry: EntryRow, queue: Queue) -> int:
    if entry.state == "delivered":
        return EX_OK
    if entry.state == "dead":
        why = f": {harmless(entry.last_error)}" if entry.last_error else ""
        print(f"outboxd: {entry.id} is a dead letter ({entry.dead_reason}){why}", file=sys.stderr)
        return EXIT_DEAD
    reason = why_it_waits(entry, time.time_ns() // 1_000_000, queue)
    print(f"outboxd: {entry.id} is still pending: {reason}", file=sys.stderr)
    return EX_UNAVAILABLE
