"""Kinds of entries: what many of them have in common, kept once and in few bytes.

A kind is a number, and each of its values stands in a column of numbers. An object for
each would take ten times as much, and would not be given back when it is gone: the
interpreter returns memory by the mebibyte, and only where nothing else has its place.
It opens nothing and never keeps more than it was told to.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from outboxd.outbox.model import UNLISTED, IndexRow

DIMENSIONS = (
    *("type", "severity", "state", "held", "cluster", "namespace", "service"),
    *("reason", "status", "source", "producer"),
)
VALUE_CHARACTERS_MAX = 1000  # of one value; longer ones cannot be filters
# What Python takes for a kind (its numbers, and one to look it up by), for some values
# that stand together, for one of them there, and for a value not met before.
_KIND_BYTES, _SET_BYTES, _NAME_BYTES, _TEXT_BYTES = 350, 180, 8, 150

_Key = tuple[Any, ...]  # an IndexRow from its event_type on


class Groups:
    """Kinds by number, in the order in which they were met."""

    def __init__(self, bytes_max: int, on_limit: Callable[[], None] = lambda: None) -> None:
        """`on_limit` hears of each kind that is not told apart."""
        self.limited = False  # whether there were more than are told apart
        # By dimension, for each kind the place of its values in `sets`.
        self.columns = tuple(array("I") for _ in DIMENSIONS)
        self.sets: list[tuple[str, ...]] = []
        self._bytes_max = bytes_max
        self._on_limit = on_limit
        self._bytes = 0
        # By the hash of a key: of two among a million one in ten million is the same, and
        # nobody outside can choose them (the interpreter's hashes of texts are keyed).
        self._numbers: dict[int, int] = {}
        self._places: dict[tuple[str, ...], int] = {}
        self._texts: dict[str, str] = {}  # each value once

    def __len__(self) -> int:
        return len(self.columns[0])

    def number_of(self, row: IndexRow) -> int:
        """The kind that a row is of."""
        key = row[2:]
        number = self._numbers.get(hash(key))
        return self._learn(key) if number is None else number

    def _learn(self, key: _Key) -> int:
        if key[4] == UNLISTED or self._bytes >= self._bytes_max:
            # Severity and state stay exact; the rest is too much to tell.
            self.limited = True
            self._on_limit()
            is_full = self._bytes >= self._bytes_max
            key = ("" if is_full else key[0], *key[1:4], "", *key[5:])
            known = self._numbers.get(hash(key))
            if known is not None:
                return known
        number = self._numbers[hash(key)] = len(self)
        for column, values in zip(self.columns, _values(key), strict=True):
            column.append(self._place(values))
        self._bytes += _KIND_BYTES
        return number

    def _place(self, values: tuple[str, ...]) -> int:
        place = self._places.get(values)
        if place is None:
            own = tuple(self._text(value) for value in values)
            place = self._places[own] = len(self.sets)
            self.sets.append(own)
            self._bytes += _SET_BYTES + _NAME_BYTES * len(own)
        return place

    def _text(self, value: str) -> str:
        own = self._texts.get(value)
        if own is None:
            own = self._texts[value] = value
            self._bytes += _TEXT_BYTES + len(value)
        return own


def _values(key: _Key) -> Sequence[tuple[str, ...]]:
    """A kind's values in the order of DIMENSIONS; none where it names none."""
    event_type, severity, state, held, scope, reason, status, source, producer = key
    named = json.loads(scope) if scope else {}
    return (
        (event_type[:VALUE_CHARACTERS_MAX],) if event_type else (),
        (severity,),
        (state,),
        ("true" if held else "false",),
        *(_names(named.get(field, ())) for field in ("clusters", "namespaces", "servicesNames")),
        (reason,) if reason else (),
        (str(status),) if status is not None else (),
        (source,),
        (producer,) if producer else (),
    )


def _names(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name[:VALUE_CHARACTERS_MAX] for name in found))
