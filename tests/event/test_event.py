"""What an event may be, and how a refusal names its place."""

from __future__ import annotations

import json

import pytest

from outboxd.errors import EventError, EventTooLarge
from outboxd.event.komodor import EMPTY_NAME_WARNING, SERVICE_NAMES_WARNING, build, parse

GOOD = {"eventType": "deploy", "summary": "it went out"}


def refused(data, **limits) -> EventError:
    if isinstance(data, dict):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode()
    with pytest.raises(EventError) as caught:
        parse(data, **limits)
    error = caught.value
    # It goes into a JSON answer and onto a terminal.
    str(error).encode()
    (error.field or "").encode()
    assert str(error).isprintable()
    assert len(str(error)) < 600
    return error


def taken(**fields):
    return parse(json.dumps(GOOD | fields).encode())


def inside(details: str) -> str:
    return '{"eventType":"t","summary":"s","details":' + details + "}"


def test_the_least_event_is_a_type_and_a_summary():
    event = parse(b'{"eventType":"deploy","summary":"it went out"}')
    assert (event.event_type, event.summary) == ("deploy", "it went out")
    assert (event.severity, event.scope, event.details) == ("information", {}, None)
    assert (event.dedup_key, event.occurred_at, event.ttl_s) == (None, None, None)
    assert event.warnings == []


def test_every_field_is_read():
    event = taken(
        severity="Warning",
        scope={"clusters": ["a"], "servicesNames": ["b", "c"], "namespaces": ["d"]},
        details={"a": [1, {"b": None}]},
        dedupKey="k",
        occurredAt="1970-01-01T00:00:01Z",
        ttlSeconds=1.5,
    )
    assert event.severity == "warning"
    assert event.scope == {"clusters": ["a"], "servicesNames": ["b", "c"], "namespaces": ["d"]}
    assert event.details == '{"a": [1, {"b": null}]}'
    assert (event.dedup_key, event.occurred_at, event.ttl_s) == ("k", 1000, 1.5)


@pytest.mark.parametrize("space", ["", " ", "\n", "\t", "\r\n", " \n\t "])
def test_white_space_is_allowed_wherever_json_allows_it(space):
    marks = ["{", '"eventType"', ":", '"t"', ",", '"summary"', ":", '"s"', ",", '"details"', ":"]
    marks += ["{", '"a"', ":", "1", "}", ",", '"scope"', ":", "{", "}", "}"]
    event = parse((space + space.join(marks) + space).encode())
    assert (event.event_type, event.summary, event.scope) == ("t", "s", {})
    assert json.loads(event.details) == {"a": 1}


@pytest.mark.parametrize("space", ["\f", "\v", "\xa0", "\u2028", "\ufeff", "\x00"])
def test_other_white_space_is_not_json(space):
    assert refused(f'{{"eventType":"t",{space}"summary":"s"}}').field is None
    refused(f'{{"eventType":"t","summary":"s"}}{space}')


@pytest.mark.parametrize(
    "name", ["severity", "scope", "details", "dedupKey", "occurredAt", "ttlSeconds"]
)
def test_null_for_an_optional_field_counts_as_not_given(name):
    event = taken(**{name: None})
    assert (event.severity, event.scope, event.details) == ("information", {}, None)
    assert (event.dedup_key, event.occurred_at, event.ttl_s) == (None, None, None)


@pytest.mark.parametrize("name", ["eventType", "summary"])
@pytest.mark.parametrize("value", [None, "", 5, True, ["a"], {}])
def test_a_required_field_is_a_string_with_something_in_it(name, value):
    assert refused(GOOD | {name: value}).field == f"$.{name}"


@pytest.mark.parametrize("name", ["eventType", "summary"])
def test_a_required_field_must_be_there(name):
    error = refused({key: value for key, value in GOOD.items() if key != name})
    assert error.field == f"$.{name}"
    assert "missing" in error.message


@pytest.mark.parametrize("character", ["a", "é", "日", "🚀"])
def test_the_event_type_is_measured_in_code_points(character):
    assert taken(eventType=character * 60).event_type == character * 60
    error = refused(GOOD | {"eventType": character * 61})
    assert error.field == "$.eventType"
    assert "61" in error.message
    assert "60" in error.message


def test_the_longest_event_type_is_a_setting():
    data = json.dumps(GOOD | {"eventType": "a" * 31}).encode()
    assert refused(data.decode(), event_type_max=30).field == "$.eventType"
    assert parse(data, event_type_max=31).event_type == "a" * 31


