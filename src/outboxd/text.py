"""Text of unknown origin, made harmless for whoever looks at it.

What an event, a file's name or an answer says may hold control characters that
drive a terminal (C0, C1), or format characters that show another text than the
one that is there (U+202E and the like). They are spelt out, never dropped: the
reader sees that there was something. Pure, and light: a cron job loads it.
"""

from __future__ import annotations


def harmless(text: str, *, lines: bool = False) -> str:
    """The text with everything spelt out that is not simply shown: `\\x1b`, `\\u202e`.

    With `lines` its line breaks stay; else the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or (lines and each == "\n")
        else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def harmless_json(text: str) -> str:
    """JSON text that means the same, with such characters as JSON's own escapes."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\r\t" else _json_escape(each) for each in text
    )


def _json_escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def storable(text: str) -> str:
    """The text without what an event may not hold: a lone surrogate, which cannot be
    encoded, becomes "?", and U+0000 is left out."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def spellings(secret: str) -> list[str]:
    """How a secret may stand in a text that quotes it: as it is, as in a URL, in JSON, in
    HTML or in a program's message; the longest first, so that no end of one stays behind."""
    from html import escape
    from urllib.parse import quote, quote_plus

    in_json = secret.replace("\\", "\\\\").replace('"', '\\"')
    in_url = quote(secret, safe="")
    found = {secret, repr(secret)[1:-1], in_json, in_json.replace("/", "\\/"), escape(secret)}
    found |= {in_url, quote(secret), quote_plus(secret), in_url.replace("%", "%25")}
    return sorted(found | {_lower_escapes(each) for each in found}, key=len, reverse=True)


def _lower_escapes(quoted: str) -> str:
    """`%2F` as `%2f`."""
    first, *others = quoted.split("%")
    return "%".join([first, *(other[:2].lower() + other[2:] for other in others)])


def cut(text: str, length: int) -> str:
    """At most `length` characters of it; the last one says that there were more."""
    return text if len(text) <= length else text[: length - 1] + "…"
