"""The queue by way of the running agent: HTTP on its Unix socket.

Asks, and turns answers that are refusals into errors that say what to do. It
never opens the outbox's file: while an agent runs, that is the agent's alone.
"""

from __future__ import annotations

import getpass
import grp
import http.client
import math
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from outboxd.cli import answers
from outboxd.cli.rows import ListedEntry, ListedPage, Params
from outboxd.errors import (
    ConfigError,
    EventError,
    NotPermitted,
    OutboxdError,
    Unavailable,
    UnknownId,
    UsageError,
)
from outboxd.findings import Finding
from outboxd.outbox.model import EntryChange
from outboxd.status import Through

TIMEOUT_S = 15.0
# For a change of very many entries: 200,000 take some 20 s.
BULK_TIMEOUT_S = 900.0
# The agent itself asks over the network, as long as its request_timeout allows.
OVER_NETWORK_TIMEOUT_S = 120.0
COPY_CHUNK_BYTES = 256 * 1024

_T = TypeVar("_T")


class AgentUnreachable(Unavailable):
    """Nothing listens on the socket."""


class AgentQueue:
    """The outbox as the agent shows it."""

    running = True

    def __init__(self, socket_path: str, longest_s: float = math.inf) -> None:
        """Connects at once, and from then on waits for no answer longer than `longest_s`.

        Raises AgentUnreachable, NotPermitted, or Unavailable for anything else."""
        self.socket_path = socket_path
        self._longest_s = longest_s
        self._connection = UnixConnection(socket_path, min(TIMEOUT_S, longest_s))
        self._connect()

    def close(self) -> None:
        self._connection.close()

    def status(self) -> dict[str, Any]:
        """The shape of `GET /v1/status`."""
        answer = self._ask("GET", "/v1/status")
        return answers.read_object(answer, answers.Status, self.socket_path)

    def activity(self) -> dict[str, Any] | None:
        """The last hour in samples; None where the agent does not tell."""
        try:
            answer = self._ask("GET", "/v1/activity")
        except UnknownId:
            return None
        return answers.read_object(answer, answers.Activity, self.socket_path)

    def check(self) -> list[Finding]:
        """What the agent finds of its surroundings; raises UnknownId where it cannot say."""
        self._connection.set_timeout(min(OVER_NETWORK_TIMEOUT_S, self._longest_s))
        found = self._read(self._ask("GET", "/v1/check"), answers.Findings).findings
        return [Finding(s.level, s.name, s.told, s.hint, s.exit_code) for s in found]

    def reload(self) -> list[str]:
        """Take the configuration over as it is now; the settings that want a restart.

        Raises:
            ConfigError: it was refused, and the one before stays in force.
        """
        try:
            return self._read(self._ask("POST", "/v1/reload"), answers.Reloaded).needs_restart
        except EventError as error:
            raise ConfigError(error.message, error.hint) from None

    def page(self, params: Params, cursor: str | None, limit: int) -> ListedPage:
        """Entries that match, newest first, each as the agent wrote it."""
        query = [*params, ("limit", str(limit)), *([("cursor", cursor)] if cursor else [])]
        answer = self._ask("GET", f"/v1/events?{urlencode(query)}")
        listing = self._read(answer, answers.Listing)
        return ListedPage([self._entry(each) for each in listing.events], listing.next)

    def get(self, id: str) -> msgspec.Raw:
        """One entry with its attempts; raises UnknownId."""
        return self._entry(self._ask("GET", f"/v1/events/{quote(id, safe='')}"))

    def through(self, id: str) -> Through:
        """What became of a delivered entry behind a gateway; raises UnknownId."""
        self._connection.set_timeout(min(OVER_NETWORK_TIMEOUT_S, self._longest_s))
        answer = self._ask("GET", f"/v1/events/{quote(id, safe='')}/through")
        found = self._read(answer, answers.Through)
        return Through(found.state, found.reason)

    def change(self, change: EntryChange, id: str) -> None:
        """Retry or drop one entry; raises UnknownId, EventError."""
        self._ask("POST", f"/v1/events/{quote(id, safe='')}/{change}", {})

    def change_dead(self, change: EntryChange, params: Params) -> int:
        """Retry or drop all dead letters that match, in one request; how many."""
        query = urlencode([pair for pair in params if pair != ("state", "dead")])
        self._connection.set_timeout(BULK_TIMEOUT_S)
        body = self._ask("POST", f"/v1/dead-letters/{change}?{query}", {})
        self._connection.set_timeout(TIMEOUT_S)
        return self._read(body, answers.Changed).changed

    def copy(self) -> Iterator[bytes]:
        """The outbox's file, whole, in parts."""
        try:
            self._connection.bounded.expect_parts(self._connection.timeout_s)
            self._connection.request("GET", "/v1/backup")
            answer = self._connection.getresponse()
            if answer.status >= 300:
                raise _refusal(answer.status, answer.read(COPY_CHUNK_BYTES))
            left = int(answer.headers["Content-Length"] or "no length")
            while left:
                chunk = answer.read(min(left, COPY_CHUNK_BYTES))
                if not chunk:
                    raise Unavailable(
                        f"the agent at {self.socket_path} ended the copy before its end",
                        "its log says why; it may be restarting: try again",
                    )
                left -= len(chunk)
                yield chunk
        except ValueError as error:
            raise answers.no_agent(self.socket_path, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the agent at {self.socket_path} ended the connection ({error})",
                "it may be restarting: try again",
            ) from None

    def hold(self, id: str | None, reason: str | None) -> None:
        wanted = {"id": id} if id else {}
        self._ask("POST", "/v1/hold", {**wanted, "reason": reason} if reason else wanted)

    def release(self, id: str | None) -> dict[str, Any]:
        answer = self._ask("POST", "/v1/release", {"id": id} if id else {})
        shape = dict[str, Any] if id else answers.Released
        return answers.read_object(answer, shape, self.socket_path)

    def page_link(self) -> str:
        """An address of the page that lets one browser act."""
        return self._read(self._ask("POST", "/v1/page-link", {}), answers.PageLink).url

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            raise AgentUnreachable(
                f"no agent answers at {self.socket_path}",
                "start it with `outboxd run` or `systemctl start outboxd`,"
                " or name its configuration with -c",
            ) from None
        except PermissionError:
            raise NotPermitted(
                f"no permission to talk to the agent at {self.socket_path}",
                _how_to_join(self.socket_path),
            ) from None
        except OSError as error:
            raise Unavailable(
                f"the agent at {self.socket_path}: {error.strerror or error}"
            ) from None

    def _read(self, body: bytes, shape: type[_T]) -> _T:
        return answers.read(body, shape, self.socket_path)

    def _entry(self, body: bytes | msgspec.Raw) -> msgspec.Raw:
        """An entry as it came, once it is known to be one."""
        self._read(bytes(body), ListedEntry)
        return msgspec.Raw(body)

    def _ask(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> bytes:
        body = None if content is None else msgspec.json.encode(content)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.bounded.expect_answer(self._connection.timeout_s)
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            answer_body = answer.read()
        except TimeoutError:
            raise Unavailable(
                f"the agent at {self.socket_path} did not answer in"
                f" {self._connection.timeout_s:.3g} seconds",
                "its log says what holds it up",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unavailable(
                f"the agent at {self.socket_path} ended the connection ({error})",
                "it may be restarting: try again",
            ) from None
        if answer.status >= 300:
            raise _refusal(answer.status, answer_body)
        return answer_body


def _how_to_join(path: str) -> str:
    """What a user does who may not use the socket."""
    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name
        return f"as root: usermod -aG {group} {getpass.getuser()}, then log in again; or use sudo"
    except (OSError, KeyError):
        return "become a member of the socket's group, or use sudo"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self.timeout_s = timeout_s

    def set_timeout(self, timeout_s: float) -> None:
        """For what is asked from now on."""
        self.timeout_s = timeout_s
        if self.sock is not None:
            self.sock.settimeout(timeout_s)

    @property
    def bounded(self) -> answers.BoundedSocket:
        """The socket, connected anew where the other side has ended the one before."""
        if self.sock is None:
            self.connect()
        assert isinstance(self.sock, answers.BoundedSocket), "`connect` has made it"
        return self.sock

    def connect(self) -> None:
        connection = answers.BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout_s)
        try:
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class _Refusal(msgspec.Struct):
    error: str = ""
    field: str | None = None
    hint: str | None = None


def _refusal(status: int, body: bytes) -> OutboxdError:
    """The error that an answer stands for."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, RecursionError):
        refusal = _Refusal()
    message = refusal.error or f"the agent answered {status}"
    if status in (401, 403):
        return NotPermitted(message, refusal.hint)
    if status == 404:
        return UnknownId(message, refusal.hint)
    if status == 400:
        return UsageError(message, refusal.hint)
    if status in (409, 422):
        return EventError(message, None, refusal.hint)
    return Unavailable(message, refusal.hint)
