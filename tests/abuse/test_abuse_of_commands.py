"""Whoever sits on the socket's path and answers anything at all, a command ends soon and says so.

All commands run in one process, with little time and few bytes, against a listener
that is no agent. An answer of another shape is no defect of the command, and none
has an end of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.agent import ENVIRON
from support.waiting import PATIENCE_S

DEEP = b"[" * 100_000 + b"]" * 100_000
ENTRY = {
    "id": "x", "state": "pending", "eventType": "t", "summary": "s", "receivedAt": "soon",
}  # fmt: skip
STATUS = {
    "version": "1", "intake": {"accepting": True}, "disk": {"freeBytes": None},
    "destination": {"endpoint": "e", "state": "ok", "inFlight": 1, "permits": 1},
    "outbox": {"pending": 1, "delivered": 1, "dead": 1, "held": 0, "bytes": 1},
}  # fmt: skip
TERMINAL = "\x1b]0;owned\x07"
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff\xfe<html>",
    **{name: name.encode() for name in ("null", "[]", '"x"', "1", "{}", "NaN")},
    "nested": DEEP,
    "keys of another kind": b'{"version": 1, "destination": [], "outbox": "x", "url": 3}',
    "half a status": json.dumps({**STATUS, "disk": None}).encode(),
    "a time that is none": json.dumps(
        {**STATUS, "outbox": {**STATUS["outbox"], "oldestPendingAt": "soon"}}  # type: ignore[dict-item]
    ).encode(),
    "entries that are none": b'{"events": [1, null, {"id": 1}], "next": 5}',
    "an entry of another kind": json.dumps(
        {"events": [{**ENTRY, "severity": 3}], **ENTRY, "scope": [1], "changed": "all"}
    ).encode(),
    "numbers without an end": b'{"changed": ' + b"9" * 5000 + b', "state": 1e999}',
    "a terminal's": json.dumps({"error": TERMINAL, "url": TERMINAL, "version": TERMINAL}).encode(),
}


def whole(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def endless_body() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b" " * 65_536 + b"\r\n"


def endless_head() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X: " + b"y" * 60_000 + b"\r\n"


def endless_interim() -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 1000


def dripping() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        time.sleep(0.05)
        yield b" "


ENDLESS = (endless_body, endless_head, endless_interim, dripping)

# Under this the commands have half a second and a megabyte.
READER = """
import contextlib, io, json, resource, sys
from outboxd.cli.main import main
import outboxd.cli.agent as agent, outboxd.cli.answers as answers
agent.TIMEOUT_S = agent.BULK_TIMEOUT_S = agent.OVER_NETWORK_TIMEOUT_S = 0.5
answers.ANSWER_BYTES_MAX = 1 << 20
{patch}
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(json.loads(line))
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, out.getvalue()[:2000]]), flush=True)
"""
NOT_CHECKED = """
import msgspec
answers.read = lambda body, shape, path: msgspec.json.decode(body)
"""
NO_END = """
answers.BoundedSocket.recv_into = agent.socket.socket.recv_into
"""


class Impostor:
    """Answers each connection once, with what `answer` gives then."""

    def __init__(self, path: Path) -> None:
        self.answer: Callable[[], Iterator[bytes]] = lambda: iter(())
        self.was_heard_out = False  # whether an answer came to its last piece
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(50)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE_S)
                if not connection.recv(65_536):
                    continue
                pieces = self.answer()
                next_one = next(pieces, b"")
                for piece in pieces:
                    connection.sendall(next_one)
                    next_one = piece
                self.was_heard_out = True  # before the command can know
                connection.sendall(next_one)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_S)


COMMANDS = (
    *(["status"], ["status", "--json"], ["status", "--check"], ["events"], ["events", "--json"]),
    *(["events", "show", "x"], ["wait", "x", "--timeout", "0s"], ["dead-letters", "list"]),
    *(["dead-letters", "retry", "--all"], ["hold"], ["release"], ["reload"], ["page"]),
)


def misled(directory: Path, answers: dict[str, Callable[[], Iterator[bytes]]], patch: str = ""):
    """Each command, and how it ended, that took an impostor's answer amiss."""
    impostor = Impostor(directory / "s")
    config = directory / "config.toml"
    config.write_text(
        f'[intake]\nsocket = "{directory}/s"\nspool = "{directory}/spool"\n'
        f'[outbox]\npath = "{directory}/outbox.db"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", READER.replace("{patch}", patch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    found = []
    try:
        commands = [*COMMANDS, ["backup", str(directory / "copy")]]
        for name, answer in answers.items():
            impostor.answer = answer
            is_slow = answer in (*ENDLESS, short_drip)
            for words in (["status"], ["events"]) if is_slow else commands:
                impostor.was_heard_out = False
                process.stdin.write(json.dumps([*words, "-c", str(config)]) + "\n")
                process.stdin.flush()
                code, told = json.loads(process.stdout.readline())
                if code in (1, 70) and words[:2] != ["status", "--check"]:
                    found.append(f"{name}, {words}: {code}, {told[:200]}")
                elif "internal error" in told or "\x1b" in told:
                    found.append(f"{name}, {words}: {told[:200]}")
                elif is_slow and impostor.was_heard_out:
                    found.append(f"{name}, {words}: heard to its end")
    finally:
        process.kill()
        process.communicate()
        impostor.close()
    return found


def shapes() -> dict[str, Callable[[], Iterator[bytes]]]:
    found = {name: lambda body=body: iter([whole(body)]) for name, body in BODIES.items()}
    for name in ("nothing", "1", "a terminal's", "nested"):
        for status in ("400 Bad", "404 No", "503 Busy", "302 Go", "999 What"):
            raw = whole(BODIES[name], status)
            found[f"{name}, {status}"] = lambda raw=raw: iter([raw])
    return {**found, "no HTTP": lambda: iter([b"\x00" * 500 + b"\r\n\r\n"])}


def test_an_answer_of_no_shape_is_told_as_that(full, tmp_path):
    tried = shapes()
    some = tried if full else {name: tried[name] for name in sorted(tried)[::5]}
    assert misled(tmp_path, some) == []


def test_control_without_a_shape_it_is_taken_for_a_defect(only_full, tmp_path):
    assert len(misled(tmp_path, shapes(), NOT_CHECKED)) > 10


def test_an_answer_without_an_end_is_left(tmp_path):
    assert misled(tmp_path, {each.__name__: each for each in ENDLESS}) == []


def test_control_an_answer_without_an_end_is_seen(only_full, tmp_path):
    assert misled(tmp_path, {"dripping": short_drip}, NO_END) != []


def short_drip() -> Iterator[bytes]:
    """For a command that waits for its end, six times longer than it has."""
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"
    for _ in range(60):
        time.sleep(0.05)
        yield b" "
