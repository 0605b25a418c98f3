"""`outboxd release`: end every wait of the destination, or the hold of one entry."""

from __future__ import annotations

from typing import Any

from outboxd.cli.queue import open_queue, pending_id
from outboxd.errors import EX_OK
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless

# What the destination did before, in the words of `outboxd status`.
_WAS = {
    "held": "was held",
    "throttled": "was throttled",
    "backingOff": "was unavailable, and backing off",
}


def run(arguments: Arguments) -> int:
    """Let the destination, or one entry, go on."""
    with open_queue(arguments) as queue:
        if arguments.id is None:
            print(_told(queue.release(None), queue.running))
        else:
            id = pending_id(queue, arguments.id, "released")
            queue.release(id)
            print(f"{id} is released" + ("" if queue.running else "; it goes on with an agent"))
    return EX_OK


def _told(released: dict[str, Any], running: bool) -> str:
    """What the state was, and what it is."""
    was = released["was"]
    waited = _WAS.get(was["state"])
    if waited is None:
        return f"nothing waited: the destination is {released['state']}"
    why = f" ({harmless(was['reason'])})" if was.get("reason") else ""
    now = "one request goes out now" if running else "one request goes out when the agent starts"
    return f"the destination {waited}{why}; it is released: {now}"
