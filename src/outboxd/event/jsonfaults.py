"""Says what is wrong with a JSON text that `strictjson` would not take, and where.

The slow half, imported only for a text that is bad already. It must find a
fault in each of those, and accepts nothing.
"""

from __future__ import annotations

import json

from outboxd.errors import EventError
from outboxd.event.jsontext import DEPTH_MAX, SPACE, Number, kind_of, path_to, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def explain(text: str) -> EventError:
    """What is wrong with a text that `read_object` would not take, and where."""
    if text.startswith("\ufeff"):
        return EventError("the text starts with a byte order mark", None, "save it without a BOM")
    if not text.strip(SPACE):
        return EventError("there is no event, only empty text", None, "send one JSON object")
    decoder = json.JSONDecoder(
        object_pairs_hook=_Pairs, parse_int=Number, parse_float=Number, parse_constant=_constant
    )
    try:
        # Most of what comes here is no JSON at all, and then this says so in a quarter of the time.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_constant)
        tree = decoder.decode(text)
    except json.JSONDecodeError as error:
        return _syntax_fault(text, error)
    except RecursionError:
        return _too_deep()
    except EventError as error:
        return error
    return _first_fault(tree)


class _Pairs:
    """An object with its duplicate keys still in it."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _constant(name: str) -> NoReturn:
    raise EventError(f"{name} is not JSON", None, "write null, or the number as a string")


def _too_deep() -> EventError:
    return EventError(f"nested deeper than {DEPTH_MAX} levels", None, "send it flatter")


def _syntax_fault(text: str, error: json.JSONDecodeError) -> EventError:
    """What the parser says, with a trailing comma told the same on every Python: up to
    3.12 the parser complains of the bracket behind it, from 3.13 on of the comma."""
    message, position = error.msg[:1].lower() + error.msg[1:], error.pos
    hint = _syntax_hint(text, position)
    before = text[:position].rstrip(SPACE)
    if text[position : position + 1] in ("}", "]") and before.endswith(","):
        position = len(before) - 1
    if text[position : position + 1] == "," and text[position + 1 :].lstrip(SPACE)[:1] in (
        "}",
        "]",
    ):
        message = "illegal trailing comma"
        hint = "remove the comma before the closing bracket"
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return EventError(f"not JSON: {message} at line {line} column {column}", None, hint)


def _syntax_hint(text: str, position: int) -> str:
    if text[position : position + 1] == "'":
        return "JSON wants double quotes"
    if position >= len(text):
        return "the text ends too early"
    return "send one JSON object, in UTF-8"


def _first_fault(tree: Any) -> EventError:
    """Look through a tree that parses for what is refused all the same."""
    if type(tree) is not _Pairs:
        return EventError(
            f"an event is a JSON object, not {kind_of(tree)}", "$", 'send {"eventType": …, …}'
        )
    stack: list[tuple[Any, str, int]] = [(tree, "$", 1)]
    while stack:
        value, path, depth = stack.pop()
        if type(value) is str and (fault := _text_fault(value, path)):
            return fault
        if depth > DEPTH_MAX and type(value) in (list, _Pairs):
            return _too_deep()
        if type(value) is list:
            children = [(item, path_to(path, i), depth + 1) for i, item in enumerate(value)]
            stack += reversed(children)
        elif type(value) is _Pairs:
            seen: set[str] = set()
            for key, _ in value.pairs:
                if fault := _text_fault(key, path_to(path, key)):
                    return fault
                if key in seen:
                    message = f'the key "{shown(key)}" stands twice in one object'
                    return EventError(message, path_to(path, key), "leave one of the two")
                seen.add(key)
            stack += [(item, path_to(path, key), depth + 1) for key, item in value.pairs[::-1]]
    return EventError("not JSON", None, "send one JSON object, in UTF-8")


def _text_fault(text: str, path: str) -> EventError | None:
    if "\0" in text:
        return EventError("the character U+0000 is not allowed", path, "leave it out")
    if any("\ud800" <= character <= "\udfff" for character in text):
        message = "half of a surrogate pair, which cannot be encoded as UTF-8"
        return EventError(message, path, "leave it out, or send the whole pair")
    return None
