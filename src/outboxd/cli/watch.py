"""`outboxd status --watch`: the screen, kept up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from outboxd.cli.queue import client_config, open_queue
from outboxd.cli.status import screen, take
from outboxd.config.load import Config
from outboxd.errors import EX_OK, OutboxdError
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless

INTERVAL_S = 1.0
BARS = " ▁▂▃▄▅▆▇█"
BARS_COLUMNS = 60


def watch(arguments: Arguments) -> int:
    """Show it until Ctrl-C; an agent that goes away and comes back is no end."""
    config = client_config(arguments)
    try:
        if sys.stdout.isatty():
            _live(arguments, config)
        else:
            _plain(arguments, config)
    except KeyboardInterrupt:
        pass
    return EX_OK


def _live(arguments: Arguments, config: Config) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            text = Text.from_ansi("\n".join(_lines(arguments, config, True)))
            title = time.strftime("outboxd, %H:%M:%S")
            panel = Panel(text, title=title, subtitle="Ctrl-C ends", padding=(1, 2))
            live.update(panel, refresh=True)
            time.sleep(INTERVAL_S)


def _plain(arguments: Arguments, config: Config) -> None:
    while True:
        print("\n".join(_lines(arguments, config, False)) + "\n", flush=True)
        time.sleep(INTERVAL_S)


def _lines(arguments: Arguments, config: Config, coloured: bool) -> list[str]:
    try:
        with open_queue(arguments) as queue:
            picture = take(queue, arguments, config)
    except OutboxdError as error:
        return [harmless(error.message), *([error.hint] if error.hint else [])]
    lines = screen(picture, config, coloured)
    if picture.activity and len(picture.activity["at"]) > 1:
        lines += ["", "Backlog of the last hour:", bars(picture.activity["pending"])]
    return lines


def bars(values: Sequence[int], columns: int = BARS_COLUMNS) -> str:
    """The values as a row of bars, each column the highest of its share."""
    columns = min(columns, len(values))
    highest = max(values)
    if columns == 0 or highest == 0:
        return BARS[1] * columns
    shares = (
        values[index * len(values) // columns : (index + 1) * len(values) // columns]
        for index in range(columns)
    )
    return "".join(BARS[1 + round(max(share) * (len(BARS) - 2) / highest)] for share in shares)
