"""The routes by which other programs' webhooks come in, and the whole of the TCP listener's.

What a TCP peer can reach is exactly `tcp_routes`: reading, control and the page
are not in it. Every event passes the same intake as everything else. All events
of a webhook's request are committed, or none is, so that its sender may send it
again; of a group of alerts, which are known again, all that the token allows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from outboxd.errors import EventError, Refused
from outboxd.gateway.alertmanager import AlertEvent, AlertGroup, read_group
from outboxd.gateway.gatekeeper import WEBHOOK_PATH, Gatekeeper
from outboxd.gateway.signature import is_signed
from outboxd.gateway.templated import USER_AGENT, read_templated
from outboxd.gateway.webhooks import Webhook, read_events
from outboxd.intake.http import (
    BATCH_PATH,
    EVENTS_PATH,
    IntakeRoutes,
    check_rate,
    producer_of,
    read_event,
    response_of,
)
from outboxd.intake.intake import PLAIN_BYTES, Intake, Prepared, receipt_json
from outboxd.intake.producer import NotAllowed, Producer
from outboxd.logger import get_logger
from outboxd.outbox.model import Source
from outboxd.serve.answers import Refusal, Response, reply
from outboxd.serve.request import Request, read_body
from outboxd.serve.table import Route

# Alertmanager sends a group as one request; GitHub's limit is 25 MB, and nobody's real one near it.
WEBHOOK_BYTES_MAX = 8 * 1024 * 1024
# The values of a payload, roughly: what parsing it costs, in time for which nothing else
# runs (Python parses JSON without a pause) and in memory. An alert has about 25.
VALUES_MAX = 250_000
_T = TypeVar("_T")
_log = get_logger()
_HINT = "send fewer at once (max_alerts in Alertmanager)"


class WebhookMetrics(Protocol):
    """What these routes count beside the intake."""

    def alerts_truncated(self, count: int) -> None: ...


class WebhookRoutes:
    """`POST /v1/alertmanager` and `POST /v1/webhooks/NAME`."""

    def __init__(
        self,
        intake: Intake,
        metrics: WebhookMetrics,
        webhooks: Mapping[str, Webhook],
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        self._intake = intake
        self._metrics = metrics
        self.webhooks = webhooks
        self._gatekeeper = gatekeeper  # None: on the Unix socket

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/alertmanager", self.take_alerts),
            Route("POST", WEBHOOK_PATH + "{name}", self.take_webhook),
        ]

    async def take_alerts(self, request: Request, _: str) -> Response:
        """Alertmanager's webhook: an event for each alert that is new."""
        clusters = [value for name, value in request.query if name == "cluster" and value]
        producer, intake = producer_of(request), self._intake
        body = await read_event(request, intake, producer, WEBHOOK_BYTES_MAX, _HINT)

        def read() -> tuple[list[Prepared], list[NotAllowed], int]:
            group = read_group(
                _json(body),
                clusters[-1] if clusters else None,
                intake.event_type_max,
                intake.event_bytes_max,
            )
            prepared, refused = self._prepare_group(group, producer)
            return prepared, refused, group.truncated

        prepared, refused, truncated = await self._read(body, producer, read)
        if truncated:
            self._metrics.alerts_truncated(truncated)
            _log.warning(
                "gateway.alerts_truncated",
                producer=producer.name,
                count=truncated,
                hint="Alertmanager left them out: raise max_alerts of its webhook, or set 0",
            )
        # Alertmanager tries again on a 5xx, and on nothing else.
        answer = await self._keep(prepared, producer, truncated, over_rate=503)
        if not refused or answer.status != 200:
            return answer
        return response_of(intake.refuse(_of_group(refused, prepared), producer, len(refused)))

    async def take_templated(self, request: Request, _: str) -> Response:
        """An event of Alertmanager's own template: Komodor's call, once for each alert."""
        producer, intake = producer_of(request), self._intake
        check_rate(intake, producer, 1, 503)
        body = await read_event(request, intake, producer)

        def read() -> Prepared:
            return self._prepare_alert(read_templated(body, intake.event_type_max), producer)

        try:
            beside = len(body) > PLAIN_BYTES
            item = await intake.in_turn(producer, read) if beside else read()
            (receipt,) = await intake.keep([item.incoming])
        except (EventError, Refused) as error:
            return response_of(intake.refuse(error, producer))
        status = 201 if receipt.status == "accepted" else 200
        return reply(status, receipt_json(receipt, item.warnings))

    async def take_webhook(self, request: Request, name: str) -> Response:
        """Any other sender's: events by the mapping of its name."""
        body = await self._body_of_webhook(request)
        webhook = self.webhooks.get(name)
        producer = self._sender(request, name, webhook, body)
        if webhook is None:
            known = ", ".join(sorted(self.webhooks))
            # 422 and not 404, by which a sending agent would hold everything.
            raise Refusal(422, f"there is no webhook {name[:80]!r}", None, f"there are {known}")

        def read() -> list[Prepared]:
            bodies = read_events(webhook, _json(body), self._intake.event_type_max)
            return [self._intake.prepare(data, Source.SOCKET, producer) for data in bodies]

        prepared = await self._read(body, producer, read)
        if not prepared:
            # A ping; or what was meant for another mapping, which nobody else would notice.
            told = f"put the payload in a file, and try `outboxd webhook try {name} FILE`"
            _log.info("webhook.without_events", webhook=name, producer=producer.name, hint=told)
        return await self._keep(prepared, producer)

    async def _body_of_webhook(self, request: Request) -> bytes:
        """The body; where only a signature over it could tell whose it is, nobody is
        told more of what is wrong with it than that."""
        if request.identity is not None or self._gatekeeper is None:
            producer = producer_of(request)
            return await read_event(request, self._intake, producer, WEBHOOK_BYTES_MAX, _HINT)
        try:
            return await read_body(request, WEBHOOK_BYTES_MAX, _HINT)
        except Refusal as refusal:
            told = f"a signature that cannot be checked: {refusal}"
            raise self._gatekeeper.refusal(request, told) from None

    def _sender(
        self, request: Request, name: str, webhook: Webhook | None, body: bytes
    ) -> Producer:
        if request.identity is not None or self._gatekeeper is None:
            return producer_of(request)
        signature = webhook.signature if webhook is not None else None
        if signature is None or not is_signed(
            body, request.header(signature.header) or "", signature.secret
        ):
            raise self._gatekeeper.refusal(request, "a wrong signature")
        return self._gatekeeper.signed_by(request, name)

    async def _read(self, body: bytes, producer: Producer, read: Callable[[], _T]) -> _T:
        """What `read` makes of the body; beside the loop where that may take long."""
        try:
            if len(body) <= PLAIN_BYTES:
                return read()
            return await self._intake.in_turn(producer, read)
        except EventError as error:
            raise self._refusal(error, producer) from None
        except Refusal as refusal:
            reason = "too_large" if refusal.status == 413 else "invalid"
            self._intake.count_refused(producer, reason, 1, str(refusal))
            raise

    def _prepare_group(
        self, group: AlertGroup, producer: Producer
    ) -> tuple[list[Prepared], list[NotAllowed]]:
        """The alerts that the token allows, and why it doesn't the others: Alertmanager
        puts into one group what has nothing to do with each other, and sends none of it
        again that was refused."""
        prepared: list[Prepared] = []
        refused: list[NotAllowed] = []
        for alert in group.events:
            try:
                prepared.append(self._prepare_alert(alert, producer))
            except NotAllowed as error:
                refused.append(error)
        return prepared, refused

    def _prepare_alert(self, alert: AlertEvent, producer: Producer) -> Prepared:
        item = self._intake.prepare(alert.body, Source.SOCKET, producer)
        if alert.identity is None:
            return item
        mark = max(1, alert.began_at)
        incoming = item.incoming._replace(dedup_key=alert.identity, dedup_mark=mark)
        return item._replace(incoming=incoming)

    async def _keep(
        self,
        prepared: list[Prepared],
        producer: Producer,
        truncated: int = 0,
        over_rate: int = 429,
    ) -> Response:
        results: list[bytes] = []
        if prepared:
            check_rate(self._intake, producer, len(prepared), over_rate)
            try:
                receipts = await self._intake.keep([item.incoming for item in prepared])
            except Refused as error:
                return response_of(self._intake.refuse(error, producer, len(prepared)))
            for receipt, item in zip(receipts, prepared, strict=True):
                results.append(receipt_json(receipt, item.warnings))
        return reply(
            200, b'{"results": [%s], "truncated": %d}\n' % (b", ".join(results), truncated)
        )

    def _refusal(self, error: EventError, producer: Producer) -> Refusal:
        answer = self._intake.refuse(error, producer)
        return Refusal(
            422 if answer.status == 400 else answer.status, error.message, error.field, error.hint
        )


