"""What people and scripts put on a command line, as an event can hold it.

Pure, and light: `emit` and `exec` pass through it each time.
"""

from __future__ import annotations

from outboxd.producer.messages import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from outboxd.producer.command_line import Arguments

UNREADABLE = "\ufffd"


def make_readable(arguments: Arguments, names: Iterable[str]) -> None:
    """Replace what is not UTF-8 in these arguments by U+FFFD, with one warning for all.

    The interpreter keeps each such byte as half a surrogate pair (PEP 383), which no event
    can hold; better an event with a gap than none.
    """
    replaced = []
    for name in names:
        value = getattr(arguments, name)
        clean = (
            [readable(each) for each in value] if isinstance(value, list) else readable(value or "")
        )
        if value and clean != value:
            setattr(arguments, name, clean)
            replaced.append(name.replace("_", "-"))
    if replaced:
        say(f"warning: {', '.join(replaced)}: what is not UTF-8 was replaced by {UNREADABLE}")


def readable(text: str) -> str:
    """The text without halves of surrogate pairs."""
    if text.isascii():
        return text
    return "".join(UNREADABLE if "\ud800" <= each <= "\udfff" else each for each in text)


def moment(text: str) -> str:
    """A time as `date` prints it, as RFC 3339 writes it; any other text as it is.

    `date --rfc-3339` has a space for the T, `date -Ins` a comma before the fraction,
    `date -Iminutes` no seconds, and %z no colon in the offset.
    """
    if len(text) < 16 or text[4] + text[7] + text[13] != "--:":
        return text
    day, time = text[:10], text[11:].replace(",", ".")
    if text[10] not in " Tt":
        return text
    start = max(time.rfind("+"), time.rfind("-"))
    clock, offset = (time[:start], time[start:]) if start > 0 else (time, "")
    if offset[1:].isdecimal() and len(offset) == 5:
        offset = f"{offset[:3]}:{offset[3:]}"
    if len(clock) == 5 and offset:
        clock += ":00"
    return f"{day}T{clock}{offset}"
