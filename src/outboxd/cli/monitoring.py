"""`outboxd monitoring`: print the alert rules or the dashboard of this version."""

from __future__ import annotations

import sys

from outboxd.errors import EX_OK
from outboxd.monitoring import read
from outboxd.producer.command_line import Arguments


def run(arguments: Arguments) -> int:
    """Print the file, to be written where Prometheus or Grafana reads it."""
    assert arguments.subcommand is not None  # the command line's grammar sees to it
    text = read(arguments.subcommand)
    if arguments.subcommand == "rules" and arguments.readme:
        text = text.replace('"README.md#', f'"{arguments.readme}#')
    sys.stdout.write(text)
    return EX_OK
