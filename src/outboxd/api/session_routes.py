"""The routes by which a page gets the right to act: ask for a link, hand it in, look."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from outboxd.api.sessions import COOKIE, Session, Sessions
from outboxd.logger import get_logger
from outboxd.serve.answers import Refusal, Response, reply
from outboxd.serve.request import Request, read_body
from outboxd.serve.table import Route

BODY_BYTES_MAX = 4096

_log = get_logger()
_encode = msgspec.json.Encoder().encode


class _Redemption(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/session`."""

    token: str


class SessionRoutes:
    """`POST /v1/page-link` on the Unix socket; `/v1/session` on the page's listener."""

    def __init__(
        self,
        sessions: Sessions,
        page_address: Callable[[], str | None],
        authorize: Callable[[Request], str],
    ) -> None:
        """`authorize` says for whom a link is, or raises Refusal 403."""
        self._sessions = sessions
        self._require_operator = authorize
        self._page_address = page_address  # None where no page is served

    def socket_routes(self) -> list[Route]:
        """For the Unix socket alone."""
        return [Route("POST", "/v1/page-link", self.give_link)]

    def page_routes(self) -> list[Route]:
        """For the page's listener."""
        return [
            Route("GET", "/v1/session", self.show),
            Route("POST", "/v1/session", self.redeem),
            Route("POST", "/v1/session/end", self.end),
        ]

    async def give_link(self, request: Request, _: str) -> Response:
        """A link that opens the page with the right to act."""
        by = self._require_operator(request)
        address = self._page_address()
        if address is None:
            hint = 'set [http] listen, such as "127.0.0.1:8098", and restart the agent'
            raise Refusal(409, "this agent serves no page", "listen", hint)
        token = self._sessions.issue(by)
        _log.warning("page.link_given", by=by)
        # Behind the #, so that it is in no request line and in no log.
        return reply(200, _encode({"url": f"{address}/#act={token}"}) + b"\n")

    async def redeem(self, request: Request, _: str) -> Response:
        """Hand in a link's token: the cookie, and in the body the key."""
        if request.header("origin") is None:
            raise Refusal(403, "no page asked for this", None, "open the link in a browser")
        try:
            body = await read_body(request, BODY_BYTES_MAX)
            token = msgspec.json.decode(body, type=_Redemption).token
        except msgspec.DecodeError:
            raise Refusal(400, "that is no token", "token", 'it is {"token": "…"}') from None
        session = self._sessions.redeem(token)
        _log.warning("page.session_begun", by=session.by)
        lasts_s = self._sessions.left_s(session)
        cookie = f"{COOKIE}={session.cookie}; Max-Age={lasts_s}; Path=/; HttpOnly; SameSite=Strict"
        headers = {"Set-Cookie": cookie, "Cache-Control": "no-store"}
        return reply(200, _encode({**self._told(session), "key": session.key}) + b"\n", headers)

    async def show(self, request: Request, _: str) -> Response:
        """Whether this browser may act, until when and for whom."""
        session = self._sessions.find(request)
        told = {"mayAct": False} if session is None else self._told(session)
        return reply(200, _encode(told) + b"\n", {"Cache-Control": "no-store"})

    async def end(self, request: Request, _: str) -> Response:
        """Give the right back."""
        self._sessions.require_session(request)
        session = self._sessions.find(request)
        if session is not None:
            self._sessions.end(session)
        headers = {"Set-Cookie": f"{COOKIE}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict"}
        return reply(200, b'{"mayAct": false}\n', headers)

    def _told(self, session: Session) -> dict[str, object]:
        return {"mayAct": True, "by": session.by, "leftSeconds": self._sessions.left_s(session)}
