"""What is said to people on stderr: one line each, whatever it is about.

It must never fail, and nothing that it writes can steer a terminal.
"""

from __future__ import annotations

import os
import sys

from outboxd.errors import EventError, OutboxdError
from outboxd.text import harmless

MESSAGE_CHARACTERS_MAX = 4000


def report(error: OutboxdError) -> None:
    """An error on stderr: what failed, and what to do next."""
    if isinstance(error, EventError):
        # One line: it often ends in a mail or a log beside many others.
        field = f"{error.field}: " if error.field and error.field not in error.message else ""
        hint = f" ({error.hint})" if error.hint else ""
        say(f"{field}{error.message}{hint}")
        return
    say(error.message)
    if error.hint:
        say(f"hint: {error.hint}")


def say(text: str) -> None:
    """One line on stderr, whatever the text holds; never fails."""
    line = harmless(text)
    if len(line) > MESSAGE_CHARACTERS_MAX:
        line = line[:MESSAGE_CHARACTERS_MAX] + "..."
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"outboxd: {line}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads it; the exit code still tells


def settle() -> None:
    """Leave nothing for the interpreter to write at its end: where it cannot (a log on a full
    disk), it would end with 120 in place of the command's own status."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            silence(descriptor)


def silence(descriptor: int) -> None:
    """Point a standard stream to nowhere: what is left in its buffer goes there."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    except OSError:
        pass
