"""`outboxd reload`: the agent takes its configuration over as it is now, or says why not."""

from __future__ import annotations

from outboxd.cli.agent import AgentQueue
from outboxd.errors import EX_OK
from outboxd.producer import settings
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Ask it, and tell what only a restart takes over."""
    # Read as producers do: a broken file is for the agent to refuse, and to count.
    queue = AgentQueue(arguments.socket or settings.load(arguments.config).socket)
    try:
        left = queue.reload()
    finally:
        queue.close()
    print("the configuration is in force" + (f", but for {', '.join(left)}" if left else ""))
    if left:
        print("`systemctl restart outboxd` (or outboxd@NAME) takes these over")
    return EX_OK
