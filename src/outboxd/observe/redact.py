"""Keeps API keys and events' bodies out of log lines.

The last look at a line before it is written: whatever was bound, nested,
formatted into an exception's text or sent back by a server passes here. It
must never raise, and never let a known secret through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from outboxd.text import spellings

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

REDACTED = "[redacted]"
LEFT_OUT = "[left out]"

# Compared in lower case, with only the letters left.
SECRET_NAMES = frozenset(
    {"apikey", "authorization", "cookie", "password", "proxyauthorization"}
    | {"secret", "setcookie", "token", "xapikey"}
)
BODY_NAMES = frozenset(
    {"body", "bodystart", "details", "eventbody", "payload", "sentbody", "summary"}
)

_DEPTH_MAX = 6
_TEXT_CHARS_MAX = 16_384
_INTEGER_BITS_MAX = 512  # Python refuses to write out very long ones
_SECRET_CHARS_MIN = 8  # a shorter text stands in too many others by chance


class Redactor:
    """A processor of structlog's that takes secrets and bodies out."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()

    def keep_secret(self, secrets: Iterable[str | None]) -> None:
        """Remember these texts, beside those known: an old key is still a key."""
        spelt = set(self._secrets)
        for secret in secrets:
            if secret and len(secret) >= _SECRET_CHARS_MIN:
                spelt.update(spellings(secret))
        # The longest first, so that no end of a longer one stays behind.
        self._secrets = tuple(sorted(spelt, key=len, reverse=True))

    def __call__(self, _logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
        bodies = method == "debug"
        return {key: self._clean_named(key, value, bodies) for key, value in values.items()}

    def clean_text(self, text: str) -> str:
        """The text without any secret, cut where it is far too long."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        if len(text) > _TEXT_CHARS_MAX:
            text = f"{text[:_TEXT_CHARS_MAX]}... [{len(text) - _TEXT_CHARS_MAX} more characters]"
        return text

    def _clean_named(self, name: Any, value: Any, bodies: bool, depth: int = 0) -> Any:
        plain = "".join(char for char in str(name).lower() if char.isalpha())
        if plain in SECRET_NAMES and value is not None:
            return REDACTED
        if plain in BODY_NAMES and not bodies and value is not None:
            return LEFT_OUT
        return self._clean(value, bodies, depth)

    def _clean(self, value: Any, bodies: bool, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            bits = value.bit_length()
            return value if bits <= _INTEGER_BITS_MAX else f"[an integer of {bits} bits]"
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, str):
            return self.clean_text(str(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self.clean_text(bytes(value).decode("utf-8", "backslashreplace"))
        if depth >= _DEPTH_MAX:
            return "..."
        if isinstance(value, Mapping):
            return {
                self.clean_text(str(key)): self._clean_named(key, item, bodies, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._clean(item, bodies, depth + 1) for item in value]
        return self._clean_unknown(value)

    def _clean_unknown(self, value: Any) -> str:
        try:
            return self.clean_text(str(value))
        except Exception:  # a log line is the wrong place to learn of a broken __str__
            return f"<{type(value).__name__}>"
