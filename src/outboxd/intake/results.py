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
        self._packed: list[bytes] = []
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
            self._packed.append(zlib.compress(self._open, 1))
            self._packed_length += len(self._open)
            self._open = bytearray()

    def blocks(self) -> Iterator[bytes]:
        """The whole answer, a block at a time."""
        for packed in self._packed:
            yield zlib.decompress(packed)
        yield bytes(self._open) + _TAIL
