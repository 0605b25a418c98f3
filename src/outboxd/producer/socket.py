"""One HTTP request over the agent's Unix socket, with an end to every wait.

For `emit` alone, so it knows just what that needs: a POST, an answer with a
length, one deadline. It uses the C core of `socket`, because importing the
module around it costs a cron job as much as starting the interpreter.
"""

# ruff: noqa: SIM105 (contextlib brings half a dozen modules that a cron job would wait for)

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_RDWR, SO_SNDTIMEO, SOCK_STREAM, SOL_SOCKET, socket
from struct import pack
from time import monotonic

from outboxd.errors import Unavailable

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 1 << 20
HEAD_BYTES_MAX = 64 * 1024
SUN_PATH_MAX = 107  # what struct sockaddr_un holds, without the final NUL


class NoAgent(Unavailable):
    """Nothing took the request: it was surely not seen."""


class NoAnswer(Unavailable):
    """The request went out and no whole answer came: it may have been taken."""


def post(
    socket_path: str,
    target: str,
    body: bytes,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> tuple[int, bytes]:
    """The answer's status and body; raises NoAgent or NoAnswer."""
    head = (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection = _connect(socket_path, connect_timeout_s)
    deadline_s = monotonic() + answer_timeout_s
    try:
        _send(connection, head.encode("ascii") + body, deadline_s)
        return _receive(connection, deadline_s)
    except TimeoutError:
        raise NoAnswer(f"the agent did not answer in {answer_timeout_s:g} seconds") from None
    except OSError as error:
        raise NoAnswer(f"the agent ended the connection: {_reason(error)}") from None
    finally:
        connection.close()


def _connect(socket_path: str, timeout_s: float) -> socket:
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        # A connect in non-blocking mode fails at once where the agent's queue of
        # connections is full; this one waits its turn, up to the timeout.
        connection.setsockopt(SOL_SOCKET, SO_SNDTIMEO, pack("ll", *_timeval(timeout_s)))
        with _ShortPath(socket_path) as short_path:
            connection.connect(short_path)
    except BlockingIOError:
        connection.close()
        raise NoAgent(f"the agent took no connection in {timeout_s:g} seconds") from None
    except (OSError, ValueError) as error:
        connection.close()
        raise NoAgent(f"no agent answers at {socket_path}: {_reason(error)}") from None
    return connection


def _timeval(seconds: float) -> tuple[int, int]:
    whole_s = int(seconds)
    return whole_s, int((seconds - whole_s) * 1_000_000)


class _ShortPath:
    """The socket's path, also where it is longer than a socket address can be."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= SUN_PATH_MAX:
            return self._path
        directory, name = os.path.split(self._path)
        self._directory = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{name}"

    def __exit__(self, *_: object) -> None:
        if self._directory is not None:
            os.close(self._directory)


def _send(connection: socket, data: bytes, deadline_s: float) -> None:
    connection.settimeout(_left_s(deadline_s))
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        # An agent that refuses early (too large, say) answers and closes without
        # reading on: its answer is still there to be read.
        pass


def _receive(connection: socket, deadline_s: float) -> tuple[int, bytes]:
    received = b""
    head_end = -1
    while True:
        while (head_end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > HEAD_BYTES_MAX:
                raise NoAnswer("the agent's answer is not HTTP")
            received += _more(connection, deadline_s)
        status, length = _read_head(received[:head_end])
        received = received[head_end + 4 :]
        if status >= 200:  # below are interim answers, with another behind them
            break
    if length is None or length > ANSWER_BYTES_MAX:
        raise NoAnswer("the agent's answer has no length, or is too long")
    while len(received) < length:
        received += _more(connection, deadline_s)
    _close_in_order(connection)
    return status, received[:length]


def _read_head(head: bytes) -> tuple[int, int | None]:
    first, *fields = head.split(b"\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise NoAnswer("the agent's answer is not HTTP")
    for field in fields:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(words[1][:3]), int(value.strip()[:9])
    return int(words[1][:3]), None


def _more(connection: socket, deadline_s: float) -> bytes:
    connection.settimeout(_left_s(deadline_s))
    data: bytes = connection.recv(65536)
    if not data:
        raise NoAnswer("the agent ended the connection before its answer")
    return data


def _close_in_order(connection: socket) -> None:
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError:
        pass  # it was closed from the other side already


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
