"""JSON values written as text, and what they and their places are called in messages.

What reading (`strictjson`) and explaining (`jsonfaults`) share with whoever writes an
event. Light, as a cron job loads it: it must not import `json` but for a value that is
neither plain nor made of strings.
"""

from __future__ import annotations

from outboxd.text import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    def quoted(text: str) -> str: ...
    def _quoted_ascii(text: str) -> str: ...


DEPTH_MAX = 100
SPACE = " \t\n\r"
_PATH_MAX = 200
_PLAIN_MAX = 1 << 63

if not TYPE_CHECKING:
    try:
        # As in `strictjson`: the C core without the regular expressions around it.
        from _json import encode_basestring as quoted
        from _json import encode_basestring_ascii as _quoted_ascii
    except ImportError:
        from json.encoder import encode_basestring as quoted
        from json.encoder import encode_basestring_ascii as _quoted_ascii


class Number(str):
    """A JSON number as it was written; a JSON string is a plain `str`."""

    __slots__ = ()


def encode(value: object) -> str:
    """One value as compact JSON; ValueError or TypeError if JSON cannot say it."""
    if type(value) is str:
        return quoted(value)
    if type(value) is int and -_PLAIN_MAX < value < _PLAIN_MAX:
        return str(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float and value - value == 0:  # finite
        return repr(value)
    # What `emit` is given on a command line, lists of names and details that
    # are strings, is written without `json`.
    if type(value) is list and all(type(each) is str for each in value):
        return f"[{','.join(map(quoted, value))}]"
    if type(value) is dict and all(type(name) is str for name in value):
        members = (f"{quoted(name)}:{encode(each)}" for name, each in value.items())
        return f"{{{','.join(members)}}}"
    import json

    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def shown(text: str, length_max: int = 60) -> str:
    """Text of unknown origin, short and harmless enough for a message."""
    if len(text) > length_max:
        text = text[: length_max - 1] + "…"
    return harmless(text)


def path_to(parent: str, key: str | int) -> str:
    """`$.scope` and "clusters" make `$.scope.clusters`; and then 0, `$.scope.clusters[0]`."""
    if isinstance(key, int):
        step = f"[{key}]"
    elif key.isascii() and key.replace("-", "_").isidentifier():
        step = f".{shown(key)}"
    else:
        step = f"[{_quoted_ascii(shown(key))}]"
    return parent if len(parent) > _PATH_MAX else parent + step


def kind_of(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (Number, int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
