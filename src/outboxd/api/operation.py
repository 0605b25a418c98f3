"""The routes by which an operator looks after the running agent: reload and check.

On the Unix socket alone. What they do is the agent's; here it gets its form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from outboxd.api.peer import is_operator
from outboxd.errors import OutboxdError
from outboxd.findings import Finding
from outboxd.serve.answers import Refusal, Response, reply
from outboxd.serve.request import Request
from outboxd.serve.table import Route

MEMBERS_LOOK_S = 10.0  # those who may only hand in share a look for so long

_encode = msgspec.json.Encoder().encode


class OperationRoutes:
    """`POST /v1/reload`, `GET /v1/check`."""

    def __init__(
        self,
        reload: Callable[[], Sequence[str]],
        check: Callable[[float], Awaitable[Sequence[Finding]]],
        authorize: Callable[[Request], str],
    ) -> None:
        """`authorize` says for whom a request acts, or raises Refusal 403."""
        self._require_operator = authorize
        self._reload = reload  # gives the settings that want a restart; raises OutboxdError
        self._check = check  # given how old what it finds may be, in seconds

    def routes(self) -> list[Route]:
        """For the Unix socket alone."""
        return [
            Route("POST", "/v1/reload", self.reload),
            Route("GET", "/v1/check", self.check),
        ]

    async def reload(self, request: Request, _: str) -> Response:
        """Take the configuration and the key over as they are now; 422 where refused."""
        self._require_operator(request)
        try:
            left = self._reload()
        except OutboxdError as error:
            raise Refusal(422, error.message, None, error.hint) from error
        return reply(200, _encode({"needsRestart": list(left)}) + b"\n")

    async def check(self, request: Request, _: str) -> Response:
        """What the agent finds of its surroundings, as its own user. For everyone who
        may use the socket: no key is in it. A look starts a process and asks Komodor, so
        that only an operator's is always a new one."""
        max_age_s = 0.0 if is_operator(request.peer) else MEMBERS_LOOK_S
        found = await self._check(max_age_s)
        return reply(200, _encode({"findings": [each.shape() for each in found]}) + b"\n")
