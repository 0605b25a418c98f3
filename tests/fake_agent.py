"""An agent's socket that answers as a test says, and remembers what it was asked.

Used by the tests of the producer's side, where the real agent could not be
made to refuse, to hang or to lose an answer on command.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

RECEIPT = {"id": "0192f0c1-0000-7000-8000-000000000001", "status": "accepted", "warnings": []}


class FakeAgent:
    """Answers every request alike: a status and a JSON body, or an odd behaviour:
    "hang" (never answers), "close" (ends the connection after reading), raw bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = 201
        self.answer: Any = RECEIPT
        self.behaviour: str | bytes = "answer"
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self._heard = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.listen(16)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    def refuse(self, status: int, error: str, field: str | None = None) -> None:
        self.status = status
        self.answer = {"error": error, "field": field, "hint": None}

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The events, once it was asked so often: who asks may give up before it hears."""
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.bodies) >= count, 90.0)
            return self.events

    def close(self) -> None:
        self._ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            received = b""
            while b"\r\n\r\n" not in received:
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            head, _, body = received.partition(b"\r\n\r\n")
            lengths = [
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ]
            while len(body) < lengths[0]:
                data = connection.recv(65536)
                if not data:
                    return
                body += data
            with self._heard:
                self.heads.append(head)
                self.bodies.append(body)
                self._heard.notify_all()
            if self.behaviour == "hang":
                self._ended.wait()
            elif self.behaviour != "close":
                # Who has read enough, or waits no more, may have gone.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(self._whole_answer())

    def _whole_answer(self) -> bytes:
        if isinstance(self.behaviour, bytes):
            return self.behaviour
        answer = json.dumps(self.answer).encode()
        head = b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n"
        return head % (self.status, len(answer)) + answer
