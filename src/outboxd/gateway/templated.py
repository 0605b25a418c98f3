"""What Alertmanager's own `payload` template (0.32 and newer) makes of an event, put right.

Pure. Alertmanager reads each text that the template yields as YAML once more
(`template.DeepCopyWithTemplate` in its source): a label that is missing becomes null, a
name like "123" a number, and a summary like "disk: 95 %" an object. Here they are texts
again, so that Komodor's public template works as its author meant it; details are left
as they are. And the event is known again when the alert is resent, by what the template
writes into the details. An event that needs none of it passes untouched; what is no
event stays none, for the intake to say why.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from outboxd.errors import EventError
from outboxd.event.strictjson import merge, read_object
from outboxd.gateway.alertmanager import UNNAMED, AlertEvent, identity_of
from outboxd.text import cut
from outboxd.times import parse_rfc3339

USER_AGENT = "Alertmanager/"  # as its requests begin to say who they are from

# How Go prints a time: "2026-11-21 10:00:00.123 +0000 UTC".
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,9})?) ([+-]\d\d)(\d\d)\b.{0,40}")


class _Alert(NamedTuple):
    """What of the alert itself stands in the details."""

    identity: str | None
    began_at: int


def read_templated(data: bytes, event_type_max: int) -> AlertEvent:
    """The event of a template's body, and the alert that it is of where that can be told."""
    try:
        text = data.decode()
        members = {name: value for name, (value, _, _) in read_object(text, False).items()}
    except (EventError, UnicodeDecodeError):
        return AlertEvent(data, None, 0)
    alert, names = _alert(members.get("details"))
    mended: dict[str, object] = {}
    for name in ("eventType", "summary"):
        written = _written(members.get(name)) or names.get(name, "")
        if name == "eventType":
            written = cut(written, event_type_max)
        if written and (type(members.get(name)) is not str or written != members[name]):
            mended[name] = written
    scope = members.get("scope")
    if isinstance(scope, dict) and not all(map(_are_names, scope.values())):
        mended["scope"] = {field: _names(value) for field, value in scope.items()}
    if "dedupKey" in members:
        alert = _Alert(None, 0)
    body = merge(text, mended, mended).encode() if mended else data
    return AlertEvent(body, *alert)


def _alert(details: Any) -> tuple[_Alert, dict[str, str]]:
    """The alert that the details are of, and what it is called where YAML left nothing of
    the template's texts ("null", "~"): nobody else would ever tell of it."""
    if not isinstance(details, dict):
        return _Alert(None, 0), {}
    fingerprint, status = _written(details.get("fingerprint")), _written(details.get("status"))
    began_at = _moment(details.get("startsAt"))
    if not (fingerprint and status and began_at):
        return _Alert(None, 0), {}
    name = _written(details.get("alertname")) or UNNAMED
    called = {"eventType": name, "summary": f"{status}: {name}"}
    return _Alert(identity_of(fingerprint, status), began_at), called


def _moment(value: Any) -> int | None:
    """Milliseconds since 1970; None where it is no time."""
    if not isinstance(value, str):
        return None
    printed = _GO_TIME.fullmatch(value)
    try:
        return parse_rfc3339("{}T{}{}:{}".format(*printed.groups()) if printed else value)
    except ValueError:
        return None


def _names(value: Any) -> Any:
    """A list of names, without those that say nothing."""
    if not isinstance(value, list):
        return value
    return [name for name in map(_written, value) if name]


def _are_names(value: Any) -> bool:
    # A number of `strictjson` is a text of a kind of its own.
    return not isinstance(value, list) or all(type(name) is str and name for name in value)


def _written(value: Any) -> str:
    """The text that was read as YAML, as far as it can be told from what became of it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_written(member)}".rstrip() for name, member in value.items())
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return str(value)
