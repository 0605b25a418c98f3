"""What tests of the contract stand on: a scripted Komodor, real agents, real commands."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.agent import ENVIRON, AgentProcess, UnixConnection
from support.waiting import PATIENCE_S


class Arrival:
    """One request that reached Komodor's stand-in."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def details(self) -> dict[str, Any]:
        return self.event.get("details", {})


def answer(status: int, body: str = "{}", **headers: str) -> bytes:
    """A whole HTTP answer; `_` in a header's name stands for `-`."""
    lines = [f"HTTP/1.1 {status} Something", f"Content-Length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


CREATED = answer(201)
LOST = b""  # the connection ends without an answer


class Komodor:
    """Keeps all that arrives, and answers what `respond` says."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.respond: Callable[[Arrival], bytes] = lambda arrival: CREATED
        self._changed = threading.Condition()
        komodor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                arrival = Arrival(self.command, self.path, headers, body)
                told = komodor.respond(arrival)
                with komodor._changed:
                    komodor.arrivals.append(arrival)
                    komodor._changed.notify_all()
                if not told:
                    self.close_connection = True
                    return
                self.wfile.write(told)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/mgmt/v1/events"

    def wait_for(self, count: int) -> list[Arrival]:
        """The arrivals, once there are so many."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.arrivals) >= count, PATIENCE_S):
                raise AssertionError(f"{len(self.arrivals)} of {count} arrived")
            return list(self.arrivals)

    def wait_for_summary(self, summary: str) -> list[Arrival]:
        """The arrivals of one event, once there is one."""

        def found() -> list[Arrival]:
            return [each for each in self.arrivals if each.event["summary"] == summary]

        with self._changed:
            if not self._changed.wait_for(found, PATIENCE_S):
                raise AssertionError(f"{summary!r} did not arrive")
            return found()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_S)


class Agent(AgentProcess):
    """An agent with what the contract's tests ask of it."""

    def post(self, event: dict[str, Any] | bytes) -> tuple[int, Any]:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.request("POST", "/mgmt/v1/events", body)

    def accept(self, summary: str = "s", **fields: Any) -> str:
        """The id of an event that was taken."""
        status, receipt = self.post(
            {"eventType": "test", "summary": summary, "scope": {"clusters": ["c"]}, **fields}
        )
        assert status == 201, receipt
        return receipt["id"]

    def entry(self, id: str) -> dict[str, Any]:
        status, entry = self.request("GET", f"/v1/events/{id}")
        assert status == 200, entry
        return entry  # type: ignore[return-value]

    def await_entry(self, id: str, **wanted: object) -> dict[str, Any]:
        """The entry, once it has these values."""
        return self.until(
            lambda: e if _has(e := self.entry(id), wanted) else None, lambda: self.entry(id)
        )

    def await_state(self, state: str) -> dict[str, Any]:
        """The status, once the destination is in this state."""
        return self.until(
            lambda: s if (s := self.status())["destination"]["state"] == state else None,
            self.status,
        )

    def connection(self) -> UnixConnection:
        return UnixConnection(str(self.socket))

    def metrics(self) -> str:
        return self.request("GET", "/metrics")[1].decode()  # type: ignore[attr-defined]

    def await_log(self, text: str) -> str:
        return self.until(lambda: t if text in (t := self.log_text()) else None, self.log_text)

    def until(self, look: Callable[[], Any], shown: Callable[[], Any]) -> Any:
        ends_at_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at_s:
            if (found := look()) is not None:
                return found
            time.sleep(0.01)
        raise AssertionError(f"it did not come about: {shown()}")


def _has(entry: dict[str, Any], wanted: dict[str, object]) -> bool:
    return all(entry[name] == value for name, value in wanted.items())


def outboxd(
    *words: str | bytes,
    stdin: bytes = b"",
    environ: dict[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
    prefix: tuple[str, ...] = (),
    **more: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a person does."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "outboxd", *words],
        input=stdin,
        capture_output=True,
        env={**ENVIRON, **(environ or {})},
        timeout=timeout_s,
        **more,
    )
