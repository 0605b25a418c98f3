"""The fast reader against the careful one: it takes nothing else and reads nothing otherwise."""

from __future__ import annotations

import json
import random

import pytest

from outboxd.errors import EventError
from outboxd.event.komodor import Event, parse
from outboxd.intake import plain_event

PLAIN = {
    "eventType": "backup",
    "summary": "nightly backup finished",
    "severity": "warning",
    "scope": {"clusters": ["prod"], "servicesNames": ["a", "b"], "namespaces": []},
    "details": {"host": "web-1", "n": 12, "ratio": 1.5, "ok": True, "none": None, "text": "ü\n\t☃"},
    "dedupKey": "backup-2026-11-26",
    "occurredAt": "2026-11-26T10:00:00Z",
    "ttlSeconds": 3600,
}
WORDS = (
    *PLAIN, "clusters", "servicesNames", "serviceNames", "namespaces", "details", "hop", "host",
    "a", "", "ü", "\0", "\ud800", "x" * 61, 'q"q', "back\\slash", '":', "a :b", "\n", "\x01",
    "2026-11-26T10:00:00+01:00", "2026-02-30T10:00:00Z", "Info", "ERROR", "error", "☃" * 60,
)  # fmt: skip
NUMBERS = (
    "0", "-0", "1", "01", "-1", "1.0", "1.", ".5", "1e5", "1E+5", "1e400", "1e-400", "NaN",
    "Infinity", "-", "9" * 30, "18446744073709551616", "1.7976931348623157e309", "0x1", "+1",
    "1e", "00", "-01", "12345678901.25", "100000000000", "100000000001",
)  # fmt: skip
BYTES = (
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff", b"\x00", b"\x01", b"\x7f", b"\xc2\x80", b"\n",
    b"\r", b"\t", b" ", b"\x0b", b"\xc2\xa0", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\u0041",
    b"\\ud83d\\ude00", b"{", b"}", b"[", b"]", b",", b":", b" :", b'":', b"null", b"true", b"//",
    b'"summary"', b'"details":{}', b'"a":1,"a":2', b'\\":', b"\\u0061",
)  # fmt: skip


