"""What an answer means: for the destination, for its event, and so for its entry.

Pure: times are arguments, and what the gate makes of an answer beside those of
others (`Effect`) is one as well. It never decides how long anybody waits.

The start of a body is read through codings that nobody asked for. Every request asks
for `identity`, so an answer that is coded all the same comes from something that does
not listen: a portal with pages packed beforehand, a proxy. What is packed with gzip or
deflate is read, told or untold. For other codings there is no decoder here: that such
an answer cannot be read is said. Nothing unpacks more than is kept.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple

from outboxd.delivery.retry_after import wait_s
from outboxd.outbox.model import Attempt, Claimed, DeadReason, Outcome, Settlement, State
from outboxd.text import harmless

BODY_START_BYTES = 2048  # what is kept of a body, packed or not
# What may stand before the first character, in UTF-8, UTF-16 and UTF-32.
SPACE_AND_MARKS = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n\f\v"
# With what a packed body begins, whatever its head says of it: gzip, zstandard (RFC 8878),
# and zlib as everybody makes it (RFC 1950).
_GZIP, _ZSTANDARD, _ZLIB = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x78"
PACKED_STARTS = (_GZIP[:1], _ZSTANDARD[:1], _ZLIB)

_LAYERS_MAX = 4
_ANY_HEADER = 32 + zlib.MAX_WBITS  # gzip's or zlib's, as zlib's documentation has it
_TEXT_START_BYTES = 32


class Fault(StrEnum):
    """Why there is no answer. The first group ended before the request could leave."""

    DNS = "dns"  # the name does not resolve
    CONNECT = "connect"  # refused, unreachable, no route, or too many open files here
    CONNECT_TIMEOUT = "connectTimeout"  # name, connection and TLS took too long together
    CERTIFICATE = "certificate"  # the server's certificate does not verify
    CLIENT_CERTIFICATE = "clientCertificate"  # the server wants another one of ours, or one at all
    TLS = "tls"  # the handshake failed in another way
    PROXY = "proxy"  # the proxy cannot be reached or will not connect us
    PROXY_AUTH = "proxyAuth"  # the proxy wants (other) credentials

    # From here on the request may have arrived.
    LOST = "lost"  # the connection ended before the whole head of an answer came
    GARBAGE = "garbage"  # what came back is not HTTP
    TIMEOUT = "timeout"  # no answer within request_timeout

    INTERNAL = "internal"  # a defect of ours; `sent` says whether before or after


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Answer(NamedTuple):
    """What came of one request: an answer's head and start, or a fault."""

    status: int | None = None
    headers: Mapping[str, str] = _NO_HEADERS  # looked up with lower-case names
    body_start: bytes = b""  # at most BODY_START_BYTES, without its codings
    fault: Fault | None = None
    fault_text: str = ""  # what the fault says of itself, for the operator
    sent: bool = True  # whether any byte of the request may have left
    duration_ms: int = 0
    complete: bool = True  # whether the body came to its end
    readable: bool = True  # whether its start could be read through its codings


class Meaning(NamedTuple):
    """What the answer means for the event and for the destination."""

    outcome: Outcome
    status: int | None = None
    error: str | None = None  # what happened, in one line
    hint: str | None = None  # what the operator should do, if anything
    may_have_arrived: bool = False  # its next delivery is a possible duplicate
    retry_after_s: float | None = None  # throttled: how long; None: as the breaker waits
    concerns_event: bool = True  # not if it was refused before any of the event was sent
    is_certificate: bool = False  # a certificate does not verify: perhaps the clock is wrong


class GateChange(Enum):
    """What an answer did to the gate."""

    NONE = auto()
    LOST = auto()  # an outage or a hold began
    OPENED = auto()  # requests flow, and had only been untried, throttled or in doubt
    RECOVERED = auto()  # requests flow again after an outage or a hold


class Effect(NamedTuple):
    """What an answer did, beyond its meaning."""

    change: GateChange = GateChange.NONE
    own_fault: bool = False  # the event is refused while others pass
    spent: bool = False  # and an attempt is spent on it
    rests_s: float | None = None  # the event waits by itself; None: as the gate says
    given_up: bool = False  # for good, by the evidence of three refusals
    is_news: bool = False  # it was not known as one to set aside
    resting: tuple[tuple[int, float], ...] = ()  # others (seq) wait by themselves until then
    is_final: bool = True  # rejected: a dead letter
    revived: tuple[int, ...] = ()  # dead letters (seqs) that are pending again
    fresh_connections: bool = False  # the next probe must not use the old ones
    hint: str | None = None  # in place of the answer's own