def test_an_event_larger_than_allowed_is_refused_unread():
    with pytest.raises(EventTooLarge, match="101 bytes, 100 are allowed"):
        parse(b"x" * 101, event_bytes_max=100)
    data = json.dumps(GOOD).encode()
    assert parse(data, event_bytes_max=len(data)).summary == GOOD["summary"]


@pytest.mark.parametrize(
    ("word", "wire"),
    [
        ("information", "information"),
        ("info", "information"),
        ("warning", "warning"),
        ("error", "error"),
    ],
)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_severity_words_are_taken_in_any_case(word, wire, case):
    assert taken(severity=case(word)).severity == wire


@pytest.mark.parametrize("word", ["", "critical", "warn ", "errors", "0", 1, True, [], {}])
def test_other_severities_are_refused_with_the_words_that_are_known(word):
    error = refused(GOOD | {"severity": word})
    assert error.field == "$.severity"
    if isinstance(word, str):
        assert "warning" in error.hint


@pytest.mark.parametrize("name", ["clusters", "servicesNames", "serviceNames", "namespaces"])
@pytest.mark.parametrize(
    ("values", "place"),
    [
        ("a", ""),
        (5, ""),
        (True, ""),
        ({"a": 1}, ""),
        ([1], "[0]"),
        (["a", None], "[1]"),
        (["a", "b", 7], "[2]"),
        (["", None], "[1]"),
        ([["a"]], "[0]"),
    ],
)
def test_a_fault_in_the_scope_is_named_with_its_place(name, values, place):
    assert refused(GOOD | {"scope": {name: values}}).field == f"$.scope.{name}{place}"


@pytest.mark.parametrize("scope", ["a", 5, 0, True, False, [], ["a"], ""])
def test_a_scope_is_an_object(scope):
    assert refused(GOOD | {"scope": scope}).field == "$.scope"


def test_empty_lists_in_the_scope_count_as_not_given():
    event = taken(scope={"clusters": [], "servicesNames": None, "namespaces": ["n"]})
    assert event.scope == {"namespaces": ["n"]}


def test_empty_names_in_the_scope_count_as_not_given_with_one_warning():
    event = taken(scope={"clusters": ["", "a", ""], "serviceNames": [""], "namespaces": [""]})
    assert event.scope == {"clusters": ["a"]}
    assert sorted(event.warnings) == sorted([EMPTY_NAME_WARNING, SERVICE_NAMES_WARNING])


def test_service_names_is_understood_with_a_warning():
    event = taken(scope={"serviceNames": ["a"]})
    assert event.scope == {"servicesNames": ["a"]}
    assert event.warnings == [SERVICE_NAMES_WARNING]


def test_both_spellings_at_once_are_an_error():
    error = refused(GOOD | {"scope": {"serviceNames": ["a"], "servicesNames": ["a"]}})
    assert error.field == "$.scope.serviceNames"
    assert taken(scope={"serviceNames": None, "servicesNames": ["a"]}).warnings == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("eventtype", "eventType"),
        ("event_type", "eventType"),
        ("type", "eventType"),
        ("sumary", "summary"),
        ("Severity", "severity"),
        ("detail", "details"),
        ("dedup_key", "dedupKey"),
        ("occuredAt", "occurredAt"),
        ("ttl", "ttlSeconds"),
        ("cluster", "scope"),
        ("serviceNames", "scope.serviceNames"),
        ("namespaces", "scope.namespaces"),
        ("xyz", "eventType"),
    ],
)
def test_an_unknown_field_is_refused_and_the_nearest_suggested(name, meant):
    error = refused(GOOD | {name: "x"})
    assert error.field == f"$.{name}"
    assert meant in error.hint


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cluster", "clusters"), ("services", "servicesNames"), ("namespace", "namespaces")],
)
def test_an_unknown_field_of_the_scope_too(name, meant):
    error = refused(GOOD | {"scope": {name: ["x"]}})
    assert error.field == f"$.scope.{name}"
    assert f'"{meant}"' in error.hint


def test_an_unknown_field_with_an_odd_name_is_shown_harmlessly():
    assert refused(GOOD | {"a\x1b[31m b": 1}).field == '$["a\\\\x1b[31m b"]'
    assert len(refused(GOOD | {"x" * 10_000: 1}).field) < 300


