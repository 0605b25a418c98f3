"""What answers a server may give, whole, cut and malformed, on real sockets: the
status line decides, a page is a page, and what nobody asked for never counts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import select
import socket
import threading
import zlib

import pytest
from support.waiting import PATIENCE_S

from outboxd.delivery import exchange
from outboxd.delivery.exchange import EndpointConnection
from outboxd.delivery.outcome import Fault, decide
from outboxd.delivery.transport import Transport
from outboxd.outbox.model import Outcome

pytestmark = pytest.mark.usefixtures("each_loop")

CREATED = b"HTTP/1.1 201 Created\r\n"
JSON = b'{"id":"k1"}'
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
# As the tools of these codings write them.
BROTLI_JSON = b'\x0b\x05\x80{"id":"k1"}\x03'
BROTLI_PAGE = (
    b"\x1b>\x00\xe0\x8dT\xb5\xbf|Is+\x1e\x1f\x0f8\xd1\riN\x1dp\x1c\xb2\xeb\xae\xbe\x88\xae"
    b"\xb7{\xe1 O\x865dD \x19"
)
ZSTANDARD_PAGE = b"(\xb5/\xfd >\xf1\x01\x00" + PAGE
TYPED = b"Content-Type: text/html\r\n"


def sized(body: bytes, head: bytes = CREATED, more: bytes = b"") -> bytes:
    return head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


# What follows the status line is wrong in some way, and the connection ends behind it.
UNREADABLE = {
    "a header of 9 KB": sized(JSON, more=b"X-Long: " + b"x" * 9000 + b"\r\n"),
    "a header of 60 KB": sized(JSON, more=b"X-Long: " + b"x" * 60_000 + b"\r\n"),
    "300 headers": sized(JSON, more=b"".join(b"X-%d: a\r\n" % n for n in range(300))),
    "a repeated length": sized(JSON, more=b"Content-Length: 11\r\n"),
    "two lengths": sized(JSON, more=b"Content-Length: 12\r\n"),
    "a length and chunks": sized(JSON, more=b"Transfer-Encoding: chunked\r\n"),
    "a length that is none": CREATED + b"Content-Length: eleven\r\n\r\n" + JSON,
    "a length below zero": CREATED + b"Content-Length: -1\r\n\r\n" + JSON,
    "a huge length": CREATED + b"Content-Length: 99999999999999999999999\r\n\r\n" + JSON,
    "a 204 with a body": sized(JSON, b"HTTP/1.1 204 No Content\r\n"),
    "a 204 with chunks": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a 205 with a body": sized(JSON, b"HTTP/1.1 205 Reset Content\r\n"),
    "no reason": sized(JSON, b"HTTP/1.1 201\r\n"),
    "an empty reason": sized(JSON, b"HTTP/1.1 201 \r\n"),
    "bare line feeds": b"HTTP/1.1 201 Created\nContent-Length: 11\n\n" + JSON,
    "no colon": sized(JSON, more=b"what is this\r\n"),
    "no name": sized(JSON, more=b": nameless\r\n"),
    "a space before the colon": sized(JSON, more=b"X-Thing : a\r\n"),
    "NUL in a header": sized(JSON, more=b"X-Thing: a\0b\r\n"),
    "latin-1 in a header": sized(JSON, more=b"X-Thing: caf\xe9\r\n"),
    "a folded header": sized(JSON, more=b"X-Thing: a\r\n  folded\r\n"),
    "cut behind the status line": CREATED,
    "cut in a header": CREATED + b"Content-Le",
    "cut before the body": CREATED + b"Content-Length: 11\r\n\r\n",
    "cut in the body": CREATED + b"Content-Length: 11\r\n\r\n{",
    "cut in a chunk": CREATED + b"Transfer-Encoding: chunked\r\n\r\nb\r\n{",
    "a chunk that is none": CREATED + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}",
    "an unknown transfer coding": CREATED + b"Transfer-Encoding: rot13\r\n\r\n" + JSON,
    "no length": CREATED + b"\r\n" + JSON,
    "HTTP/1.0": sized(JSON, b"HTTP/1.0 200 OK\r\n"),
    "text/html without markup": sized(b"OK", more=TYPED),
    "text/html and nothing": sized(b"", more=TYPED),
    "JSON, coded and broken": sized(
        b"\x1f\x8b\x08 broken",
        more=b"Content-Encoding: gzip\r\nContent-Type: application/json; charset=utf-8\r\n",
    ),
    "JSON in a coding we do not know": sized(
        BROTLI_JSON, more=b"Content-Encoding: br\r\nContent-Type: application/problem+json\r\n"
    ),
    "JSON in gzip": sized(gzip.compress(JSON), more=b"Content-Encoding: gzip\r\n"),
    "JSON in gzip, called br": sized(gzip.compress(JSON), more=b"Content-Encoding: br\r\n"),
    "JSON in raw deflate": sized(
        zlib.compress(JSON, wbits=-15), more=b"Content-Encoding: deflate\r\n"
    ),
    "a coding's name that a proxy has left": sized(JSON, more=b"Content-Encoding: gzip, br\r\n"),
    "a coding that is a character set": sized(JSON, more=b"Content-Encoding: UTF-8\r\n"),
    "a coding, and nothing": sized(b"", more=b"Content-Encoding: br\r\n"),
    "no coding, by name": sized(JSON, more=b"Content-Encoding: identity\r\n"),
    "upgrade offered": sized(JSON, more=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "interim ones before": b"HTTP/1.1 100 Continue\r\n\r\n" * 2
    + b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    + sized(JSON),
}
# A page, however it is wrapped.
PAGES = {
    "a page": sized(PAGE, b"HTTP/1.1 200 OK\r\n", TYPED),
    "without a type": sized(PAGE),
    "that is called JSON": sized(PAGE, more=b"Content-Type: application/json\r\n"),
    "behind space and a BOM": sized(b"\xef\xbb\xbf\r\n\t " + PAGE),
    "behind two lengths": sized(PAGE, more=b"Content-Length: 12\r\n"),
    "behind a bad header": sized(PAGE, more=b"what is this\r\n"),
    "behind bare line feeds": b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n" + PAGE,
    "cut": CREATED + TYPED + b"Content-Length: 9999\r\n\r\n" + PAGE,
    "in chunks": CREATED
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in PAGE)
    + b"0\r\n\r\n",
    "without a length": CREATED + b"\r\n" + PAGE,
    "in gzip": sized(gzip.compress(PAGE), more=b"Content-Encoding: gzip\r\n"),
    "in gzip, cut": sized(gzip.compress(PAGE * 9), more=b"Content-Encoding: gzip\r\n")[:-9],
    "in gzip without a word": sized(gzip.compress(PAGE)),
    "in gzip twice": sized(
        gzip.compress(gzip.compress(PAGE)), more=b"Content-Encoding: x-gzip\r\n"
    ),
    "in deflate": sized(zlib.compress(PAGE), more=b"Content-Encoding: deflate\r\n"),
    "in deflate, called gzip": sized(zlib.compress(PAGE), more=b"Content-Encoding: gzip\r\n"),
    "in deflate without a word": sized(zlib.compress(PAGE)),
    "in raw deflate": sized(
        zlib.compress(PAGE, wbits=-15), more=b"Content-Encoding: identity, Deflate\r\n"
    ),
    "in raw deflate in gzip": sized(
        gzip.compress(zlib.compress(PAGE, wbits=-15)), more=b"Content-Encoding: deflate, gzip\r\n"
    ),
    "in gzip, much larger than itself": sized(gzip.compress(PAGE + bytes(50_000_000), 9)),
    "that only is called packed": sized(PAGE, more=b"Content-Encoding: br\r\n"),
    **{
        f"in {name}": sized(PAGE.decode().encode(name))
        for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig")
    },
}
# A body came, and nobody can say what is in it.
SEALED = {
    "brotli": sized(BROTLI_PAGE, more=b"Content-Encoding: br\r\n"),
    "brotli, as HTML": sized(BROTLI_PAGE, more=TYPED + b"Content-Encoding: br\r\n"),
    "brotli in gzip": sized(gzip.compress(BROTLI_PAGE), more=b"Content-Encoding: br, gzip\r\n"),
    "brotli, cut": sized(BROTLI_PAGE, more=b"Content-Encoding: br\r\n")[:-9],
    "zstandard": sized(ZSTANDARD_PAGE, more=b"Content-Encoding: zstd\r\n"),
    "zstandard without a word": sized(ZSTANDARD_PAGE),
    "a coding nobody knows": sized(b"\x92\xf0\x01\xff" * 30, more=b"Content-Encoding: dcz\r\n"),
    "gzip, broken": sized(b"\x1f\x8b\x08 broken", more=b"Content-Encoding: gzip\r\n"),
    "gzip, broken, without a word": sized(b"\x1f\x8b\x08 broken"),
    "gzip, cut in its head": sized(gzip.compress(PAGE)[:10]),
    "gzip with a long name in its head": sized(
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 4000 + b"\0" + gzip.compress(PAGE)[10:]
    ),
    "gzip five times": sized(
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(PAGE)))))
    ),
    "nothing but space for 3 KB": sized(b"\r\n " * 1000 + PAGE),
}
EVERY = UNREADABLE | PAGES | SEALED


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def answer_of(loopback, script, **settings):
    async def main():
        async with loopback.Server(script) as server:
            return await loopback.send_once(loopback.Komodor(server.url(), **settings))

    return asyncio.run(main())


def says(raw, ends=True):
    def script(writer, _number, _request):
        writer.write(raw)
        return ends

    return script


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_status_line_decides_whatever_becomes_of_the_rest(loopback, name):
    raw = UNREADABLE[name]
    answer = answer_of(loopback, says(raw))
    assert decide(answer, 0, 60).outcome is Outcome.DELIVERED, answer
    # The same rest behind another status: that one counts.
    for line, outcome in (
        (b"HTTP/1.1 400 Bad Request\r\n", Outcome.REJECTED),
        (b"HTTP/1.1 500 Oh\r\n", Outcome.UNAVAILABLE),
        (b"HTTP/1.1 401 No\r\n", Outcome.HOLD),
    ):
        rest = raw[raw.rindex(b"HTTP/1.") :].partition(b"\n")[2]
        answer = answer_of(loopback, says(line + rest))
        assert (answer.status, answer.fault) == (int(line[9:12]), None)
        assert decide(answer, 0, 60).outcome is outcome


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_no_delivery_however_it_is_wrapped(loopback, name):
    answer = answer_of(loopback, says(PAGES[name]), request_timeout_s=30.0)
    verdict = decide(answer, 0, 60)
    assert (verdict.outcome, verdict.may_have_arrived) == (Outcome.UNAVAILABLE, False), answer


@pytest.mark.parametrize("name", SEALED)
def test_what_nobody_can_read_is_no_delivery_unless_it_is_said_to_be_json(loopback, name):
    raw = SEALED[name]
    verdict = decide(answer_of(loopback, says(raw)), 0, 60)
    assert (verdict.outcome, verdict.may_have_arrived) == (Outcome.UNAVAILABLE, True)
    assert "cannot be read" in verdict.error
    if TYPED not in raw:
        raw = raw.replace(CREATED, CREATED + b"Content-Type: application/json\r\n", 1)
        assert decide(answer_of(loopback, says(raw)), 0, 60).outcome is Outcome.DELIVERED


def test_a_page_that_comes_behind_its_head_is_waited_for(loopback):
    arrived = asyncio.Event()

    async def script(writer, _number, _request):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PAGE))
        await writer.drain()
        await arrived.wait()
        writer.write(PAGE)

    async def main():
        async with loopback.Server(script) as server:
            sending = asyncio.ensure_future(loopback.send_once(loopback.Komodor(server.url())))
            await until(lambda: server.requests)
            arrived.set()
            return await sending

    assert decide(asyncio.run(main()), 0, 60).outcome is Outcome.UNAVAILABLE


def test_a_success_is_told_before_its_rest_and_the_connection_goes_on_behind_it(loopback):
    told = asyncio.Event()

    async def script(writer, number, _request):
        if number == 1:
            writer.write(CREATED + b"Content-Length: 11\r\n\r\n" + JSON[:3])
            await writer.drain()
            await told.wait()
            writer.write(JSON[3:])
        else:
            writer.write(loopback.GOOD)

    async def main():
        async with loopback.Server(script) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            first = await transport.send("1", b"{}")
            told.set()
            await until(lambda: transport._way._idle)
            second = await transport.send("2", b"{}")
            await transport.close()
            return first, second, server.connections

    first, second, count = asyncio.run(main())
    assert (first.status, first.complete, first.body_start) == (201, False, b'{"i')
    assert (second.status, count) == (201, 1)


# -- what nobody asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [b"201 Created", b"400 Bad Request"])
def test_an_answer_on_an_idle_connection_ends_it_and_is_no_answer(loopback, monkeypatch, status):
    monkeypatch.setattr(exchange, "KEEPALIVE_S", 2 * PATIENCE_S)  # nothing else ends it
    unasked = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"

    async def main():
        answered = asyncio.Event()

        async def script(writer, number, _request):
            writer.write(loopback.GOOD)
            if number == 1:
                await answered.wait()
                writer.write(unasked)

        async with loopback.Server(script) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            assert (await transport.send("1", b"{}")).status == 201
            answered.set()
            await until(lambda: not transport._way._open)
            answer = await transport.send("2", b'{"two":2}')
            assert (answer.status, answer.body_start) == (201, JSON)
            await transport.close()
            assert server.connections == 2
            assert server.requests[1].endswith(b'{"two":2}')

    asyncio.run(main())


def unasked_before_the_second(loopback):
    """The endpoint answers once and sends a second answer, which lies in the socket
    unread when the second request goes out; the endpoint reads none of that one."""
    wrote = threading.Event()
    go = threading.Event()
    more: list[bytes] = []

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(sized(JSON))
            go.wait(PATIENCE_S)
            connection.sendall(sized(b'{"unasked":1}'))
            wrote.set()
            listener.settimeout(PATIENCE_S)
            try:
                other, _ = listener.accept()
            except TimeoutError:
                return
            with other:
                more.append(other.recv(65536))
                other.sendall(sized(b'{"asked":2}'))

    async def main(url):
        transport = Transport(loopback.Komodor(url), "secret")
        assert (await transport.send("1", b"{}")).status == 201
        go.set()
        wrote.wait(PATIENCE_S)  # stops the loop: it cannot have seen what came
        answer = await transport.send("2", b"{}")
        await transport.close()
        return answer

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        answer = asyncio.run(main(f"http://127.0.0.1:{listener.getsockname()[1]}/events"))
        with socket.create_connection(listener.getsockname()):
            pass  # in the control nobody else comes
        thread.join(PATIENCE_S)
    return answer, more


def test_an_answer_that_lies_unread_before_the_request_is_none_of_its(loopback):
    answer, more = unasked_before_the_second(loopback)
    assert answer.body_start == b'{"asked":2}'
    assert b"Idempotency-Key: 2" in more[0]


def test_control_without_a_look_at_the_socket_the_event_would_count_as_delivered(
    loopback, monkeypatch
):
    monkeypatch.setattr(EndpointConnection, "usable", lambda self: True)
    answer, more = unasked_before_the_second(loopback)
    assert answer.body_start == b'{"unasked":1}'
    assert more == [b""]


def test_control_bytes_that_nobody_asked_for_would_be_kept_for_the_next(loopback, monkeypatch):
    def keeps(self, data):
        if self._busy:
            received(self, data)
        else:
            kept.append(data)

    received, kept = EndpointConnection.data_received, []
    monkeypatch.setattr(EndpointConnection, "data_received", keeps)
    monkeypatch.setitem(globals(), "PATIENCE_S", 5.0)  # it would be waited for in vain
    with pytest.raises((AssertionError, TimeoutError)):
        test_an_answer_on_an_idle_connection_ends_it_and_is_no_answer(
            loopback, monkeypatch, b"201 Created"
        )


def test_an_answer_in_one_piece_with_another_ends_the_connection(loopback):
    async def main():
        def script(writer, number, _request):
            writer.write(sized(b'{"n":%d}' % number) + (sized(b"{}") if number == 1 else b""))

        async with loopback.Server(script) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            bodies = [(await transport.send(str(n), b"{}")).body_start for n in range(2)]
            await transport.close()
            return bodies, server.connections

    assert asyncio.run(main()) == ([b'{"n":1}', b'{"n":2}'], 2)


def test_an_endpoint_that_speaks_before_it_is_asked_has_not_taken_the_event(loopback):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(sized(JSON))
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(65536):
                        pass

        class Late(EndpointConnection):
            """Its first request comes when what was sent has certainly come."""

            def exchange(self, request, deadline_s):
                if not self._transport.is_closing():
                    select.select([self._socket], [], [], 10)
                return super().exchange(request, deadline_s)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/events"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("outboxd.delivery.transport.EndpointConnection", Late)
            answer = asyncio.run(loopback.send_once(loopback.Komodor(url)))
        thread.join(PATIENCE_S)
    assert (answer.status, answer.sent) == (None, False)


def test_a_success_before_the_request_has_left_is_none_of_its(loopback):
    ended = threading.Event()

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(10)
            connection.sendall(sized(JSON))
            ended.wait(PATIENCE_S)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/events"
        body = b"x" * (64 * 2**20)  # more than any socket's buffers hold
        answer = asyncio.run(loopback.send_once(loopback.Komodor(url), body))
        ended.set()
        thread.join(PATIENCE_S)
    assert (answer.status, answer.fault) == (None, Fault.GARBAGE)
    assert decide(answer, 0, 60).outcome is Outcome.UNAVAILABLE


# -- without end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 400])
def test_interim_answers_without_end_are_read_no_further_than_a_few(loopback, piece):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * piece
    written = 0

    async def script(writer, _number, _request):
        nonlocal written
        while True:
            writer.write(hints)
            written += len(hints)
            await writer.drain()

    answer = answer_of(loopback, script, request_timeout_s=30.0)
    assert (answer.fault, answer.sent) == (Fault.GARBAGE, True)
    assert written < 16 * 2**20


@pytest.mark.parametrize(
    ("begins", "goes_on", "expected"),
    [
        (b"HTTP/1.1 201 ", b"x" * 1000, Fault.GARBAGE),
        (b"", b"\r\n" * 1000, Fault.GARBAGE),
        (b"HTTP/1.1 103 Early Hints\r\n", b"X: y\r\n" * 200, Fault.GARBAGE),
        (CREATED, b"X: y\r\n" * 200, 201),
        (CREATED + b"X: ", b"y" * 1000, 201),
        (CREATED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 200, 201),
        (CREATED + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000, 201),
        (CREATED + b"Content-Length: x\r\n\r\n", b" " * 1000, 201),
        (CREATED + b"\r\n", b"<p>" * 300, 201),
    ],
)
def test_nothing_is_read_without_end(loopback, begins, goes_on, expected):
    async def script(writer, _number, _request):
        writer.write(begins)
        while True:
            writer.write(goes_on)
            await writer.drain()

    answer = answer_of(loopback, script, request_timeout_s=60.0)
    assert (answer.fault or answer.status) == expected


def test_the_rest_of_a_known_answer_is_waited_for_no_longer_than_its_limit(loopback, monkeypatch):
    monkeypatch.setattr(exchange, "REST_S", 0.1)

    async def script(writer, _number, _request):
        writer.write(CREATED + b"Content-Length: 11\r\n\r\n")
        await asyncio.Event().wait()

    answer = answer_of(loopback, script, request_timeout_s=60.0)
    assert (answer.status, answer.complete) == (201, False)


def test_the_key_comes_back_in_no_header(loopback):
    def script(writer, _number, _request):
        writer.write(sized(b"", b"HTTP/1.1 302 Found\r\n", b"Location: /login?key=secret\r\n"))

    answer = answer_of(loopback, script)
    assert answer.headers["location"] == "/login?key=[api key]"
    assert "secret" not in str(decide(answer, 0, 60))


def test_a_5xx_on_one_connection_only_is_left_for_another(loopback):
    bad: list[object] = []

    def script(writer, _number, _request):
        if not bad:
            bad.append(writer)
        if writer is bad[0]:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(loopback.GOOD)

    async def main():
        async with loopback.Server(script) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            statuses = [(await transport.send(str(n), b"{}")).status for n in range(3)]
            await transport.close()
            return statuses, server.connections

    assert asyncio.run(main()) == ([503, 201, 201], 2)


# -- in pieces -------------------------------------------------------------------------------------


def in_pieces(loopback, raw, cuts):
    """What comes of an answer that arrives in pieces, each read by itself."""

    async def script(writer, _number, _request):
        for begin, end in zip((0, *cuts), (*cuts, len(raw)), strict=True):
            writer.write(raw[begin:end])
            await writer.drain()
            for _ in range(3):  # the client has its turn
                await asyncio.sleep(0)
        return True

    answer = answer_of(loopback, script, request_timeout_s=60.0)
    verdict = decide(answer, 0, 60)
    return answer.status, answer.fault, verdict.outcome


@pytest.mark.parametrize("name", sorted(EVERY))
def test_an_answer_means_the_same_split_at_any_byte(loopback, full, name):
    raw = EVERY[name]
    whole = in_pieces(loopback, raw, ())
    every = range(1, len(raw)) if len(raw) < 1000 else sorted(random.Random(1).sample(
        range(1, len(raw)), 300))  # fmt: skip
    some = every if full else random.Random(name).sample(list(every), 3)
    for at in some:
        assert in_pieces(loopback, raw, (at,)) == whole, f"split at {at}"
    if len(raw) < 1000:
        assert in_pieces(loopback, raw, tuple(range(1, len(raw)))) == whole, "byte by byte"


def mutated(raw: bytes, random: random.Random) -> bytes:
    """An answer with something wrong somewhere."""
    at, length = random.randrange(len(raw) + 1), random.randrange(1, 20)
    filling = random.choice(
        [b"", b"\r\n", b"\n", b"\r\n\r\n", b"\0", b" ", b":", b"<html>", b"HTTP/1.1 200 OK\r\n\r\n",
         random.randbytes(length), raw[at : at + length], b"9" * length]
    )  # fmt: skip
    return raw[:at] + filling + raw[at + random.choice([0, length, len(raw)]) :]


def test_whatever_comes_the_next_request_gets_its_own_answer(loopback, full):
    """Requests in turn get an answer with something wrong, and one of their own."""
    draw = random.Random(20261126)
    answers = list(EVERY.values())
    sent: list[bytes] = []

    async def script(writer, _number, request):
        if b"Idempotency-Key: own-" in request:
            writer.write(sized(request.partition(b"\r\n\r\n")[2]))
            return False
        raw = draw.choice(answers)
        for _ in range(draw.randrange(3)):
            raw = mutated(raw, draw)
        sent.append(raw)
        cut = draw.randrange(len(raw) + 1)
        writer.write(raw[:cut])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(raw[cut:])
        return draw.random() < 0.7

    async def main():
        async with loopback.Server(script) as server:
            transport = Transport(loopback.Komodor(server.url()), "secret")
            for number in range(1000 if full else 60):
                transport._request_timeout_s = 0.2
                answer = await transport.send("wrong", b"{}")
                decide(answer, 0, 60)
                if answer.fault is Fault.CONNECT_TIMEOUT:  # the machine was busy for so long
                    assert not answer.sent
                elif answer.status is None:
                    assert answer.fault in (Fault.LOST, Fault.GARBAGE, Fault.TIMEOUT), sent[-1]
                    assert answer.sent
                transport._request_timeout_s = PATIENCE_S
                body = b'{"n":%d}' % number
                own = await transport.send(f"own-{number}", body)
                if own.fault is Fault.LOST:  # the server closed behind a good answer
                    own = await transport.send(f"own-{number}", body)
                assert (own.status, own.body_start) == (201, body), sent[-1]
            await transport.close()

    asyncio.run(main())
    assert sent


@pytest.mark.parametrize("status", [100, 103, 199, 102])
def test_an_interim_status_is_never_final(loopback, status):
    answer = answer_of(loopback, says(b"HTTP/1.1 %d Go on\r\n\r\n" % status))
    assert (answer.status, answer.fault) == (None, Fault.LOST)


def test_the_readers_limits_hold_for_what_is_kept(loopback):
    reader = exchange.AnswerReader()
    reader.feed(CREATED + b"\r\n")
    while reader.feed(b"<" * 5000) is not exchange.Reading.BROKEN:
        pass
    assert len(reader.answer(False).body_start) == 2048
