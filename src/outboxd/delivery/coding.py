"""The start of an answer's body, read through codings that nobody asked for.

Every request asks for `identity`, so an answer that is coded all the same comes
from something that does not listen: a portal with pages packed beforehand, a
proxy. What is packed with gzip or deflate is read, told or untold. For other
codings there is no decoder here: that such an answer cannot be read is said,
and `outcome` decides what follows from it. Pure; it unpacks no more than is kept.
"""

from __future__ import annotations

import codecs
import zlib

BODY_START_BYTES = 2048  # what is kept of a body, packed or not
# What may stand before the first character, in UTF-8, UTF-16 and UTF-32.
SPACE_AND_MARKS = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n\f\v"
# With what a packed body begins, whatever its head says of it: gzip, zstandard (RFC 8878),
# and zlib as everybody makes it (RFC 1950).
_GZIP, _ZSTANDARD, _ZLIB = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x78"
PACKED_STARTS = (_GZIP[:1], _ZSTANDARD[:1], _ZLIB)

_LAYERS_MAX = 4
_ANY_HEADER = 32 + zlib.MAX_WBITS  # gzip's or zlib's, as zlib's documentation has it
_TEXT_START_BYTES = 32


def decoded(body: bytes, coding: str) -> tuple[bytes, bool]:
    """The start of a body without its codings, and whether it could be read.

    Args:
        body: what was kept of it, at most BODY_START_BYTES
        coding: the header Content-Encoding, "" for none; one that names more than
            was done (a proxy has unpacked the body and left the name) does no harm
    """
    if not body:
        return b"", True
    named = [name for each in coding.split(",") if (name := each.strip().lower())]
    named = [name for name in named if name != "identity"]
    for _ in range(_LAYERS_MAX):
        unpacked = _unpacked(body, is_deflate=named[-1:] == ["deflate"])
        if unpacked is None:
            break
        body = unpacked
        del named[-1:]
    if not body or body.startswith((_GZIP, _ZSTANDARD)) or (named and not _is_text(body)):
        return b"", False
    if len(body) >= BODY_START_BYTES and not body.strip(SPACE_AND_MARKS):
        return b"", False  # what it says is yet to come, and no API begins like that
    return body, True


def _unpacked(body: bytes, is_deflate: bool) -> bytes | None:
    """One layer less, b"" where its contents begin behind what was kept. None: there is
    none that can be taken off."""
    forms = [_ANY_HEADER] if body.startswith((_GZIP, _ZLIB)) else []
    for window_bits in (*forms, -zlib.MAX_WBITS) if is_deflate else forms:
        try:
            return zlib.decompressobj(window_bits).decompress(body, BODY_START_BYTES)
        except zlib.error:
            continue
    return None


def _is_text(body: bytes) -> bool:
    """Whether it begins as a text does, in any UTF."""
    start = body.replace(b"\0", b"").lstrip(SPACE_AND_MARKS)[:_TEXT_START_BYTES]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # its end may be in pieces
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable()
