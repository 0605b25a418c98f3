"""The body that Komodor gets: the producer's values, untouched, and what is added to them."""

from __future__ import annotations

import json

import pytest

from outboxd.event.komodor import Defaults, merge_details, parse, scope_text, wire_body

NUMBERS = [
    "123456789012345678901234567890",
    "-0",
    "0.10",
    "1E5",
    "1e-400",
    "1e400",
    "3.141592653589793238462643383279",
    "9" * 5000,
]


def event_with(**fields: str):
    members = {"eventType": '"t"', "summary": '"s"'} | fields
    return parse(("{" + ",".join(f'"{k}":{v}' for k, v in members.items()) + "}").encode())


def test_the_body_has_komodors_fields_alone_in_one_order():
    event = event_with(
        ttlSeconds="5",
        details='{"a": 1}',
        dedupKey='"k"',
        scope='{"namespaces":["n"],"serviceNames":["s"],"clusters":[]}',
        severity='"WARNING"',
        occurredAt='"2026-11-21T23:31:36Z"',
    )
    assert wire_body(event) == (
        b'{"eventType":"t","summary":"s","severity":"warning",'
        b'"scope":{"servicesNames":["s"],"namespaces":["n"]},"details":{"a": 1}}'
    )


def test_without_scope_and_details_neither_is_sent():
    assert wire_body(event_with()) == b'{"eventType":"t","summary":"s","severity":"information"}'
    assert scope_text(event_with()) == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_keep_their_text(number):
    body = wire_body(event_with(details=f'{{"a":[{number}],"b":{number}}}'))
    assert body.endswith(f'"details":{{"a":[{number}],"b":{number}}}}}'.encode())
    stamped = merge_details(body, {"deliveryAttempts": 2, "b": 1})
    assert stamped.endswith(
        f'"details":{{"a":[{number}],"b":{number},"deliveryAttempts":2}}}}'.encode()
    )


def test_text_that_json_escapes_comes_out_with_the_same_value():
    text = 'quotes " and \\ \n \t \x7f é 🚀 \u2028 ,"details":{'
    event = event_with(summary=json.dumps(text), scope=json.dumps({"clusters": [text]}))
    sent = json.loads(wire_body(event))
    assert sent["summary"] == text
    assert sent["scope"] == {"clusters": [text]}
    stamped = json.loads(merge_details(wire_body(event), {"a": text}))
    assert (stamped["summary"], stamped["details"]) == (text, {"a": text})


DEFAULTS = Defaults(["c"], ["n"], ["s"], {"team": "shop", "tier": 1})


def test_defaults_are_added_where_the_event_names_none_of_that_list():
    event = event_with(scope='{"namespaces":["mine"]}', details='{"team":"mine"}')
    assert json.loads(wire_body(event, DEFAULTS)) == {
        "eventType": "t",
        "summary": "s",
        "severity": "information",
        "scope": {"clusters": ["c"], "servicesNames": ["s"], "namespaces": ["mine"]},
        "details": {"team": "mine", "tier": 1},
    }


def test_defaults_alone_make_scope_and_details():
    sent = json.loads(wire_body(event_with(), DEFAULTS))
    assert sent["scope"] == {"clusters": ["c"], "servicesNames": ["s"], "namespaces": ["n"]}
    assert sent["details"] == {"team": "shop", "tier": 1}


def test_the_scope_in_print_is_the_scope_as_sent():
    event = event_with(scope='{"clusters":["a","é"]}')
    assert scope_text(event) == '{"clusters":["a","é"]}'
    assert (
        json.loads(scope_text(event, DEFAULTS)) == json.loads(wire_body(event, DEFAULTS))["scope"]
    )
    scope = scope_text(event, DEFAULTS)
    assert wire_body(event, DEFAULTS, scope) == wire_body(event, DEFAULTS)


@pytest.mark.parametrize("details", ["{}", "{ }", "{\n}", None])
def test_stamps_are_added_to_details_that_are_empty_or_missing(details):
    body = wire_body(event_with(**({"details": details} if details else {})))
    assert json.loads(merge_details(body, {"a": 1, "b": "x"}))["details"] == {"a": 1, "b": "x"}


def test_keys_that_the_producer_set_stay():
    body = wire_body(event_with(details='{"occurredAt" : "mine", "n": 1.50 }'))
    merged = merge_details(body, {"occurredAt": "ours", "deliveryDelay": "3m 1s"})
    assert b'"occurredAt" : "mine", "n": 1.50' in merged
    assert json.loads(merged)["details"] == {
        "occurredAt": "mine",
        "n": 1.5,
        "deliveryDelay": "3m 1s",
    }


def test_keys_named_in_overwrite_are_replaced_where_they_stand():
    body = wire_body(event_with(details='{"a":[1,{"a":2}],"\\u0062":2,"c":0.10}'))
    merged = merge_details(body, {"b": "new", "a": None, "d": [1]}, frozenset("abd"))
    assert merged.endswith(b'"details":{"a":null,"\\u0062":"new","c":0.10,"d":[1]}}')


def test_nothing_to_add_changes_nothing():
    body = wire_body(event_with(details='{ "a" : 1 }'))
    assert merge_details(body, {}) is body
    assert merge_details(body, {"a": 2}) == body


def test_the_same_word_elsewhere_is_not_taken_for_the_details():
    event = event_with(
        eventType='"details"',
        summary='",\\"details\\":{"',
        scope='{"clusters":["x","details",":{"]}',
        details='{"details":{"details":{}},"x":1}',
    )
    sent = json.loads(merge_details(wire_body(event), {"y": 2}))
    assert sent["details"] == {"details": {"details": {}}, "x": 1, "y": 2}
    without = event_with(eventType='"details"', scope='{"clusters":["x","details",":{"]}')
    assert json.loads(merge_details(wire_body(without), {"y": 2}))["details"] == {"y": 2}
