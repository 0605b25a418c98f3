"""Any bytes are an event or an EventError; what is taken comes out with the same values."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import strategies as st

from outboxd.errors import EventError
from outboxd.event.komodor import Defaults, merge_details, parse, wire_body

pytestmark = pytest.mark.timeout(1500)

DEFAULTS = Defaults(["c"], ["n"], ["s"], {"team": "shop", "added": 1})


class Text(str):
    """A number as it was written, told apart from a string."""

    __slots__ = ()


# ----- JSON as text, so that numbers, escapes and duplicate keys are exactly what is meant

NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(-(10**40), 10**40).map(str),
    st.sampled_from(["-0", "0.10", "1E5", "1e-999", "1e999", "1.50e+05"]),
    st.integers(4290, 4310).map(lambda digits: "9" * digits),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
WORDS = st.sampled_from(["true", "false", "null"])
GOOD_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
GOOD_STRINGS = st.builds(
    lambda text, ascii_only: json.dumps(text, ensure_ascii=ascii_only), GOOD_TEXT, st.booleans()
)
ODD_STRINGS = st.sampled_from(
    [
        '"\\ud800"',
        '"\\udc00x"',
        '"\\udfff\\ud800"',
        '"\\u0000"',
        '"a\x00b"',
        '"\\x"',
        '"\\u12"',
        '"',
        "'a'",
        '"\\\\ud800"',
        '"\\\\u0000"',
        '"\\ud83d\\ude80"',
        '"\x1f"',
        '"\ufeff"',
        '"\u2028"',
    ],
)
ODD_VALUES = st.one_of(
    ODD_STRINGS,
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "nan", "01", "+1", ".5", "1.", "-", "1e", "١"]
    ),
    st.sampled_from(["", "[", "]", "{", "}", "[1,]", '{"a":1,}', "{,}", '{"a"}', '{"a":1,"a":2}'])
    | st.sampled_from(['{"a":1,"\\u0061":2}', "undefined", "True", "None", "// x", "/* x */ 1"]),
)
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n", "  \n\t"])


def decoded(pair: tuple[str, str]) -> str:
    return json.loads(pair[0])


def containers(values, keys, unique_by=None):
    def listed(items, space):
        return "[" + f"{space},".join(items) + space + "]"

    def keyed(pairs, space):
        return "{" + ",".join(f"{space}{key}{space}:{space}{value}" for key, value in pairs) + "}"

    pairs = st.tuples(keys, values)
    return st.one_of(
        st.builds(listed, st.lists(values, max_size=4), SPACES),
        st.builds(keyed, st.lists(pairs, max_size=4, unique_by=unique_by), SPACES),
    )


def nested(depth: int, value: str, brackets: str) -> str:
    opening, closing = ("[", "]") if brackets == "[" else ('{"k":', "}")
    return opening * depth + value + closing * depth


DEEP = st.builds(
    nested,
    st.integers(90, 110) | st.sampled_from([500, 1000, 5000, 20_000]),
    st.sampled_from(["1", '"x"', "{}", "[]"]),
    st.sampled_from("[{"),
)
GOOD_VALUES = st.recursive(
    NUMBERS | WORDS | GOOD_STRINGS,
    lambda inner: containers(inner, GOOD_STRINGS, lambda pair: json.loads(pair[0])),
    max_leaves=12,
)
VALUES = st.one_of(
    GOOD_VALUES,
    st.recursive(
        GOOD_STRINGS | NUMBERS | ODD_VALUES | DEEP,
        lambda inner: containers(inner, GOOD_STRINGS | ODD_STRINGS),
        max_leaves=6,
    ),
)

NAMES = st.lists(GOOD_STRINGS.filter(lambda text: text != '""'), max_size=3).map(
    lambda names: "[" + ", ".join(names) + "]"
)


def an_object(members):
    return "{" + ",".join(f'"{name}": {value}' for name, value in members.items()) + "}"


GOOD_SCOPE = st.fixed_dictionaries(
    {},
    optional={
        "clusters": NAMES | st.just("null"),
        "namespaces": NAMES,
        "servicesNames": NAMES,
    },
).map(an_object)
GOOD_DETAILS = st.dictionaries(GOOD_TEXT, GOOD_VALUES, max_size=5).map(
    lambda members: "{" + ",".join(f"{json.dumps(k)} :{v}" for k, v in members.items()) + "}"
)
GOOD_FIELDS = {
    "severity": st.sampled_from(['"info"', '"WARNING"', '"Error"', '"information"', "null"]),
    "scope": GOOD_SCOPE | st.just("null"),
    "details": GOOD_DETAILS | st.just("null"),
    "dedupKey": st.sampled_from(['"k"', "null"]) | GOOD_STRINGS.filter(lambda text: text != '""'),
    "occurredAt": st.datetimes()
    .map(lambda at: f'"{at.isoformat(timespec="seconds")}+01:00"')
    .filter(lambda text: text > '"0001-01-02' and text < '"9999-12-30'),
    "ttlSeconds": st.integers(1, 10**10).map(str) | st.sampled_from(["0.5", "1e3", "null"]),
}


def an_event(members: dict[str, str], space: str, order: int) -> str:
    names = list(members)
    random.Random(order).shuffle(names)
    inner = ",".join(f'{space}"{name}"{space}:{space}{members[name]}' for name in names)
    return f"{space}{{{inner}{space}}}{space}"


GOOD_EVENTS = st.builds(
    an_event,
    st.fixed_dictionaries(
        {
            "eventType": GOOD_TEXT.filter(bool).map(json.dumps),
            "summary": GOOD_TEXT.filter(bool).map(json.dumps),
        },
        optional=GOOD_FIELDS,
    ),
    SPACES,
    st.integers(0, 1000),
)

FIELD_NAMES = st.sampled_from(
    [
        "eventType",
        "summary",
        "severity",
        "scope",
        "details",
        "dedupKey",
        "occurredAt",
        "ttlSeconds",
        "sumary",
        "clusters",
        "event\\u0054ype",
        "",
        "\\ud800",
        "details ",
        "serviceNames",
    ]
)
ODD_EVENTS = st.builds(
    lambda members, space, before, after: (
        before + "{" + ",".join(f'{space}"{n}":{v}' for n, v in [*BASE, *members]) + "}" + after
    ),
    st.lists(
        st.tuples(FIELD_NAMES, VALUES)
        | st.tuples(st.just("details"), VALUES)
        | st.tuples(
            st.just("scope"),
            st.builds(
                lambda name, values: f'{{"{name}": {values}}}',
                st.sampled_from(["clusters", "servicesNames", "serviceNames", "namespace", ""]),
                NAMES | VALUES,
            ),
        ),
        max_size=4,
    ),
    SPACES,
    st.sampled_from(["", "", "", "", "\ufeff", "\0", "x"]),
    st.sampled_from(["", "", "", "", "\n", "{}", ",", "\0", "x"]),
)
BASE = [("eventType", '"t"'), ("summary", '"s"')]


def mangled(text: str, cut: int | None, at: int, byte: int, mode: str) -> bytes:
    """The text as bytes, perhaps cut short or with one byte changed."""
    if mode == "utf-16":
        return text.encode("utf-16", "surrogatepass")
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if cut is not None:
        del data[cut:]
    if mode == "flip" and data:
        data[at % len(data)] = byte
    return bytes(data)


ANY_BYTES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        mangled,
        GOOD_EVENTS | ODD_EVENTS,
        st.none() | st.integers(0, 300),
        st.integers(0, 10_000),
        st.integers(0, 255),
        st.sampled_from(["as is", "as is", "flip", "utf-16"]),
    ),
    ODD_EVENTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
)


# ----- what must hold


def read(data: bytes | str):
    """The standard library's reading of it, numbers as their text; refuses duplicate keys."""

    def unique(pairs):
        found = dict(pairs)
        assert len(found) == len(pairs), "duplicate keys"
        return found

    return json.loads(
        data,
        object_pairs_hook=unique,
        parse_int=Text,
        parse_float=Text,
        parse_constant=lambda name: pytest.fail(f"{name} was taken"),
    )


