"""Any JSON webhook as events, by a mapping of JMESPath expressions.

A mapping says where in a sender's payload each part of an event stands. It is a
pure function from a payload to events; it is compiled once, so that a wrong
expression stops the start and not a delivery. Beside JMESPath's own functions
(https://jmespath.org/specification.html) an expression may call those of
`_Functions`. Numbers keep their value; what is no text where one is needed is
written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jmespath
from jmespath import functions
from jmespath.exceptions import JMESPathError

from outboxd.errors import ConfigError, EventError
from outboxd.event.komodor import build
from outboxd.gateway.keys import fitting_key
from outboxd.text import cut, storable
from outboxd.times import parse_rfc3339, rfc3339

ITEMS_MAX = 10_000  # events of one payload
SUMMARY_MAX = 1_000  # characters
NAME_MAX = 256  # characters of a name in the scope
# A number above this is in milliseconds since 1970, one below in seconds (until the year 5138).
_SECONDS_MAX = 100_000_000_000

# What a mapping may say. `each` yields the items, an event each; the others are
# evaluated on an item.
PARTS = (
    *("each", "event_type", "summary", "severity", "clusters", "namespaces", "services"),
    *("details", "dedup_key", "occurred_at"),
)
REQUIRED = ("event_type", "summary")
# And how a sender that can send no token signs.
SIGNATURE = ("signature_header", "signature_secret_file")

_SEVERITY_WORDS = {
    **dict.fromkeys(("error", "critical", "fatal", "page", "high", "failed", "failure"), "error"),
    **dict.fromkeys(("warning", "warn", "medium", "degraded"), "warning"),
}


class Signature(NamedTuple):
    """The header that a sender's signature comes in, and the secret that it knows."""

    header: str  # in small letters
    secret: bytes


class Webhook(NamedTuple):
    """A mapping, compiled."""

    name: str
    parts: Mapping[str, Any]  # a part's name to its compiled expression
    signature: Signature | None = None


def compile_webhook(
    name: str, mapping: Mapping[str, str], signature: Signature | None = None
) -> Webhook:
    """The mapping `[webhooks.NAME]`, but for the keys of `SIGNATURE`.

    Raises:
        ConfigError: a part is missing or unknown, or its expression is wrong.
    """
    label = f"[webhooks.{name}]"
    unknown = next((part for part in mapping if part not in PARTS), None)
    if unknown is not None:
        known = ", ".join((*PARTS, *SIGNATURE))
        raise ConfigError(f"{label} {unknown[:80]}: unknown", f"allowed are {known}")
    for part in REQUIRED:
        if not mapping.get(part):
            raise ConfigError(f"{label} {part} is missing", "a JMESPath expression, in quotes")
    compiled = {}
    for part, expression in mapping.items():
        try:
            compiled[part] = jmespath.compile(expression)
            _check_functions(compiled[part].parsed)
        except (JMESPathError, TypeError) as error:
            told = " ".join(str(error).split())
            hint = "see https://jmespath.org; a literal is written 'text' or `{\"a\": 1}`"
            raise ConfigError(f"{label} {part} = {expression!r}: {told[:500]}", hint) from None
    return Webhook(name, compiled, signature)


def read_events(webhook: Webhook, payload: Any, event_type_max: int = 60) -> list[bytes]:
    """The events that a payload holds, as JSON for the intake; none where `each` yields none.

    Raises:
        EventError: an expression failed on this payload, or yielded no type or summary.
    """
    if not isinstance(payload, (dict, list)):
        told = f"the payload is neither an object nor a list but {_text(payload)[:40] or 'null'}"
        raise EventError(told, "$", "send the sender's own webhook as it is")
    options = jmespath.Options(custom_functions=_Functions(payload))
    items = [payload]
    if "each" in webhook.parts:
        items = _find(webhook, "each", payload, options) or []
        items = items if isinstance(items, list) else [items]
    if len(items) > ITEMS_MAX:
        message = f"the payload holds {len(items)} events, {ITEMS_MAX} are allowed"
        raise EventError(message, None, "send fewer at once")
    try:
        return [_event(webhook, item, options, event_type_max) for item in items]
    except RecursionError:
        hint = "name less of it in `details`"
        raise EventError("the payload is nested too deeply", None, hint) from None