def tcp_routes(
    intake: IntakeRoutes, webhooks: WebhookRoutes, is_healthy: Callable[[], bool],
    is_ready: Callable[[], bool],
) -> list[Route]:  # fmt: skip
    """All that a TCP peer can reach."""

    async def take_event(request: Request, _: str) -> Response:
        is_templated = (request.header("user-agent") or "").startswith(USER_AGENT)
        return await (webhooks.take_templated if is_templated else intake.take_event)(request, _)

    async def validate(_: Request, __: str) -> Response:
        return reply(200, b'{"valid": true, "gateway": true}\n')

    async def health(_: Request, __: str) -> Response:
        return Response(status=200 if is_healthy() else 503)

    async def readiness(_: Request, __: str) -> Response:
        return Response(status=200 if is_ready() else 503)

    return [
        Route("POST", EVENTS_PATH, take_event),
        Route("POST", BATCH_PATH, intake.take_batch),
        *webhooks.routes(),
        Route("GET", "/mgmt/v1/apikey/validate", validate),
        Route("GET", "/healthz", health),
        Route("GET", "/readyz", readiness),
    ]


def _of_group(refused: list[NotAllowed], kept: list[Prepared]) -> NotAllowed:
    """What to say of a group of which some alerts are not allowed."""
    error, count = refused[0], len(refused)
    others = f"; the other {len(kept)} of their group were taken" if kept else ""
    told = f"{count} alert{'s' if count > 1 else ''} refused{others}: {error.message}"
    return NotAllowed(told, error.field, error.hint)


def _json(body: bytes) -> Any:
    if len(body) > VALUES_MAX and sum(map(body.count, (b",", b"[", b"{"))) > VALUES_MAX:
        raise Refusal(413, f"the body holds more than {VALUES_MAX:,} values", None, _HINT)
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:200]
        is_form = body[:64].lstrip()[:8] == b"payload="  # as GitHub sends by default
        hint = (
            "set the sender's content type to application/json" if is_form else "send it as it is"
        )
        raise Refusal(400, f"the body is no JSON: {told}", None, hint) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