def alike(left, right) -> bool:
    """Equal, and numbers with the same text as numbers."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return left == right


def depth(value) -> int:
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


def check_refusal(error: EventError) -> None:
    assert error.message
    assert str(error).isprintable()
    assert (error.field or "$").startswith("$")
    json.dumps([error.message, error.field, error.hint], ensure_ascii=False).encode()
    assert len(str(error)) < 1000


def check_taken(data: bytes) -> None:
    """Raises EventError where `parse` does; else all values must have come through."""
    event = parse(data)
    given = read(data)
    assert depth(given) <= 100
    json.dumps(given, ensure_ascii=False).encode()  # no lone surrogate came through
    assert "\\u0000" not in json.dumps(given).replace("\\\\", "")
    sent = read(wire_body(event))
    assert sent["eventType"] == given["eventType"]
    assert sent["summary"] == given["summary"]
    assert sent["severity"] in ("information", "warning", "error")
    scope = {
        "servicesNames" if name == "serviceNames" else name: named
        for name, values in (given.get("scope") or {}).items()
        if (named := [value for value in values or () if value])
    }
    assert alike(sent.get("scope", {}), scope)
    details = given.get("details")
    assert alike(sent.get("details"), details)
    assert sent.keys() <= {"eventType", "summary", "severity", "scope", "details"}

    filled = read(wire_body(event, DEFAULTS))
    assert alike(filled["details"], {"team": "shop", "added": Text(1)} | (details or {}))
    stamped = read(merge_details(wire_body(event), {"late": 5, "k": "v"}, frozenset({"k"})))
    assert alike(stamped.pop("details"), {"late": Text(5)} | (details or {}) | {"k": "v"})
    sent.pop("details", None)
    assert alike(stamped, sent)


def check_any(data: bytes) -> None:
    try:
        check_taken(data)
    except EventError as error:
        check_refusal(error)


NASTY = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"NaN", b"-Infinity"),
    *(b"1e999", b"-0", b"0.10", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"\\ud800", b"\0"),
    *(b"\xed\xa0\x80", b"\xff", b"\xef\xbb\xbf", b'"eventType"', b'"scope"', b'"details"'),
    *(b'"serviceNames"', b'"clusters":["a"],', b'{"a":1,"a":2}', b"[" * 101 + b"]" * 101),
]


def test_any_bytes_are_an_event_that_round_trips_or_an_error(fuzz):
    fuzz(ANY_BYTES, check_any, NASTY)


def test_every_good_event_is_taken_and_round_trips(fuzz):
    fuzz(GOOD_EVENTS, lambda text: check_taken(text.encode()))


def test_json_lines_are_events_and_errors_one_for_one(fuzz):
    line = st.one_of(GOOD_EVENTS, ODD_EVENTS, st.sampled_from(["", "\r", " "]))

    def check(data: bytes) -> None:
        for each in data.split(b"\n"):
            check_any(each)

    lines = st.lists(line, max_size=4).map("\n".join)
    fuzz(lines.map(lambda text: text.encode("utf-8", "surrogatepass")), check, [*NASTY, b"\n"])
