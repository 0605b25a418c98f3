"""`outboxd run`: the agent itself. Nothing happens here but the handing over."""

from __future__ import annotations

import signal

from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    # One that comes before the agent can reload waits until it can: a start may last, where
    # it salvages, and the signal would end it. Before the imports, which take a while.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    from outboxd.agent.run import run_agent

    code: int = run_agent(arguments.config)
    return code