class Texts:
    """Texts that are events, nearly events, or neither."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self) -> bytes:
        text = self._object(self._members(), 0)
        data = text.encode("utf-8", "surrogatepass")
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2, 4))):
            data = self._spoilt(data)
        return data

    def _members(self) -> list[tuple[str, object]]:
        members = list(PLAIN.items())[: self.random.choice((2, 3, 4, 5, 5, 6, 7, 8))]
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2))):
            at = self.random.randrange(len(members) + 1)
            change = self.random.randrange(4)
            if change == 0 and len(members) > 1:
                members.pop(at - 1)
            elif change == 1:
                members.insert(at, (self.random.choice(WORDS), self._value(0)))
            elif change == 2:
                members.insert(at, self.random.choice(members))
            else:
                name, _ = members[at - 1]
                members[at - 1] = (name, self._value(0))
        if self.random.random() < 0.3:
            self.random.shuffle(members)
        return members

    def _value(self, depth: int) -> object:
        kind = self.random.randrange(8 if depth < 3 else 5)
        if kind == 0:
            return self.random.choice(WORDS)
        if kind == 1:
            return _Number(self.random.choice(NUMBERS))
        if kind in (2, 3):
            return self.random.choice((None, True, False, 3, -7, 2.5, "plain", "ü☃"))
        if kind == 4:
            return []
        if kind == 5:
            return [self._value(depth + 1) for _ in range(self.random.randrange(3))]
        return {
            self.random.choice(WORDS): self._value(depth + 1)
            for _ in range(self.random.randrange(4))
        }

    def _text(self, value: object, depth: int) -> str:
        if isinstance(value, _Number):
            return value.text
        if isinstance(value, dict):
            return self._object(list(value.items()), depth + 1)
        if isinstance(value, list):
            return f"[{self._space()}{','.join(self._text(each, depth + 1) for each in value)}]"
        if isinstance(value, str):
            return self._string(value)
        return json.dumps(value)

    def _object(self, members: list[tuple[str, object]], depth: int) -> str:
        parts = [
            f"{self._space()}{self._string(name)}{self._space(0.02)}:{self._space()}"
            f"{self._text(value, depth)}"
            for name, value in members
        ]
        return f"{{{','.join(parts)}{self._space()}}}"

    def _string(self, text: str) -> str:
        written = json.dumps(text, ensure_ascii=self.random.random() < 0.1)
        if text and self.random.random() < 0.01:
            place = self.random.randrange(len(text))
            if text[place].isascii() and text[place].isalnum():
                written = f'"{text[:place]}\\u{ord(text[place]):04x}{text[place + 1 :]}"'
        return written

    def _space(self, chance: float = 0.1) -> str:
        return self.random.choice(" \n\t\r") if self.random.random() < chance else ""

    def _spoilt(self, data: bytes) -> bytes:
        at = self.random.randrange(len(data) + 1)
        kind = self.random.randrange(4)
        if kind == 0:
            return data[:at] + self.random.choice(BYTES) + data[at:]
        if kind == 1:
            return data[:at] + data[at + 1 :]
        if kind == 2:
            return data[:at] + self.random.choice(BYTES) + data[at + 1 :]
        end = at + self.random.randrange(1, 30)
        return data[:end] + data[at:]


class _Number:
    """A number with its text."""

    def __init__(self, text: str) -> None:
        self.text = text


def attributes(event: Event) -> dict[str, object]:
    return {name: getattr(event, name) for name in Event.__slots__}


def compare(data: bytes) -> bool:
    """Whether the fast reader took it, and then the careful one must agree."""
    event = plain_event.read(data, 60, 256 * 1024)
    if event is None:
        return False
    try:
        careful = parse(data)
    except EventError as error:
        raise AssertionError(f"{data!r} is refused: {error}") from None
    assert attributes(event) == attributes(careful), data
    return True


def fuzz(texts: int, seed: int) -> int:
    source = Texts(seed)
    return sum(compare(source.one()) for _ in range(texts))


def test_it_never_differs_from_the_careful_reader(full: bool, seed: int):
    texts = 300_000 if full else 8_000
    taken = fuzz(texts, seed)
    assert taken > texts // 20, "a share of them is plain, or nothing was compared"


@pytest.mark.parametrize("count", range(2, len(PLAIN) + 1))
def test_what_is_plain_is_taken(count):
    text = json.dumps(dict(list(PLAIN.items())[:count]), ensure_ascii=False)
    assert compare(text.encode())
    assert compare(json.dumps(dict(list(PLAIN.items())[:count]), separators=(",", ":"),
                              ensure_ascii=False).encode())  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        '{"eventType":"t","summary":"a","summary":"b"}',
        '{"eventType":"t","summary":"a","s\\u0075mmary":"b"}',
        '{"eventType":"t","summary":"a","details":{"a":1,"a":2}}',
        '{"eventType":"t","summary":"a","details":{"a":1,"a" :2}}',
        '{"eventType":"t","summary":"a","details":{"a":1,"\\u0061":2}}',
        '{"eventType":"t","summary":"a","details":{"a":{"b":1,"b":2}}}',
        '{"eventType":"t","summary":"a","scope":{"clusters":["a"],"clusters":["b"]}}',
        '{"eventType":"t","summary":"a","details":{"a":"\\ud800"}}',
        '{"eventType":"t","summary":"a","details":{"a":"\\u0000"}}',
        '{"eventType":"t","summary":"a","details":{"a":NaN}}',
        '{"eventType":"t","summary":"a","details":{"a":01}}',
        '{"eventType":"t","summary":"a","details":null}',
        '{"eventType":"t","summary":"a","scope":{"serviceNames":["a"]}}',
        '{"eventType":"t","summary":"a","scope":{"clusters":[""]}}',
        '{"eventType":"t","summary":"a","severity":"Info"}',
        '{"eventType":"t","summary":""}',
        '\ufeff{"eventType":"t","summary":"a"}',
        '{"eventType":"t","summary":"a"} x',
        '[{"eventType":"t","summary":"a"}]',
        '{"eventType": "a", "summary": "b", "details": ' + "[" * 2_000 + "]" * 2_000 + "}",
    ],
)
def test_what_is_not_certainly_plain_is_left_to_the_careful_reader(text):
    assert plain_event.read(text.encode(), 60, 1 << 18) is None


def test_the_comparison_catches_a_name_given_twice(monkeypatch):
    """The control: without the count of names msgspec takes the last of two."""

    real = plain_event._event

    class AnyCount(int):
        def __ne__(self, other):
            return False

        __hash__ = int.__hash__

    class Lax(bytes):
        def count(self, sub, *place):
            found = super().count(sub, *place)
            return AnyCount(found) if sub == b'":' else found

    monkeypatch.setattr(
        plain_event, "_event", lambda data, plain, most: real(Lax(data), plain, most)
    )
    with pytest.raises(AssertionError):
        fuzz(20_000, 1)