_AT_STOP = "the agent was stopped before the answer came: the event may have arrived"
_ERROR_CHARS = 200

_CHECK_KEY = (
    "put a valid key in the file that [komodor] api_key_file names; "
    "delivery goes on by itself when the file changes"
)
_CHECK_ENDPOINT = "check [komodor] endpoint: it is the whole URL, with its path"
_CHECK_LATER = "nothing: it is tried again by itself"
_CHECK_PAGE = (
    "Komodor answers in JSON: something else answers in its place, a proxy or a firewall; "
    + _CHECK_ENDPOINT
)
_CHECK_PORTAL = "a captive portal? sign in to the network; or " + _CHECK_ENDPOINT
_CHECK_CERTIFICATE = (
    "check the clock of this host, [komodor] endpoint, and [komodor] ca_file "
    "if a proxy or the endpoint has a certificate of your own"
)
_CHECK_CLIENT_CERTIFICATE = "check [komodor] client_cert and client_key"
_CHECK_PROXY = "check [komodor] proxy, or http_proxy and https_proxy in the agent's environment"

# What only a person can mend: everything is kept and nothing is spent.
_HOLDS: dict[int, str] = {
    401: f"the API key is refused: {_CHECK_KEY}",
    402: "the account does not pay for this: ask the owner of the Komodor account",
    403: f"the API key may not do this: {_CHECK_KEY}",
    404: _CHECK_ENDPOINT,
    405: _CHECK_ENDPOINT,
    407: f"the proxy wants credentials: {_CHECK_PROXY}",
    421: _CHECK_ENDPOINT,
}
_UNAVAILABLE = frozenset({408, 425})

# What a page begins with, in lower case: a declaration, a comment, or an element
# that HTML knows. `<ok/>` is some API's answer, and no page.
_MARKUP = re.compile(
    rb"<(?:!doctype|!--|\?xml|(?:html|head|title|meta|link|style|script|noscript|base|body|div|span"
    rb"|p|a|h[1-6]|center|font|table|form|img|iframe|frameset|pre|b|i|br|hr|ul|ol)(?:[\s/>]|$))"
)

_FAULTS: dict[Fault, tuple[Outcome, str, str]] = {
    Fault.DNS: (Outcome.UNAVAILABLE, "the name does not resolve", _CHECK_LATER),
    Fault.CONNECT: (Outcome.UNAVAILABLE, "no connection", _CHECK_LATER),
    Fault.CONNECT_TIMEOUT: (
        Outcome.UNAVAILABLE,
        "no connection within connect_timeout",
        _CHECK_LATER,
    ),
    Fault.CERTIFICATE: (Outcome.HOLD, "the certificate does not verify", _CHECK_CERTIFICATE),
    Fault.CLIENT_CERTIFICATE: (
        Outcome.HOLD,
        "the server does not take our certificate",
        _CHECK_CLIENT_CERTIFICATE,
    ),
    Fault.TLS: (Outcome.UNAVAILABLE, "the TLS handshake failed", _CHECK_ENDPOINT),
    Fault.PROXY: (Outcome.UNAVAILABLE, "the proxy does not connect us", _CHECK_PROXY),
    Fault.PROXY_AUTH: (Outcome.HOLD, "the proxy refuses our credentials", _CHECK_PROXY),
    Fault.LOST: (
        Outcome.UNAVAILABLE,
        "the connection ended before the answer: the event may have arrived",
        _CHECK_LATER,
    ),
    Fault.GARBAGE: (Outcome.UNAVAILABLE, "the answer is not HTTP", _CHECK_ENDPOINT),
    Fault.TIMEOUT: (
        Outcome.UNAVAILABLE,
        "no answer within request_timeout: the event may have arrived",
        _CHECK_LATER,
    ),
    Fault.INTERNAL: (Outcome.UNAVAILABLE, "internal error", "please report it"),
}


