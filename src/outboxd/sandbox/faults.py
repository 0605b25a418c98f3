"""How the sandbox misbehaves on request.

Pure: what the faults are, how a request to change them is read, and what they
mean for one call. Nothing here sleeps, answers or reads a clock: the server
does as the decision says.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any


class BadFaults(Exception):
    """A request for faults that cannot be understood."""


@dataclass(frozen=True, slots=True)
class InjectedFaults:
    """What goes wrong at present. Names on the wire are in camel case."""

    outage: bool = False  # connections are reset without an answer, nothing is recorded
    fail_rate: float = 0.0  # this share of calls is answered 500
    latency_ms: float = 0.0  # each answer comes this much later
    status: int | None = None  # every call gets this status and nothing is recorded
    retry_after: str | None = None  # the Retry-After header of 429, 503 and `status`
    rate_limit: float = 0.0  # calls a second; 429 above it; 0: no limit
    hang_seconds: float = 0.0  # each answer comes this much later still
    lost_answer_rate: float = 0.0  # this share is recorded, then the connection is reset
    html: bool = False  # a captive portal: 200 with a page, nothing is recorded
    date_skew_seconds: float = 0.0  # how far the Date header is from the truth
    times: int | None = None  # after so many calls all faults end by themselves

    def to_json(self) -> dict[str, Any]:
        """The shape that `GET /sandbox/faults` answers with."""
        return {_wire_name(field.name): getattr(self, field.name) for field in fields(self)}

    @property
    def quiet(self) -> bool:
        """Whether nothing goes wrong, so that the server may take its short way."""
        return self == _NONE


@dataclass(frozen=True, slots=True)
class CallHandling:
    """What is to be done with one call to the API."""

    reset: bool = False  # end the connection without an answer, record nothing
    status: int | None = None  # answer this instead of handling the call
    retry_after: str | None = None
    html: bool = False
    lose_answer: bool = False  # handle the call, then end the connection
    delay_s: float = 0.0  # wait before the answer


def judge(faults: InjectedFaults, chance: float, within_rate: bool) -> CallHandling:
    """What the faults mean for a call; `chance` is a random number below 1."""
    delay_s = faults.latency_ms / 1000 + faults.hang_seconds
    if faults.outage:
        return CallHandling(reset=True)
    if not within_rate:
        return CallHandling(status=429, retry_after=faults.retry_after, delay_s=delay_s)
    if faults.status is not None:
        return CallHandling(status=faults.status, retry_after=faults.retry_after, delay_s=delay_s)
    if faults.html:
        return CallHandling(status=200, html=True, delay_s=delay_s)
    if chance < faults.fail_rate:
        return CallHandling(status=500, delay_s=delay_s)
    # The same number serves twice: what is left of it is spread over [0, 1) again.
    left = (chance - faults.fail_rate) / (1 - faults.fail_rate)
    return CallHandling(lose_answer=left < faults.lost_answer_rate, delay_s=delay_s)


def changed(faults: InjectedFaults, wanted: Any) -> InjectedFaults:
    """The faults after a request that names some; null means 'as at first'."""
    if not isinstance(wanted, dict):
        raise BadFaults('the body must be an object such as {"outage": true}')
    values: dict[str, Any] = {}
    for key, value in wanted.items():
        field = _FIELDS.get(_ALIASES.get(str(key), str(key)))
        if field is None:
            near = difflib.get_close_matches(str(key), _FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_FIELDS)}"
            raise BadFaults(f"there is no fault {key!r}: {hint}")
        values[field] = getattr(_NONE, field) if value is None else _checked(key, field, value)
    return replace(faults, **values)


def spent(faults: InjectedFaults) -> InjectedFaults:
    """The faults after one more call, where their number is limited."""
    if faults.times is None:
        return faults
    return replace(faults, times=faults.times - 1) if faults.times > 1 else _NONE


class RateLimit:
    """A token bucket a tenth of a second deep, so that bursts are refused too."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._filled_at_s: float | None = None  # the clock may begin anywhere

    def admits(self, rate: float, now_s: float) -> bool:
        """Whether a call at this moment keeps to `rate` calls a second."""
        if rate <= 0:
            return True
        depth = max(1.0, rate / 10)
        if self._filled_at_s is None:
            self._tokens = depth
        else:
            self._tokens = min(depth, self._tokens + (now_s - self._filled_at_s) * rate)
        self._filled_at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _wire_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_NONE = InjectedFaults()
_FIELDS = {_wire_name(field.name): field.name for field in fields(InjectedFaults)}
_ALIASES = {"closeBeforeAnswer": "lostAnswerRate"}
_LIMITS = {
    "fail_rate": (0.0, 1.0),
    "lost_answer_rate": (0.0, 1.0),
    "latency_ms": (0.0, 600_000.0),
    "hang_seconds": (0.0, 3600.0),
    "rate_limit": (0.0, 1e6),
    "date_skew_seconds": (-1e7, 1e7),
    "status": (200, 599),
    "times": (1, 1_000_000_000),
}


def _checked(key: str, field: str, value: Any) -> Any:
    if field in ("outage", "html"):
        if not isinstance(value, bool):
            raise BadFaults(f"{key} must be true or false, not {value!r}")
        return value
    if field == "retry_after":
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadFaults(f"{key} must be seconds or an HTTP date, not {value!r}")
        return str(value)
    if field == "lost_answer_rate" and isinstance(value, bool):
        return float(value)
    whole = field in ("status", "times")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise BadFaults(f"{key} must be {kind}, not {value!r}")
    low, high = _LIMITS[field]
    if not low <= value <= high:
        raise BadFaults(f"{key} must be between {low:g} and {high:g}, not {value!r}")
    return value
