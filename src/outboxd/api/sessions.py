"""Who may act from the page: a link for one browser, fetched by an operator.

An operator's command asks for a token over the Unix socket, where the kernel
says who it is. The page hands the token in once and gets a cookie, which the
browser keeps from scripts and from other sites, and a key, which the page sends
along and which no other port of this host can see. Both together act, for an
hour. Neither is ever logged; nothing outlives the agent.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import NamedTuple

from outboxd.serve.answers import Refusal
from outboxd.serve.request import Request

COOKIE = "outboxd_page"
KEY_HEADER = "x-outboxd-key"
LASTS_S = 3600
TOKENS_MAX = 16  # not handed in yet, and sessions each; the oldest goes


class Session(NamedTuple):
    """A browser that may act."""

    cookie: str
    key: str
    by: str  # who asked for the link
    until_s: float  # on the monotonic clock


class Sessions:
    """Tokens that were given out, and the browsers that handed one in."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._tokens: dict[str, tuple[str, float]] = {}  # who, until when
        self._sessions: dict[str, Session] = {}  # by cookie

    def issue(self, by: str) -> str:
        """A token for the operator who asked; good once, and for as long as a session."""
        token = secrets.token_urlsafe(32)
        self._tokens[token] = (by, self._monotonic_s() + LASTS_S)
        while len(self._tokens) > TOKENS_MAX:
            del self._tokens[next(iter(self._tokens))]
        return token

    def redeem(self, token: str) -> Session:
        """The token's session. Raises Refusal 403 for one that is none, used or old."""
        by, until_s = self._tokens.pop(token, ("", 0.0))
        if until_s <= self._monotonic_s():
            raise Refusal(
                403,
                "the link is used up or too old",
                "token",
                "`outboxd page` prints a new one, which is good for one browser",
            )
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), by, until_s)
        self._sessions[session.cookie] = session
        while len(self._sessions) > TOKENS_MAX:
            del self._sessions[next(iter(self._sessions))]
        return session

    def find(self, request: Request) -> Session | None:
        """The session whose cookie and key a request carries."""
        session = self._sessions.get(_cookie(request))
        if session is None or session.until_s <= self._monotonic_s():
            return None
        key = request.header(KEY_HEADER) or ""
        is_its_key = hmac.compare_digest(key.encode("utf-8", "replace"), session.key.encode())
        return session if is_its_key else None

    def left_s(self, session: Session) -> int:
        """Seconds that a session is still good for."""
        return max(0, round(session.until_s - self._monotonic_s()))

    def end(self, session: Session) -> None:
        """It may not act any more."""
        self._sessions.pop(session.cookie, None)

    def require_session(self, request: Request) -> str:
        """For whom a browser acts, whose page asks from this very listener. Raises
        Refusal 403 for everyone else, whatever process the request came through."""
        session = self.find(request)
        # The listener's guard refuses a foreign Origin; here there must be one.
        if session is None or request.header("origin") is None:
            raise Refusal(
                403,
                "this page is read only",
                None,
                "`outboxd page` opens it for an operator, with the right to act",
            )
        return f"{session.by}, on the page"


def _cookie(request: Request) -> str:
    for header in request.header_values("cookie"):
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                return value
    return ""
