"""`outboxd status --watch`: the screen, kept up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from outboxd.errors import EX_OK

INTERVAL_S = 1.0
BARS = " ▁▂▃▄▅▆▇█"
BARS_COLUMNS = 60


def watch(draw: Callable[[bool], list[str]]) -> int:
    """Show what `draw` gives, coloured or not, again and again until Ctrl-C."""
    try:
        if sys.stdout.isatty():
            _live(draw)
        else:
            _plain(draw)
    except KeyboardInterrupt:
        pass
    return EX_OK


def _live(draw: Callable[[bool], list[str]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            text = Text.from_ansi("\n".join(draw(True)))
            title = time.strftime("outboxd, %H:%M:%S")
            panel = Panel(text, title=title, subtitle="Ctrl-C ends", padding=(1, 2))
            live.update(panel, refresh=True)
            time.sleep(INTERVAL_S)


def _plain(draw: Callable[[bool], list[str]]) -> None:
    while True:
        print("\n".join(draw(False)) + "\n", flush=True)
        time.sleep(INTERVAL_S)


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
