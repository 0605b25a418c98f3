"""A request, as a handler sees it: method, path, query, headers, body, peer.

Plain data and one body that is still on its way; a handler never sees the
connection. What a caller says about itself is never believed: who it is comes
from the kernel (`peer`) or from a guard (`identity`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from outboxd.serve.body import Body
    from outboxd.serve.peer import Peer
    from outboxd.serve.reader import Head


class Request:
    """One request. `is_gone` turns true when nobody waits for its answer any more."""

    __slots__ = (
        "_query",
        "answer_headers",
        "body",
        "certificate",
        "head",
        "holder",
        "identity",
        "is_gone",
        "peer",
    )

    def __init__(
        self,
        head: Head,
        body: Body,
        peer: Peer | None,
        certificate: Mapping[str, object] | None = None,
        holder: Hashable = None,
    ) -> None:
        self.head = head
        self.body = body
        self.peer = peer  # the process at the other end of a Unix socket; None on TCP
        self.holder = holder  # who answers for what it uses: a uid, or an address on TCP
        self.certificate = certificate  # the TLS client's, verified; as `ssl` gives it
        self.identity: Any = None  # whom a guard found it to be from, in the guard's words
        self.answer_headers: Mapping[str, str] | None = None  # set by a guard, for any answer
        self.is_gone = False
        self._query: list[tuple[str, str]] | None = None

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def path(self) -> str:
        """The path as it was sent, without the query; "*" for the whole server."""
        return _origin_form(self.head.target)[1].partition("?")[0]

    @property
    def host(self) -> str:
        """The host that was asked for: of the target if it names one, else the Host header."""
        return _origin_form(self.head.target)[0] or self.header("host") or ""

    @property
    def query(self) -> list[tuple[str, str]]:
        """The query's names and values in their order; what is not UTF-8 is kept as surrogates."""
        if self._query is None:
            text = _origin_form(self.head.target)[1].partition("?")[2].partition("#")[0]
            self._query = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
        return self._query

    def header(self, name: str) -> str | None:
        """The header of this name (in small letters); the first of several."""
        values = self.head.headers.get(name)
        return None if values is None else values[0]

    def header_values(self, name: str) -> list[str]:
        """All of them."""
        return self.head.headers.get(name, [])


def _origin_form(target: str) -> tuple[str, str]:
    """(host, path with query) of a target; the host is "" where the target has none.

    A proxy's clients send `http://host/path` (RFC 9112, 3.2.2), and then the
    target's host goes before the Host header.
    """
    if target.startswith("/") or "://" not in target:
        return "", target
    host, slash, rest = target.partition("://")[2].partition("/")
    return host.rpartition("@")[2], slash + rest or "/"