def decide(answer: Answer, now_ms: int, retry_after_max_s: float) -> Meaning:
    """What the answer means. `now_ms` serves a Retry-After with a date alone."""
    status = answer.status
    if answer.fault is not None or status is None:
        return _of_fault(answer)
    if 200 <= status <= 299:
        return _of_success(answer, status)
    if status in (429, 503):
        wait = wait_s(
            answer.headers.get("retry-after"), answer.headers.get("date"), now_ms, retry_after_max_s
        )
        if status == 429 or wait is not None:
            return Meaning(
                Outcome.THROTTLED, status, _described(answer, status), _CHECK_LATER, False, wait
            )
    return _of_error_status(answer, status)


def is_html_page(body_start: bytes) -> bool:
    """Whether a body begins with markup: a page for a browser, as a captive portal
    or a proxy answers. Its content type says nothing: frameworks call every string
    text/html, and portals call their page anything.
    """
    start = body_start.lstrip(SPACE_AND_MARKS)[:1024].replace(b"\0", b"").lower()  # in any UTF
    return _MARKUP.match(start) is not None or (start[:1] == b"<" and b"<html" in start)


def decoded(body: bytes, coding: str) -> tuple[bytes, bool]:
    """The start of a body without its codings, and whether it could be read.

    Args:
        body: what was kept of it, at most BODY_START_BYTES
        coding: the header Content-Encoding, "" for none; one that names more than
            was done (a proxy has unpacked the body and left the name) does no harm
    """
    if not body:
        return b"", True
    named = [each.strip().lower() for each in coding.split(",")] if coding else []
    named = [name for name in named if name not in ("", "identity")]
    for _ in range(_LAYERS_MAX):
        unpacked = _unpacked(body, is_deflate=named[-1:] == ["deflate"])
        if unpacked is None:
            break
        body = unpacked
        del named[-1:]
    if not body or body.startswith((_GZIP, _ZSTANDARD)) or (named and not _is_text(body)):
        return b"", False
    if len(body) >= BODY_START_BYTES and not body.strip(SPACE_AND_MARKS):
        return b"", False  # what it says is yet to come, and no API begins like that
    return body, True


def _of_success(answer: Answer, status: int) -> Meaning:
    if is_html_page(answer.body_start):
        error = f"{status} with an HTML page: something else answers in Komodor's place"
        return Meaning(Outcome.UNAVAILABLE, status, error, _CHECK_PORTAL)
    if not answer.readable and not _is_said_to_be_json(answer):
        # None of our requests allows a coding, and pages that are packed beforehand are
        # what is sent so all the same. A second delivery is worth less than a lost event,
        # and an API says of its answer what it is, so Komodor itself never comes here.
        coding = _one_line(answer.headers.get("content-encoding", "")) or "a way unknown here"
        error = f"{status} with a body that cannot be read: coded in {coding}, which nobody asked"
        return Meaning(Outcome.UNAVAILABLE, status, error, _CHECK_PORTAL, may_have_arrived=True)
    return Meaning(Outcome.DELIVERED, status)


def _is_said_to_be_json(answer: Answer) -> bool:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _of_error_status(answer: Answer, status: int) -> Meaning:
    error = _described(answer, status)
    if status in _HOLDS:
        return Meaning(Outcome.HOLD, status, error, _HOLDS[status])
    if 300 <= status <= 399:
        target = _one_line(answer.headers.get("location", ""))
        if target:
            error = f"{_named(status)}: redirected to {target}"
        hint = f"redirects are never followed: {_CHECK_ENDPOINT}"
        return Meaning(Outcome.HOLD, status, error, hint)
    if 400 <= status <= 499 and status not in _UNAVAILABLE:
        if is_html_page(answer.body_start):
            return Meaning(Outcome.HOLD, status, f"{error} (an HTML page)", _CHECK_PAGE)
        hint = "Komodor refuses this event itself: correct what sends it"
        return Meaning(Outcome.REJECTED, status, error, hint)
    # An interim answer (1xx) in place of a final one says nothing of the event.
    return Meaning(Outcome.UNAVAILABLE, status, error, _CHECK_LATER, may_have_arrived=status < 200)


