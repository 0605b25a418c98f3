"""`outboxd sandbox`: a local stand-in for Komodor."""

from __future__ import annotations

import asyncio

from outboxd.config.addresses import split_listen
from outboxd.errors import EX_OK, UsageError
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Serve until a signal ends it."""
    # Imported here, so that a wrong option is told at once.
    import uvloop

    from outboxd.event.scope import Inventory
    from outboxd.sandbox.correlation import Correlation
    from outboxd.sandbox.faults import InjectedFaults
    from outboxd.sandbox.server import Sandbox, serve

    try:
        host, port = split_listen(arguments.listen)
    except ValueError:
        raise UsageError(
            f"--listen cannot be {arguments.listen!r}", "write HOST:PORT, such as 127.0.0.1:8099"
        ) from None
    sandbox = Sandbox(
        Correlation(Inventory.load(arguments.inventory)),
        arguments.api_key,
        InjectedFaults(fail_rate=arguments.fail_rate, latency_ms=arguments.latency_s * 1000),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sandbox, host, port, _announce))
    return EX_OK


def _announce(url: str) -> None:
    # Whoever started this process reads the port from this line.
    print(f"listening on {url}", flush=True)
