"""`outboxd run`: the agent itself. Nothing happens here but the handing over."""

from __future__ import annotations

from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    from outboxd.agent.run import run_agent

    code: int = run_agent(arguments.config)
    return code
