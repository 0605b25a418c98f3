"""A quick look whether a long text is JSON at all.

The careful reader (`event.strictjson`, `event.jsonfaults`) takes 20 ms for 256 KiB
of numbers and four times that to say what is wrong, and the interpreter serves
nothing else meanwhile. This takes two. It must never accept for the careful
reader, nor refuse what that one would take.
"""

from __future__ import annotations

import re

import msgspec

from outboxd.errors import EventError

_MALFORMED = re.compile(r"JSON is malformed: (.{1,100}) \(byte (\d{1,10})\)")
_decode = msgspec.json.Decoder().decode


def check_syntax(data: bytes) -> None:
    """Raises EventError, with the place, for what is certainly no JSON; returns for all else."""
    try:
        _decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        if str(error) == "Input data was truncated":
            raise EventError(
                f"not JSON: it ends too early, after {len(data)} bytes", None, "send it whole"
            ) from None
        found = _MALFORMED.fullmatch(str(error))
        if found is None:
            return  # too deep, too large a number, not UTF-8: the careful reader has the word
        at = min(int(found[2]), len(data))
        line = data.count(b"\n", 0, at) + 1
        column = at - data.rfind(b"\n", 0, at)
        raise EventError(
            f"not JSON: {found[1]} at line {line} column {column}",
            None,
            "send one JSON object, in UTF-8",
        ) from None