@pytest.mark.parametrize("details", ["text", 5, True, False, [], ["a"], ""])
def test_details_are_an_object(details):
    assert refused(GOOD | {"details": details}).field == "$.details"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dedupKey", ""),
        ("dedupKey", 5),
        ("dedupKey", "k" * 257),
        ("occurredAt", ""),
        ("occurredAt", 1_700_000_000),
        ("occurredAt", "yesterday"),
        ("occurredAt", "2026-11-21T23:31:36"),
        ("occurredAt", "2026-02-29T00:00:00Z"),
        ("ttlSeconds", "60"),
        ("ttlSeconds", 0),
        ("ttlSeconds", -1),
        ("ttlSeconds", True),
        ("ttlSeconds", 1e12),
        ("ttlSeconds", []),
    ],
)
def test_the_agents_own_fields_are_checked_too(name, value):
    assert refused(GOOD | {name: value}).field == f"$.{name}"


def test_a_ttl_beyond_all_numbers_is_refused():
    assert refused('{"eventType":"t","summary":"s","ttlSeconds":1e999}').field == "$.ttlSeconds"
    huge = '{"eventType":"t","summary":"s","ttlSeconds":' + "9" * 5000 + "}"
    assert refused(huge).field == "$.ttlSeconds"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"eventType":"t","eventType":"t","summary":"s"}', "$.eventType"),
        ('{"eventType":"t","\\u0065ventType":"t","summary":"s"}', "$.eventType"),
        (
            '{"eventType":"t","summary":"s","scope":{"clusters":[],"clusters":[]}}',
            "$.scope.clusters",
        ),
        (inside('{"a":1,"a":1}'), "$.details.a"),
        (inside('{"a":1,"\\u0061":1}'), "$.details.a"),
        (inside('{"x":[0,{"a b":1,"a b":2}]}'), '$.details.x[1]["a b"]'),
        (inside('{"":1,"":2}'), '$.details[""]'),
    ],
)
def test_duplicate_keys_are_refused_at_any_level(text, field):
    error = refused(text)
    assert error.field == field
    assert "twice" in error.message


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(name):
    for text in (inside(f'{{"a":{name}}}'), inside(f'{{"a":[{name}]}}'), inside(name)):
        assert name in refused(text).message


@pytest.mark.parametrize("number", ["01", "+1", ".5", "1.", "1e", "0x1", "1_0", "-", "١"])
def test_numbers_written_otherwise_than_in_json_are_refused(number):
    assert refused(inside(f'{{"a":{number}}}')).message.startswith("not JSON")


@pytest.mark.parametrize("escape", ["\\ud800", "\\uDBFF", "\\udc00", "\\udc00\\ud800", "\\ud83dx"])
@pytest.mark.parametrize(
    ("template", "field"),
    [
        ('{"eventType":"t","summary":"%s"}', "$.summary"),
        ('{"eventType":"%s","summary":"s"}', "$.eventType"),
        ('{"eventType":"t","summary":"s","scope":{"clusters":["a","%s"]}}', "$.scope.clusters[1]"),
        ('{"eventType":"t","summary":"s","dedupKey":"%s"}', "$.dedupKey"),
        (inside('{"a":["%s"]}'), "$.details.a[0]"),
        (inside('{"a":{"b":"%s"}}'), "$.details.a.b"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(escape, template, field):
    error = refused(template.replace("%s", escape))
    assert error.field == field
    assert "surrogate" in error.message


def test_half_of_a_surrogate_pair_in_a_key_is_refused():
    assert "surrogate" in refused(inside('{"\\ud800":1}')).message


def test_a_whole_pair_is_a_character_and_an_escaped_backslash_is_none():
    text = '{"eventType":"t","summary":"\\ud83d\\ude80 \\\\ud800 \\\\u0000"}'
    assert parse(text.encode()).summary == "🚀 \\ud800 \\u0000"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"eventType":"t","summary":"a\\u0000b"}', "$.summary"),
        (
            '{"eventType":"t","summary":"s","scope":{"namespaces":["\\u0000"]}}',
            "$.scope.namespaces[0]",
        ),
        (inside('{"a":{"b":["\\u0000"]}}'), "$.details.a.b[0]"),
    ],
)
def test_u0000_is_refused(text, field):
    error = refused(text)
    assert error.field == field
    assert "U+0000" in error.message
    refused(text.replace("\\u0000", "\0"))


