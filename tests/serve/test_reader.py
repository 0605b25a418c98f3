"""Bytes in, requests out: split anywhere it is the same, and nothing is read two ways."""

from __future__ import annotations

import pytest

from outboxd.serve.reader import HEAD_BYTES_MAX, RequestReader

GOOD = {
    "plain": b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "chunked": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n2;ext=1\r\nbc\r\n0\r\nTrailer: t\r\n\r\n",
    "pipelined": b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
    b"POST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
    b"GET /3 HTTP/1.0\r\n\r\n",
    "upgrade": b"POST /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAM\r\nContent-Length: 5\r\n\r\nhello",
    "absolute": b"GET http://localhost/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "old": b"POST /o HTTP/1.0\r\nContent-Length: 1\r\n\r\nz",
}
POST = b"POST / HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BAD = {
    "both lengths": POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "both lengths, turned": POST + CHUNKED + b"Content-Length: 3\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths in one": b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
    "signed length": b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
    "hexadecimal length": b"POST / HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc",
    "space before the colon": b"POST / HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc",
    "another coding": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + CHUNKED + CHUNKED + b"\r\n",
    "coding hidden": b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "nul in a header": b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunk too long": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "no http": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\n\r\n",
}


class Log(list):
    """What a reader told, pieces of bodies joined."""

    def request_began(self, head):
        self.append([head, b""])

    def body_came(self, data):
        self[-1][1] += data

    def request_ended(self):
        self[-1].append("end")


def read(*pieces: bytes) -> tuple[Log, int | None]:
    log = Log()
    reader = RequestReader(log)
    for piece in pieces:
        reader.feed(piece)
    return log, None if reader.refusal is None else reader.refusal.status


def splits(data: bytes, full: bool):
    """In two at every byte; by the full figures in three at every two."""
    for first in range(len(data) + 1):
        yield data[:first], data[first:]
        if full:
            for second in range(first, len(data) + 1):
                yield data[:first], data[first:second], data[second:]


@pytest.mark.parametrize("name", GOOD)
def test_a_request_is_the_same_however_its_bytes_come(name, full):
    whole = read(GOOD[name])
    assert whole[1] is None
    assert all(entry[-1] == "end" for entry in whole[0])
    for pieces in splits(GOOD[name], full):
        assert read(*pieces) == whole, pieces
    assert read(*(bytes([byte]) for byte in GOOD[name])) == whole


@pytest.mark.parametrize("name", BAD)
def test_what_could_be_read_two_ways_is_refused_however_its_bytes_come(name, full):
    log, status = read(BAD[name])
    assert status in (400, 501, 505)
    assert not any(entry[-1] == "end" for entry in log)
    for pieces in splits(BAD[name], full):
        log, split_status = read(*pieces)
        assert split_status == status, pieces
        assert not any(entry[-1] == "end" for entry in log), pieces


def test_nothing_behind_a_refusal_is_read():
    log, _ = read(BAD["both lengths"], GOOD["plain"])
    assert not any(entry[-1] == "end" for entry in log)


def test_the_bodies_and_the_order_are_those_that_were_sent():
    log, _ = read(GOOD["pipelined"])
    assert [(entry[0].target, entry[1]) for entry in log] == [
        ("/1", b""),
        ("/2", b"hi"),
        ("/3", b""),
    ]
    assert [entry[0].keep_alive for entry in log] == [True, True, False]
    assert read(GOOD["chunked"])[0][0][1] == b"abc"
    assert read(GOOD["upgrade"])[0][0][1] == b"hello"


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"e" * 100_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: " + b"t" * 100_000,
    ],
)
def test_a_head_without_an_end_is_refused_before_it_is_large(endless):
    log = Log()
    reader = RequestReader(log)
    fed = 0
    while reader.refusal is None:
        reader.feed(endless[fed : fed + 2048])
        fed += 2048
        assert fed <= HEAD_BYTES_MAX + 4096
    assert reader.refusal.status == 431


def test_as_many_headers_as_are_allowed_are_taken_and_one_more_is_not():
    head = b"GET / HTTP/1.1\r\n%s\r\n"
    many = b"".join(b"H%d: v\r\n" % number for number in range(100))
    assert read(head % many)[1] is None
    assert read(head % (many + b"One-More: v\r\n"))[1] == 431
