"""What a look at an agent's surroundings finds: one finding a thing that was looked at.

The agent tells them over its socket and `outboxd check` prints them, so the words
for both are here. Nothing is looked at in this room.
"""

from __future__ import annotations

from typing import NamedTuple

from outboxd.errors import EX_CONFIG, EX_NOPERM, EX_OK, EX_TEMPFAIL, EX_UNAVAILABLE

GOOD, NOTE, BAD = "ok", "note", "fail"
# Of several faults the exit code is that which must be mended first.
FIRST_TO_MEND = (EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE, EX_TEMPFAIL)


class Finding(NamedTuple):
    """One line of the report."""

    level: str  # GOOD, NOTE (may cost something later) or BAD (costs events now)
    name: str
    told: str
    hint: str | None = None
    exit_code: int = EX_OK

    def shape(self) -> dict[str, str | int | None]:
        """As JSON has it, over the socket and for `check --json`."""
        return {
            "level": self.level,
            "name": self.name,
            "told": self.told,
            "hint": self.hint,
            "exitCode": self.exit_code,
        }


def good(name: str, told: str) -> Finding:
    return Finding(GOOD, name, told)


def note(name: str, told: str, hint: str) -> Finding:
    return Finding(NOTE, name, told, hint)


def bad(name: str, told: str, hint: str, exit_code: int) -> Finding:
    return Finding(BAD, name, told, hint, exit_code)


def exit_code(found: list[Finding]) -> int:
    """The exit code of a whole report."""
    codes = {finding.exit_code for finding in found}
    return next((code for code in FIRST_TO_MEND if code in codes), EX_OK)
