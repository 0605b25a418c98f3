"""`outboxd release`: end a hold of the destination or of one entry."""

from __future__ import annotations

from outboxd.cli.queue import open_queue, pending_id
from outboxd.errors import EX_OK
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Let the destination, or one entry, go on."""
    with open_queue(arguments) as queue:
        if arguments.id is None:
            queue.release(None)
            print("the destination is released" + _when(queue.running))
        else:
            id = pending_id(queue, arguments.id, "released")
            queue.release(id)
            print(f"{id} is released" + _when(queue.running))
    return EX_OK


def _when(running: bool) -> str:
    return "" if running else "; it goes on when the agent starts"
