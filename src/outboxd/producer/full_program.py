"""The way from the installed `outboxd` to the full program, and what to say where that is broken.

The full program lives in a virtual environment, which an upgrade of the system
breaks: its interpreter is gone, or is another version that finds no module of
it. Then the operator is told what to do, and that events are kept meanwhile.
"""

from __future__ import annotations

import os
import sys

from outboxd.errors import EX_UNAVAILABLE, OutboxdError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# What its interpreter runs: in isolation, and with our own words where nothing of it is found.
START = """\
import sys
try:
    from outboxd.cli.main import main
except Exception as error:
    print("outboxd:", {failure!r} + str(error), file=sys.stderr)
    print("outboxd: hint:", {hint!r}, file=sys.stderr)
    sys.exit({code})
sys.exit(main())
"""
HINT = (
    "an upgrade of the system may have changed its Python: install outboxd again;"
    " emit, exec and the spool go on meanwhile, and what they keep is delivered then"
)


class CannotStart(OutboxdError):
    """The full program is missing or broken. The code is sysexits.h's for 'a support program
    or file does not exist'."""

    exit_code = EX_UNAVAILABLE


def become(environment: str, words: Sequence[str]) -> NoReturn:
    """Run this command line by the program in that virtual environment, in this process's place.

    Raises CannotStart where its interpreter cannot be executed.
    """
    python = f"{environment}/bin/python"
    failure = f"the program in {environment} cannot start: "
    start = START.format(failure=failure, hint=HINT, code=EX_UNAVAILABLE)
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        os.execv(python, [python, "-I", "-c", start, *words])
    except OSError as error:
        raise CannotStart(f"{failure}{python}: {error.strerror}", HINT) from None


def incomplete(error: ImportError) -> CannotStart:
    """What to say where a command of the full program cannot import what it needs."""
    return CannotStart(f"a part of outboxd cannot be loaded: {error}", HINT)
