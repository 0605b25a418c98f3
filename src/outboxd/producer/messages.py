"""What is said to people on stderr: one line each, whatever it is about.

It must never fail, and nothing that it writes can steer a terminal.
"""

# ruff: noqa: SIM105 (contextlib brings half a dozen modules that a cron job would wait for)

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
        write(f"outboxd: {line}\n")
    except (OSError, ValueError):
        pass  # nobody reads it; the exit code still tells


def write(text: str) -> None:
    """To stderr, if there is one, and past its buffer: what a full disk did not take would stay
    in that, and whatever program this is would end with 120 because of us.

    Raises:
        Exception: what the stream's own methods raise.
    """
    stream = sys.stderr
    if stream is None:
        return
    is_the_interpreters = stream is sys.__stderr__
    if not is_the_interpreters:  # the program's own, which may be anything
        stream.write(text)
        stream.flush()
        return
    stream.flush()
    os.write(stream.fileno(), text.encode(stream.encoding, "backslashreplace"))


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
