"""Cutting a stream into lines, with a limit on the line and on what is kept.

Pure: bytes go in, portions of lines come out. A line over the limit becomes
None and its bytes are thrown away, so that memory stays bounded whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable

PORTION_LINES = 500


class LineCutter:
    """Feed bytes, take lines. The end of line is a newline; a last line may lack it."""

    def __init__(
        self, line_bytes_max: int, too_long: Callable[[bytes], None] | None = None
    ) -> None:
        """`too_long` is given the parts of lines over the limit, each ended by a newline."""
        self._line_bytes_max = line_bytes_max
        self._throw = too_long or _throw_away
        self._parts: list[bytes] = []  # of the line that has begun
        self._size = 0
        self._too_long = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that `data` completes."""
        *ended, rest = data.split(b"\n")
        lines: list[bytes | None] = []
        if ended:
            self._grow(ended[0])
            lines.append(self._take())
            lines += [self._whole(line) for line in ended[1:]]
        self._grow(rest)
        return lines

    @property
    def pending_bytes(self) -> int:
        """Of the line that has begun, as far as it is kept."""
        return 0 if self._too_long else self._size

    def end(self) -> list[bytes | None]:
        """The last line, where it had no newline."""
        return [self._take()] if self._size else []

    def _grow(self, part: bytes) -> None:
        self._size += len(part)
        # One byte more is allowed for the carriage return of a foreign line end.
        if self._size > self._line_bytes_max + 1:
            self._too_long = True
            for kept in self._parts:
                self._throw(kept)
            self._parts.clear()
            self._throw(part)
        elif part:
            self._parts.append(part)

    def _whole(self, line: bytes) -> bytes | None:
        if len(line) <= self._line_bytes_max + 1:
            return line
        self._throw(line)
        self._throw(b"\n")
        return None

    def _take(self) -> bytes | None:
        line = None
        if self._too_long:
            self._throw(b"\n")
        else:
            line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._too_long = False
        return line


def _throw_away(_: bytes) -> None:
    """Nobody wants it."""