def _event(webhook: Webhook, item: Any, options: jmespath.Options, event_type_max: int) -> bytes:
    found = {part: _find(webhook, part, item, options) for part in webhook.parts if part != "each"}
    texts = {}
    for part in REQUIRED:
        texts[part] = _text(found[part]).strip()
        if not texts[part]:
            raise EventError(
                f"[webhooks.{webhook.name}] {part} yields nothing for this payload",
                None,
                f"try it: outboxd webhook try {webhook.name} FILE",
            )
    details = found.get("details")
    if details is not None and not isinstance(details, dict):
        details = {"payload": details}
    details = {name: value for name, value in (details or {}).items() if value is not None}
    return build(
        cut(texts["event_type"], event_type_max),
        cut(texts["summary"], SUMMARY_MAX),
        severity=_severity(found.get("severity")),
        clusters=_names(found.get("clusters")),
        namespaces=_names(found.get("namespaces")),
        services=_names(found.get("services")),
        details=_clean(details),
        dedup_key=_key(found.get("dedup_key")),
        occurred_at=_moment(found.get("occurred_at")),
    )


def _check_functions(node: Any) -> None:
    """JMESPath looks a function up when it is called; here a wrong name is found before."""
    if node["type"] == "function_expression" and node["value"] not in _Functions.FUNCTION_TABLE:
        known = ", ".join(sorted(_Functions.FUNCTION_TABLE))
        raise JMESPathError(f"there is no function {node['value']}; there are {known}")
    for child in node["children"]:
        _check_functions(child)


def _find(webhook: Webhook, part: str, value: Any, options: jmespath.Options) -> Any:
    try:
        return webhook.parts[part].search(value, options=options)
    except (JMESPathError, ValueError, TypeError, RecursionError) as error:
        told = " ".join(str(error).split())[:300]
        message = f"[webhooks.{webhook.name}] {part} fails on this payload: {told}"
        hint = f"try it: outboxd webhook try {webhook.name} FILE"
        raise EventError(message, None, hint) from None


class _Functions(functions.Functions):
    """What expressions may call beside JMESPath's own functions."""

    def __init__(self, payload: Any) -> None:
        self._payload = payload

    @functions.signature()
    def _func_payload(self) -> Any:
        """The whole payload, from within `each`."""
        return self._payload

    @functions.signature({"types": ["string"]})
    def _func_from_json(self, text: str) -> Any:
        """The value of a JSON text; null where it is none."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None

    @functions.signature({"types": []})
    def _func_lower(self, value: Any) -> str:
        """The value as text in lower case; "" for null."""
        return _text(value).lower()

    @functions.signature({"types": ["string"]}, {"types": ["string"]}, {"types": ["string"]})
    def _func_replace(self, text: str, old: str, new: str) -> str:
        """The text with every `old` in it replaced by `new`."""
        return text.replace(old, new)[:65_536] if old else text

    @functions.signature({"types": [], "variadic": True})
    def _func_first(self, *values: Any) -> Any:
        """The first value that is neither null nor an empty text, list or object."""
        return next((value for value in values if value not in (None, "", [], {})), None)

    @functions.signature({"types": [], "variadic": True})
    def _func_words(self, *values: Any) -> str:
        """The values as texts with spaces between, those that say nothing left out."""
        return " ".join(text for text in map(_text, values) if text)

    @functions.signature({"types": ["string"]}, {"types": ["string"]})
    def _func_split(self, text: str, separator: str) -> list[str]:
        """The parts of the text between separators."""
        return text.split(separator) if separator else [text]


def _severity(value: object) -> str:
    return _SEVERITY_WORDS.get(_text(value).strip().lower(), "information")


def _says_nothing(value: object) -> bool:
    """What JMESPath takes for false: `a && b` yields it where `a` says nothing."""
    return value is None or value is False or value in ("", [], {})


def _key(value: object) -> str | None:
    """None where there is nothing to know the event by: one key for all such events
    would make duplicates of them."""
    return None if _says_nothing(value) else fitting_key(_text(value)) or None


def _names(value: object) -> list[str]:
    """One name or a list of them; empty ones are not given."""
    values = value if isinstance(value, list) else [value]
    said = (name for name in values if not _says_nothing(name))
    names = (cut(_text(name).strip(), NAME_MAX) for name in said)
    return list(dict.fromkeys(name for name in names if name))[:1000]


def _moment(value: object) -> str | None:
    """RFC 3339 as it is; a number as seconds or milliseconds since 1970; None for all else."""
    if isinstance(value, str):
        try:
            return rfc3339(parse_rfc3339(value))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return None
    seconds = value if value <= _SECONDS_MAX else value / 1000
    return rfc3339(round(seconds * 1000)) if seconds <= _SECONDS_MAX else None


def _text(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return storable(text)


def _clean(value: Any) -> Any:
    """The value without what an event may not hold: lone surrogates and U+0000."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_clean(member) for member in value]
    if isinstance(value, dict):
        return {storable(str(name)): _clean(member) for name, member in value.items()}
    return value
