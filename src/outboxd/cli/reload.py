"""`outboxd reload`: the agent takes its configuration over as it is now, or says why not."""

from __future__ import annotations

from outboxd.cli.agent import AgentQueue, AgentUnreachable
from outboxd.errors import EX_OK, ConfigError
from outboxd.producer import settings
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Ask it, and tell what only a restart takes over."""
    # Read as producers do: a broken file is for the agent to refuse, and to count.
    place = settings.load(arguments.config)
    try:
        queue = AgentQueue(arguments.socket or place.socket)
    except AgentUnreachable as error:
        if place.warning is None or arguments.socket:
            raise
        # Perhaps it runs, and its socket's name is what could not be read.
        raise ConfigError(place.warning, error.message) from None
    try:
        left = queue.reload()
    finally:
        queue.close()
    print("the configuration is in force" + (f", but for {', '.join(left)}" if left else ""))
    if left:
        print("`systemctl restart outboxd` (or outboxd@NAME) takes these over")
    return EX_OK