def _of_fault(answer: Answer) -> Meaning:
    fault = answer.fault or Fault.LOST
    outcome, what, hint = _FAULTS[fault]
    said = _one_line(answer.fault_text)
    error = f"{what} ({said})" if said else what
    return Meaning(
        outcome,
        None,
        error,
        hint,
        may_have_arrived=answer.sent,
        # A defect of ours may be one that this event alone brings about.
        concerns_event=answer.sent or fault is Fault.INTERNAL,
        is_certificate=fault is Fault.CERTIFICATE,
    )


def _described(answer: Answer, status: int) -> str:
    """The status with its name and the start of what the answer says."""
    said = _one_line(answer.body_start.decode("utf-8", "replace"))
    return f"{_named(status)}: {said}" if said else _named(status)


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _one_line(text: str) -> str:
    """Fit for a log line and a terminal: nothing that drives one, and short."""
    clean = harmless(" ".join(text.split())[: _ERROR_CHARS + 1])
    return clean if len(clean) <= _ERROR_CHARS else clean[: _ERROR_CHARS - 1] + "…"


def settlement(
    entry: Claimed,
    attempt: Attempt,
    meaning: Meaning,
    effect: Effect,
    *,
    attempts_max: int,
    due_at: int,
) -> Settlement:
    """The entry's next state; `due_at` is for one that has to wait by itself."""
    if meaning.outcome is Outcome.DELIVERED:
        return Settlement(entry.seq, State.DELIVERED, attempt, first_of=_first_of(entry))
    reason = _dead_reason(entry, meaning, effect, attempts_max)
    return Settlement(
        entry.seq,
        State.PENDING if reason is None else State.DEAD,
        attempt,
        due_at=due_at if reason is None else 0,
        spent=int(effect.spent),
        possible_duplicate=meaning.may_have_arrived,
        dead_reason=reason,
        first_of=_first_of(entry),
    )


def _first_of(entry: Claimed) -> str | None:
    """Of an entry of which nothing was settled before, whose it is."""
    return entry.producer if entry.attempt_count == 0 else None


def _dead_reason(
    entry: Claimed, meaning: Meaning, effect: Effect, attempts_max: int
) -> DeadReason | None:
    """Why the entry is given up; None while it is not."""
    if meaning.outcome is Outcome.REJECTED:
        return DeadReason.REJECTED if effect.is_final else None
    if effect.given_up:
        return DeadReason.REJECTED
    if effect.spent and meaning.outcome is not Outcome.HOLD:
        return DeadReason.EXHAUSTED if 0 < attempts_max <= entry.spent + 1 else None
    return None


def revived(seq: int, waiting: Settlement | None) -> Settlement:
    """A dead letter waits again; perhaps its settlement was not written yet."""
    if waiting is None:
        return Settlement(seq, State.PENDING, None, revives=True)
    return waiting._replace(state=State.PENDING, dead_reason=None)


def abandoned(
    entry: Claimed, began_at: int, duration_ms: int, why: str = _AT_STOP, due_at: int = 0
) -> Settlement:
    """Its end was never seen: whether it arrived is not known."""
    attempt = Attempt(began_at, duration_ms, Outcome.UNAVAILABLE.value, None, why)
    return Settlement(entry.seq, State.PENDING, attempt, due_at=due_at, possible_duplicate=True)


def expired(seq: int) -> Settlement:
    """Its ttl ran out; no request was made."""
    return Settlement(seq, State.DEAD, None, dead_reason=DeadReason.EXPIRED)


def _unpacked(body: bytes, is_deflate: bool) -> bytes | None:
    """One layer less, b"" where its contents begin behind what was kept. None: there is
    none that can be taken off."""
    forms = [_ANY_HEADER] if body.startswith((_GZIP, _ZLIB)) else []
    for window_bits in (*forms, -zlib.MAX_WBITS) if is_deflate else forms:
        try:
            return zlib.decompressobj(window_bits).decompress(body, BODY_START_BYTES)
        except zlib.error:
            continue
    return None


def _is_text(body: bytes) -> bool:
    """Whether it begins as a text does, in any UTF."""
    start = body.replace(b"\0", b"").lstrip(SPACE_AND_MARKS)[:_TEXT_START_BYTES]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # its end may be in pieces
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable()
