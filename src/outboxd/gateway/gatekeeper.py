"""Who a request over TCP is from: found before its path is looked at.

Whoever has no valid token, certificate or signature gets one constant 401,
whatever it asked for, so that nothing can be learned from it. Only the two
health routes answer to anybody, with their status alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from outboxd.clock import Clock
from outboxd.event.hop import GREETING, UNAUTHENTICATED
from outboxd.gateway.authority import GatewayProducer
from outboxd.gateway.tokens import NAME_CHARACTERS_MAX, ProducerLimits, Token, TokenBook
from outboxd.logger import get_logger
from outboxd.serve.answers import Refusal
from outboxd.serve.request import Request

_log = get_logger()

OPEN_PATHS = ("/healthz", "/readyz")
WEBHOOK_PATH = "/v1/webhooks/"
_BEARER = "bearer "


class GatekeeperMetrics(Protocol):
    """What is counted of those who come."""

    def unauthenticated(self) -> None: ...

    def known_tokens(self, names: Iterable[str]) -> None: ...


class StrangerWatch(Protocol):
    """Who is told of requests whose sender nobody knows."""

    def stranger(self, peer: str, reason: str, now: int) -> None: ...


class Gatekeeper:
    """A guard of the TCP listener: sets `request.identity`, or refuses."""

    def __init__(
        self,
        metrics: GatekeeperMetrics,
        strangers: StrangerWatch,
        clock: Clock,
        describes_itself: Callable[[], str],
        renew: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._strangers = strangers
        self._clock = clock
        self._describes_itself = describes_itself  # the value of the header Outboxd-Gateway
        self._renew = renew  # looks whether the tokens file has changed; True where it has
        self._book = TokenBook([])
        self._producers: dict[tuple[str, ProducerLimits], GatewayProducer] = {}
        # Webhooks whose signature stands in for a token, and the header that it comes in.
        self.signed_webhooks: Mapping[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those that have a token."""
        return self._book.names

    def take_in(self, tokens: Iterable[Token]) -> None:
        """These are good, too."""
        self.take_over(self._book.with_more(tokens))

    def take_over(self, book: TokenBook) -> None:
        """These tokens are good from now on.

        A producer that stays keeps what it has used of its rate.
        """
        self._book = book
        self._metrics.known_tokens(book.names)
        known = set(book.names)
        self._producers = {
            key: producer for key, producer in self._producers.items() if key[0] in known
        }

    def __call__(self, request: Request) -> None:
        """Raises Refusal (401) where nobody is known to have sent it."""
        if request.path in OPEN_PATHS and request.method in ("GET", "HEAD"):
            return
        request.identity = self._by_token(request) or self._by_certificate(request)
        if request.identity is not None:
            request.answer_headers = {GREETING: self._describes_itself()}
        elif not self._may_be_signed(request):
            raise self.refusal(request, _why_unknown(request))
        # A signed webhook has its signature looked at once its body is there.

    def _may_be_signed(self, request: Request) -> bool:
        """Whether there is something in the place of a signature that stands in for a token."""
        if request.method != "POST" or not request.path.startswith(WEBHOOK_PATH):
            return False
        if request.header("content-encoding") is not None:
            return False  # what is refused for that is refused to those who are known
        header = self.signed_webhooks.get(request.path.removeprefix(WEBHOOK_PATH))
        return header is not None and request.header(header) is not None

    def signed_by(self, request: Request, webhook: str) -> GatewayProducer:
        """The producer that a webhook's good signature stands for."""
        request.answer_headers = {GREETING: self._describes_itself()}
        return self._producer(f"webhook-{webhook}", ProducerLimits())

    def refusal(self, request: Request, because: str) -> Refusal:
        """The one answer to all who are not known; why, only the log has."""
        self._metrics.unauthenticated()
        self._strangers.stranger(str(request.holder), because, self._clock.wall_ms())
        _log.warning(
            "gateway.unauthenticated",
            peer=request.holder,
            reason=because,
            hint="`outboxd token list` has the names whose tokens are good",
        )
        return Refusal(
            401,
            UNAUTHENTICATED,
            None,
            "send it as x-api-key or as Authorization: Bearer; "
            "`outboxd token new NAME` on the gateway makes one",
            {"WWW-Authenticate": "Bearer"},
        )

    def _by_token(self, request: Request) -> GatewayProducer | None:
        presented = _presented(request)
        token = self._find(presented)
        if token is None and presented and self._renew():
            # A token that was made a moment ago: whoever were refused now would hold
            # everything, and ask again after minutes.
            token = self._find(presented)
        return None if token is None else self._producer(token.name, token.limits)

    def _find(self, presented: Iterable[str]) -> Token | None:
        return next((token for one in presented if (token := self._book.find(one))), None)

    def _by_certificate(self, request: Request) -> GatewayProducer | None:
        """A certificate that the listener's authority has signed: its name is the producer's.
        Where a token has the same name, that one's limits hold."""
        name = _certificate_name(request.certificate)
        return None if name is None else self._producer(name, self._book.limits(name))

    def _producer(self, name: str, limits: ProducerLimits) -> GatewayProducer:
        producer = self._producers.get((name, limits))
        if producer is None:
            producer = GatewayProducer(name, limits, self._clock.monotonic_s)
            self._producers[name, limits] = producer
        return producer


def _presented(request: Request) -> list[str]:
    """What was sent as a token. Where both headers have something the first good one
    counts: one may be left from before, or be meant for a proxy."""
    key = request.header("x-api-key")
    authorization = request.header("authorization") or ""
    presented = [] if key is None else [key]
    if authorization[: len(_BEARER)].lower() == _BEARER:
        presented.append(authorization[len(_BEARER) :].strip())
    return presented


def _why_unknown(request: Request) -> str:
    if _presented(request):
        return "an unknown or revoked token"
    return "a certificate without an alternative name" if request.certificate else "no token"


def _certificate_name(certificate: Mapping[str, object] | None) -> str | None:
    """The first name among the subject's alternative names (RFC 5280, 4.2.1.6)."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    assert isinstance(names, tuple)
    for kind in ("DNS", "URI", "email", "IP Address"):
        for found, name in names:
            if found == kind and 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable():
                return str(name)
    return None
