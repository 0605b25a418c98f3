"""The answer to a batch, collected in bounded memory.

64 MiB of short lines have an answer many times as long. It cannot be sent
before the request was read (many clients do not read until they have sent
all), so full blocks are kept compressed: results repeat themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

BLOCK_BYTES = 1024 * 1024

_HEAD, _TAIL = b'{"results": [', b"]}\n"


class Results:
    """Results in order; `length` bytes of JSON in `blocks()`."""

    def __init__(self) -> None:
        self._packed: list[tuple[bytes, int]] = []  # compressed and 0, or a text and how often
        self._open = bytearray(_HEAD)
        self._count = 0
        self._packed_length = 0

    @property
    def is_one_fault(self) -> bool:
        """Whether there was one line, and it was refused."""
        return self._count == 1 and self._open.startswith(_HEAD + b'{"error"')

    @property
    def length(self) -> int:
        return self._packed_length + len(self._open) + len(_TAIL)

    def add(self, results: Iterable[bytes]) -> None:
        """Append results that are JSON already."""
        for result in results:
            if self._count:
                self._open += b",\n"
            self._open += result
            self._count += 1
        if len(self._open) >= BLOCK_BYTES:
            self._pack()

    def add_same(self, result: bytes, count: int) -> None:
        """Append one result so many times, at the price of one."""
        if count and not self._count:
            self.add([result])
            count -= 1
        if not count:
            return
        self._pack()
        text = b",\n" + result
        before = self._packed[-1] if self._packed else (b"", 0)
        if before[0] == text:
            self._packed[-1] = (text, before[1] + count)
        else:
            self._packed.append((text, count))
        self._packed_length += count * len(text)
        self._count += count

    def _pack(self) -> None:
        if self._open:
            self._packed.append((zlib.compress(self._open, 1), 0))
            self._packed_length += len(self._open)
            self._open = bytearray()

    def blocks(self) -> Iterator[bytes]:
        """The whole answer, a block at a time."""
        for packed, count in self._packed:
            if not count:
                yield zlib.decompress(packed)
            at_once = max(1, BLOCK_BYTES // len(packed))
            for done in range(0, count, at_once):
                yield packed * min(at_once, count - done)
        yield bytes(self._open) + _TAIL
