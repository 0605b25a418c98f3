"""Whatever the endpoint answers, the key shows nowhere and no page is a delivery.

The agent is real, its endpoint is whoever has taken Komodor's place. What its
answers cost in time stands in `test_abuse_by_endless_answers.py`.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

import pytest
from support.neighbour import House
from support.outside import Arrival, Komodor
from support.waiting import PATIENCE_S

KEY = 'k3y-"Of/the+Account&=~0123456789'
ENVIRON = {"KOMODOR_API_KEY": KEY}
QUICK = {"delivery": {"backoff_initial": "10ms", "backoff_max": "50ms", "concurrency_max": 16}}

ECHOED_AS_IT_IS = """
import outboxd.delivery.transport as transport
transport.spellings = lambda secret: []
import outboxd.observe.redact as redact
redact.spellings = lambda secret: []
"""
PAGES_COUNT = """
import outboxd.delivery.outcome as outcome
outcome.is_html_page = lambda body: False
"""
SEALED_COUNT = """
import outboxd.delivery.exchange as exchange
exchange.decoded = lambda body, coding: (body, True)
"""


def whole(status: str, body: bytes | str = b"", *headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(data)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


@contextmanager
def answered(make_house, answers: dict[str, bytes], patch: str = ""):
    """A house whose endpoint answers each event as its summary says; once all were asked."""
    komodor = Komodor()
    asked: set[str] = set()

    def respond(arrival: Arrival) -> bytes:
        summary = str(arrival.event["summary"])
        asked.add(summary)
        return answers[summary]

    komodor.respond = respond
    try:
        with make_house(komodor.url, patch, ENVIRON, **QUICK) as house:
            for summary in answers:
                house.agent.accept(summary)
            await_all_asked(house, asked, answers)
            yield house
    finally:
        komodor.stop()


def await_all_asked(house: House, asked: set[str], answers: dict[str, bytes]) -> None:
    """Until every event was sent; for PATIENCE_S none may be meanwhile."""
    count, ends_s = 0, time.monotonic() + PATIENCE_S
    while asked != answers.keys():
        if len(asked) > count:
            count, ends_s = len(asked), time.monotonic() + PATIENCE_S
        assert time.monotonic() < ends_s, f"not asked: {answers.keys() - asked}"
        house.agent.request("POST", "/v1/release", b"{}")  # whatever the last has brought about
        time.sleep(0.01)


# --- the key ---------------------------------------------------------------------------

IN_JSON = json.dumps(KEY)[1:-1]
# As a server that is no enemy writes it, too: in its log's words, its page, its redirect.
SPELT: dict[str, str] = {
    "as it is": KEY,
    "quoted": quote(KEY, safe=""),
    "quoted in lower case": re.sub("%..", lambda found: found[0].lower(), quote(KEY, safe="")),
    "quoted as a path": quote(KEY),
    "quoted as a form": quote_plus(KEY),
    "quoted twice": quote(quote(KEY, safe=""), safe=""),
    "in JSON": IN_JSON,
    "in JSON of PHP": IN_JSON.replace("/", "\\/"),
    "in HTML": html.escape(KEY),
    "as Python has it": repr(KEY)[1:-1],
}


def echoes() -> dict[str, bytes]:
    """The key in each part of an answer, and in each spelling."""
    page = f"no such key: {KEY}".encode()
    return {
        "location": whole("302 Found", b"", f"Location: https://h/login?key={KEY}&x=1"),
        "authenticate": whole("401 No", b"", f"WWW-Authenticate: Bearer {KEY}"),
        "retry": whole("429 Slow", b"", f"Retry-After: {KEY}", f"Date: {KEY}"),
        "content type": whole("400 Bad", page, f"Content-Type: {KEY}"),
        "coding": whole("400 Bad", page, f"Content-Encoding: {KEY}"),
        "phrase": whole(f"500 {KEY}", page),
        "header's name": whole("500 Bad", page, f"{KEY}: {KEY}"),
        "gzip": whole("400 Bad", gzip.compress(page), "Content-Encoding: gzip"),
        "gzip untold": whole("400 Bad", gzip.compress(page)),
        "deflate": whole("400 Bad", zlib.compress(page), "Content-Encoding: deflate"),
        "interim": f"HTTP/1.1 103 Early\r\nLink: {KEY}\r\n\r\n".encode() + whole("400 B", page),
        "no HTTP": f"{KEY} {KEY}\r\n\r\n".encode(),
        "no version": f"HTTP/9.9 200 {KEY}\r\n\r\n{KEY}".encode(),
        "chunked": b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + b"".join(b"1;%b\r\n%b\r\n" % (b"x=y", page[n : n + 1]) for n in range(len(page)))
        + b"0\r\n\r\n",
        "bad chunk": f"HTTP/1.1 400 B\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n{KEY}".encode(),
        # Where what is kept of a body ends, and what is shown of it.
        **{
            f"cut at {at}": whole("400 Bad", b" " * (at - 20) + page[-len(KEY) :] + b" " * 9_000)
            for at in (200, 2048, 2060)
        },
        **{how: whole("400 Bad", f"unknown: {spelt}") for how, spelt in SPELT.items()},
        **{
            f"{how}, redirected": whole("307 Go", b"", f"Location: /{spelt}")
            for how, spelt in SPELT.items()
        },
    }  # fmt: skip


def shown(house: House) -> dict[str, str]:
    """Everything that people, programs and files are told."""
    targets = ["/v1/status", "/v1/events?limit=1000", "/metrics", "/v1/activity"]
    entries = house.agent.request("GET", "/v1/events?limit=1000")[1]["events"]  # type: ignore[index]
    targets += [f"/v1/events/{entry['id']}" for entry in entries]
    texts = {}
    for target in targets:
        answer = house.agent.request("GET", target)[1]
        is_text = isinstance(answer, bytes)
        texts[target] = answer.decode() if is_text else json.dumps(answer, ensure_ascii=False)  # type: ignore[union-attr]
    return {**texts, "the log": house.agent.log_text()}


def leaks(house: House) -> list[str]:
    """Each place at which the key can be read, in any spelling, or the beginning of it."""
    # A text within a JSON text has its quotes and backslashes escaped once more.
    spelt = {*SPELT.values(), *(json.dumps(each)[1:-1] for each in SPELT.values()), KEY[:12]}
    return [
        f"{where}: {each}" for where, text in shown(house).items() for each in spelt if each in text
    ]


def test_the_key_shows_nowhere(make_house):
    with answered(make_house, echoes()) as house:
        assert leaks(house) == []


def test_without_the_rule_the_key_is_seen(only_full, make_house):
    with answered(make_house, echoes(), ECHOED_AS_IT_IS) as house:
        assert len(leaks(house)) > 20


# --- pages ------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><title>Sign in</title><p>Accept our terms"


def twice(data: bytes, pack: Callable[[bytes], bytes]) -> bytes:
    return pack(pack(data))


# The page above as the tools of these codings write it.
BROTLI = (
    b"\x1b=\x00\x80\x8c\xd3e\xb4\x17:&\xf0\x90\xc5\xf8\x9a\x15\xcc&y@|`\x03\x0e\xd8\xf3\xc0\xb6'\x1b"
    b"6\xc6\xc03-~tc.\xb04L\x06\xd1\xbf\x18\xcdW;"
)
ZSTANDARD = b"(\xb5/\xfd >\xf1\x01\x00" + PAGE
CODINGS = {
    "br": BROTLI,
    "gzip, br": BROTLI,
    "br, gzip": gzip.compress(BROTLI),
    "zstd": ZSTANDARD,
    "": ZSTANDARD,
    "dcz": bytes(range(128, 256)) * 9,
    "gzip": b"\x1f\x8b\x08\x08" + bytes(6) + b"name" * 1_000,
    "deflate": b"\xff\xff" + PAGE,
}


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def pages() -> dict[str, bytes]:
    """Answers of 2xx that are no delivery, as portals and proxies give them."""
    bodies = {
        "plain": PAGE,
        "upper case": PAGE.upper(),
        "a comment first": b"<!-- portal --><html>" + PAGE,
        "white space first": b"\r\n\t  " + PAGE,
        "a mark first": b"\xef\xbb\xbf" + PAGE,
        "XHTML": b'<?xml version="1.0"?><!DOCTYPE html><html>x',
        "a refresh": b'<meta http-equiv="refresh" content="0;url=/login">',
        "a script": b"<script>location='/login'</script>",
        "a piece": b"<div class=x>sign in</div>",
    }
    found = {}
    for name, body in bodies.items():
        for status in ("200 OK", "299 Yes"):
            found[f"{name}, {status}"] = whole(status, body)
        found[f"{name}, as JSON"] = whole("200 OK", body, "Content-Type: application/json")
        found[f"{name}, gzip untold"] = whole("200 OK", gzip.compress(body))
        found[f"{name}, gzip"] = whole("200 OK", gzip.compress(body), "Content-Encoding: gzip")
        found[f"{name}, x-gzip"] = whole("200 OK", gzip.compress(body), "Content-Encoding: X-GZIP")
        found[f"{name}, gzip twice"] = whole("200 OK", twice(body, gzip.compress))
    found["deflate"] = whole("200 OK", zlib.compress(PAGE), "Content-Encoding: deflate")
    found["raw deflate"] = whole("200 OK", raw_deflate(PAGE), "Content-Encoding: deflate")
    found["zlib as gzip"] = whole("200 OK", zlib.compress(PAGE), "Content-Encoding: gzip")
    found["without a length"] = b"HTTP/1.1 200 OK\r\n\r\n" + PAGE
    found["chunked"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"1\r\n%c\r\n" % byte for byte in PAGE
    )
    found["of HTTP/1.0"] = b"HTTP/1.0 200 OK\n\n" + PAGE
    found["a bomb"] = whole("200 OK", gzip.compress(PAGE + bytes(100 << 20), 9))
    found["only called br"] = whole("200 OK", PAGE, "Content-Encoding: br")
    for utf in ("utf-16", "utf-16-be", "utf-32-le"):
        found[utf] = whole("200 OK", PAGE.decode().encode(utf))
    found["far behind"] = whole("200 OK", b" " * 5_000 + PAGE)
    found["with a bad header"] = b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n" + PAGE
    return found


def sealed() -> dict[str, bytes]:
    """Pages that nobody can read here."""
    return {
        f"{coding}, {status}": whole(status, body, f"Content-Encoding: {coding}")
        for coding, body in CODINGS.items()
        for status in ("200 OK", "201 Created")
    }


def delivered(house: House) -> list[str]:
    """What counts as delivered though nobody has taken it."""
    texts = house.agent.request("GET", "/v1/events?state=delivered&limit=1000")[1]
    return sorted(entry["summary"] for entry in texts["events"])  # type: ignore[index]


def test_no_page_is_a_delivery(make_house):
    with answered(make_house, pages() | sealed()) as house:
        assert delivered(house) == []


def readable() -> dict[str, bytes]:
    """Deliveries, whatever somebody between has made of the answer."""
    body, typed = b'{"id": "k1"}', "Content-Type: application/json"
    return {
        "gzip": whole("201 Created", gzip.compress(body), "Content-Encoding: gzip"),
        "untold": whole("201 Created", gzip.compress(body)),
        "deflate": whole("201 Created", raw_deflate(body), "Content-Encoding: deflate"),
        "unpacked": whole("201 Created", body, "Content-Encoding: br"),
        "sealed JSON": whole("201 Created", BROTLI, "Content-Encoding: br", typed),
        "nothing": whole("204 No Content", b"", "Content-Encoding: br"),
    }


def test_no_answer_that_can_be_read_is_taken_for_a_page(only_full, make_house):
    with answered(make_house, readable()) as house:
        house.agent.await_empty()
        assert delivered(house) == sorted(readable())


@pytest.mark.parametrize(("patch", "answers"), [(PAGES_COUNT, pages), (SEALED_COUNT, sealed)])
def test_without_the_rule_pages_are_seen(only_full, make_house, patch, answers):
    with answered(make_house, answers(), patch) as house:
        assert len(delivered(house)) > 10
