"""The TCP listener of a gateway: its certificate, its tokens, its webhooks, kept up to date.

Made and started by the agent where `[intake] listen` is set. What changes on
disk is taken over while it runs; what cannot be used is told, and what was
there before stays in force. It must never serve without tokens or
certificates, nor let through what the routes of the contract do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from outboxd.budgets import Limits
from outboxd.clock import Clock
from outboxd.config.load import Config
from outboxd.errors import ConfigError
from outboxd.files import FileVersion, file_version
from outboxd.gateway.gatekeeper import Gatekeeper, GatekeeperMetrics
from outboxd.gateway.routes import WebhookMetrics, WebhookRoutes, tcp_routes
from outboxd.gateway.shipped import compile_webhooks
from outboxd.gateway.tokens import TokenBook, read_tokens
from outboxd.intake.http import IntakeRoutes
from outboxd.intake.intake import Intake
from outboxd.logger import get_logger
from outboxd.serve.server import HttpServer, ServeMetrics
from outboxd.serve.table import RouteTable
from outboxd.serve.tls import TlsFiles

WATCH_S = 2.0  # how often the files are looked at

_log = get_logger()


class GatewayMetrics(GatekeeperMetrics, WebhookMetrics, ServeMetrics, Protocol):
    """All that is counted here."""


class GatewayListener:
    """One listener, from start to stop."""

    def __init__(
        self,
        config: Config,
        intake: Intake,
        intake_routes: IntakeRoutes,
        metrics: GatewayMetrics,
        clock: Clock,
        random: Callable[[], float],
        is_healthy: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        """Raises ConfigError where certificate, tokens or webhooks cannot be used."""
        self._config = config
        self._tokens_seen: FileVersion | None = None
        settings = config.intake
        tls = None
        if settings.tls_cert:
            tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.client_ca)
        self.gatekeeper = Gatekeeper(
            metrics, clock.monotonic_s, self._describes_itself, self._renew_tokens
        )
        self._webhooks = WebhookRoutes(intake, metrics, {}, self.gatekeeper)
        self._tls = tls
        self.take_over(config)
        self._routes = tcp_routes(intake_routes, self._webhooks, is_healthy, is_ready)
        self._metrics = metrics
        self._clock = clock
        self._random = random

    def make_server(self, limits: Limits) -> HttpServer:
        """The server of the listener, to be started once it has a socket."""
        return HttpServer(
            RouteTable(self._routes),
            name="gateway",
            guards=(self.gatekeeper,),
            limits=limits,
            metrics=self._metrics,
            clock=self._clock,
            tls=self._tls,
            retry_after_spread=self._random,
        )

    def take_over(self, config: Config) -> None:
        """What a reload may change: tokens, webhooks, what is said of this gateway.

        Raises:
            ConfigError: nothing was taken over.
        """
        webhooks = compile_webhooks(config.webhooks)
        path = config.intake.tokens_file
        seen = file_version(path) if path else None
        book = TokenBook(read_tokens(path) if path else [])
        self._config, self._tokens_seen = config, seen
        self._webhooks.webhooks = webhooks
        signed = {
            name: webhook.signature.header
            for name, webhook in webhooks.items()
            if webhook.signature
        }
        self.gatekeeper.take_over(book, signed)

    async def watch(self) -> None:
        """Take changed files over, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._renew_certificate()
            self._renew_tokens()

    def _renew_certificate(self) -> None:
        if self._tls is None:
            return
        try:
            if self._tls.renew():
                _log.info("gateway.certificate_renewed")
        except ConfigError as error:
            _told_refused("gateway.certificate_refused", error)

    def _renew_tokens(self) -> bool:
        """Whether other tokens are in force now; one `stat` where the file is as it was."""
        path = self._config.intake.tokens_file
        if not path or file_version(path) == self._tokens_seen:
            return False
        self._tokens_seen = file_version(path)
        try:
            self.take_over(self._config)
        except ConfigError as error:
            _told_refused("gateway.tokens_refused", error)
            return False
        _log.info("gateway.tokens_renewed")
        return True

    def _describes_itself(self) -> str:
        config = self._config
        return (
            f"1; dedup={int(config.dedup.key_window_s)}; type={config.komodor.event_type_max}; "
            f"bytes={config.intake.event_bytes_max}"
        )


def _told_refused(event: str, error: ConfigError) -> None:
    _log.error(
        event, error=error.message, hint=error.hint, effect="what was there before stays in force"
    )
