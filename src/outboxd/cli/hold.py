"""`outboxd hold`: nothing is sent and nothing is spent, until `outboxd release`."""

from __future__ import annotations

from outboxd.cli.queue import open_queue, pending_id
from outboxd.errors import EX_OK
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Hold the destination, or one entry."""
    with open_queue(arguments) as queue:
        if arguments.id is None:
            queue.hold(None, arguments.reason)
            print("the destination is held; events are kept, `outboxd release` goes on")
        else:
            id = pending_id(queue, arguments.id, "held")
            queue.hold(id, arguments.reason)
            print(f"{id} is held; `outboxd release {id}` lets it go")
    return EX_OK