def test_a_byte_order_mark_is_refused():
    assert "byte order mark" in refused(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).message
    for encoding in ("utf-16", "utf-32", "utf-16-le", "utf-32-be"):
        refused(json.dumps(GOOD).encode(encoding))


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe4"]
)
def test_what_is_not_utf_8_is_refused(bad):
    error = refused(b'{"eventType":"t","summary":"' + bad + b'"}')
    assert "not UTF-8" in error.message
    assert f"0x{bad[0]:02x}" in error.message


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    """An event whose innermost container is on this level, the event itself being level 1."""
    inner = levels - 2
    middle = "1" if opening == "[" else "{}"
    inner -= opening != "["
    return inside('{"a":' + opening * inner + middle + closing * inner + "}")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_an_event_nests_100_levels_and_no_more(opening, closing):
    assert parse(nested(100, opening, closing).encode()).details
    for levels in (101, 102, 500, 3000, 60_000 // len(opening)):
        assert "100 levels" in refused(nested(levels, opening, closing)).message


def test_many_brackets_that_do_not_nest_are_taken():
    assert parse(inside('{"a":[' + "[],{}," * 5000 + "[]]}").encode()).details
    assert parse(inside('{"a":"' + "[{" * 5000 + '"}').encode()).details


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty text"),
        (" \n ", "empty text"),
        ("null", "not null"),
        ("[]", "not a list"),
        ('[{"eventType":"t","summary":"s"}]', "not a list"),
        ("5", "not a number"),
        ('"text"', "not a string"),
        ("true", "not true"),
        ("{}", "eventType is missing"),
        ("{", "line 1 column 2"),
        ('{"eventType"', "line 1 column"),
        ('{"eventType":', "line 1 column"),
        ('{"eventType":"t"', "line 1 column"),
        ('{"eventType":"t",\n "summary":"s",\n}', "trailing comma at line 2 column 15"),
        ('{"eventType":"t","scope":{"clusters":["a", ]}}', "trailing comma at line 1 column 42"),
        ('{"eventType":"t","summary":"s"} {}', "extra data"),
        ('{"eventType":"t","summary":"s"}}', "extra data"),
        ('{"eventType":"t" "summary":"s"}', "delimiter"),
        ("{'eventType':'t','summary':'s'}", "double quotes"),
        ('{eventType:"t"}', "double quotes"),
        ('{"eventType":"t","summary":"a\nb"}', "control character"),
        ('{"eventType":"t","summary":"\\x"}', "escape"),
        ('{"eventType":"t","summary":"\\u12"}', "escape"),
        ('{"eventType":"t","summary":s}', "line 1 column 28"),
        ("eventType=t&summary=s", "line 1 column 1"),
    ],
)
def test_what_is_not_one_json_object_is_refused_with_its_place(text, said):
    error = refused(text)
    assert said in error.message
    assert error.hint


def test_a_good_event_after_a_bad_one_is_taken():
    refused(inside('{"a":1,"a":2}'))
    assert taken().summary == GOOD["summary"]


def test_build_writes_what_parse_reads():
    data = build(
        "déploy 🚀",
        'a "quoted" \\ line\n',
        "Error",
        clusters=["a"],
        namespaces=("n",),
        services=["s", "ß"],
        details={"a": "b", "n": 5, "nested": {"x": [1.5, None, True]}},
        dedup_key="k",
        occurred_at=1_000,
        ttl_s=60,
    )
    event = parse(data)
    assert (event.event_type, event.summary) == ("déploy 🚀", 'a "quoted" \\ line\n')
    assert event.severity == "error"
    assert event.scope == {"clusters": ["a"], "servicesNames": ["s", "ß"], "namespaces": ["n"]}
    assert json.loads(event.details) == {"a": "b", "n": 5, "nested": {"x": [1.5, None, True]}}
    assert (event.dedup_key, event.occurred_at, event.ttl_s) == ("k", 1000, 60)


def test_build_leaves_out_what_was_not_given():
    assert json.loads(build("t", "s")) == {"eventType": "t", "summary": "s"}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"summary": "from a byte: \udc80"}, "$.summary"),
        ({"summary": "a\0b"}, "$.summary"),
        ({"details": {"a": "\udc80"}}, "$.details.a"),
        ({"clusters": ["\udc80"]}, "$.scope.clusters[0]"),
        ({"summary": ""}, "$.summary"),
        ({"clusters": [5]}, "$.scope.clusters[0]"),
        ({"occurred_at": "now"}, "$.occurredAt"),
        ({"details": {1: "a", "1": "b"}}, "$.details.1"),
    ],
)
def test_what_build_cannot_make_valid_parse_refuses_with_its_place(arguments, field):
    assert refused(build(**{"event_type": "t", "summary": "s"} | arguments)).field in (
        field,
        field.replace(".1", '["1"]'),
    )


def test_build_refuses_what_json_cannot_say():
    loop: dict[str, object] = {}
    loop["a"] = loop
    for details in ({"a": float("nan")}, {"a": object()}, {"a": b"x"}, {(1,): 2}, loop):
        with pytest.raises(EventError) as caught:
            build("t", "s", details=details)
        assert caught.value.field == "$.details"
