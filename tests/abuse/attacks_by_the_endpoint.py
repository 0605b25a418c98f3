"""Attacks by answers without an end. Standard library alone; run as processes.

`target` is the port of the agent's endpoint: each attack is a server there, and
gives every connection the same from the first byte of its request on.
"""

from __future__ import annotations

import gzip
import itertools
import selectors
import socket
import time
from collections.abc import Iterator

PIECE_BYTES = 65536


def _serve(target: str, seconds: float, answer: bytes, endless: bytes) -> None:
    """Answer with `answer`, and then with `endless` over and over, as fast as it is read."""
    ends_s = time.monotonic() + seconds
    piece = endless * (PIECE_BYTES // len(endless) + 1)
    listening = socket.create_server(("127.0.0.1", int(target)), backlog=128)
    listening.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    left: dict[socket.socket, Iterator[bytes]] = {}
    unsent: dict[socket.socket, bytes] = {}
    asked = 0
    while time.monotonic() < ends_s:
        for key, events in selector.select(0.05):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is listening:
                opened, _ = listening.accept()
                opened.setblocking(False)
                selector.register(opened, selectors.EVENT_READ)
                continue
            try:
                if events & selectors.EVENT_READ:
                    if not one.recv(1 << 20):
                        raise ConnectionError
                    if one not in left:
                        asked += 1
                        left[one] = itertools.chain([answer], itertools.repeat(piece))
                        unsent[one] = b""
                        both = selectors.EVENT_READ | selectors.EVENT_WRITE
                        selector.modify(one, both)
                elif events & selectors.EVENT_WRITE:
                    data = unsent[one] or next(left[one])
                    unsent[one] = data[one.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                selector.unregister(one)
                left.pop(one, None)
                one.close()
    assert asked, "nobody asked"
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]


def interim_answers(target: str, seconds: float) -> None:
    """`103 Early Hints`, for ever."""
    _serve(target, seconds, b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


def one_header(target: str, seconds: float) -> None:
    """A header without an end."""
    _serve(target, seconds, b"HTTP/1.1 200 OK\r\nX-Endless: ", b"x")


def many_headers(target: str, seconds: float) -> None:
    """Headers without an end, small ones."""
    _serve(target, seconds, b"HTTP/1.1 500 No\r\n", b"a: b\r\n")


def no_http(target: str, seconds: float) -> None:
    """Neither a status line nor anything else."""
    _serve(target, seconds, b"", b"\x00\xff\n")


def a_body(target: str, seconds: float) -> None:
    """An error whose text has no end."""
    _serve(target, seconds, b"HTTP/1.1 500 No\r\n\r\n", b"text ")


def tiny_chunks(target: str, seconds: float) -> None:
    """A body in chunks of a byte."""
    head = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n"
    _serve(target, seconds, head, b"1;extension=x\r\n \r\n")


def trailers(target: str, seconds: float) -> None:
    """What may follow a body, without an end."""
    head = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    _serve(target, seconds, head, b"a: b\r\n")


def more_answers(target: str, seconds: float) -> None:
    """One answer that was asked for, and any number that were not."""
    _serve(target, seconds, b"", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")


def a_bomb(target: str, seconds: float) -> None:
    """A small body that unpacks to gigabytes."""
    bomb = gzip.compress(gzip.compress(b"\0" * (64 << 20)))
    head = b"HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    _serve(target, seconds, head + bomb, b"\0")
