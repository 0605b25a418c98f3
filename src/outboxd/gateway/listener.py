"""The TCP listener of a gateway: its certificate, its tokens, its webhooks, kept up to date.

Made and started by the agent where `[intake] listen` is set. What changes on
disk is taken over while it runs; what cannot be used is told, and what was
there before stays in force. It must never serve without tokens or
certificates, nor let through what the routes of the contract do not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from outboxd.budgets import ListenerLimits
from outboxd.clock import Clock
from outboxd.config.sections import Config
from outboxd.errors import ConfigError
from outboxd.files import FileVersion, file_version
from outboxd.gateway.gatekeeper import Gatekeeper, GatekeeperMetrics, StrangerWatch
from outboxd.gateway.routes import WebhookMetrics, WebhookRoutes, tcp_routes
from outboxd.gateway.shipped import compile_webhooks, secret_files
from outboxd.gateway.tokens import TokenBook, read_tokens, read_whole_lines
from outboxd.gateway.webhooks import Webhook
from outboxd.intake.http import IntakeRoutes
from outboxd.intake.intake import Intake
from outboxd.logger import get_logger
from outboxd.serve.server import HttpServer, ServeMetrics
from outboxd.serve.table import RouteTable
from outboxd.serve.tls import TlsFiles, shown_certificate
from outboxd.status import Callers, GatewayStatus, Trouble

NAME = "gateway"  # of the listener
WATCH_S = 2.0  # how often the files are looked at
# A tokens file that is edited in place is taken over once it is so old; what it adds, at once.
SETTLED_MS = 1000
_CERTIFICATE, _TOKENS, _WEBHOOKS = "certificate", "tokens", "webhooks"

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
        strangers: StrangerWatch,
        clock: Clock,
        random: Callable[[], float],
        is_healthy: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        """Raises ConfigError where certificate, tokens or webhooks cannot be used."""
        self._config = config
        self._tokens_seen: FileVersion | None = None
        self._tokens_taken_in: FileVersion | None = None  # while it was being written
        self._secrets_seen: list[FileVersion | None] = []
        self._troubles: dict[str, Trouble] = {}  # by what cannot be used
        self.certificate_ends_at: int | None = None  # None: not known
        settings = config.intake
        tls = None
        if settings.tls_cert:
            tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.client_ca)
        self.gatekeeper = Gatekeeper(
            metrics, strangers, clock, self._describes_itself, self._renew_tokens
        )
        self._webhooks = WebhookRoutes(intake, metrics, {}, self.gatekeeper)
        self._tls = tls
        self.take_over(config)
        self._look_at_certificate()
        self._routes = tcp_routes(intake_routes, self._webhooks, is_healthy, is_ready)
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._server: HttpServer | None = None

    def make_server(self, limits: ListenerLimits) -> HttpServer:
        """The server of the listener, to be started once it has a socket."""
        self._server = HttpServer(
            RouteTable(self._routes),
            name=NAME,
            guards=(self.gatekeeper,),
            limits=limits,
            metrics=self._metrics,
            clock=self._clock,
            tls=self._tls,
            retry_after_spread=self._random,
            has_strangers=True,
        )
        return self._server

    def status(self, address: str | None, callers: Callers) -> GatewayStatus:
        """How it stands; where it is open, and who came, is known elsewhere."""
        assert self._server is not None, "a listener has a server before anybody asks"
        connections = self._server.limits.connections
        return GatewayStatus(
            address,
            connections.used,
            connections.total,
            connections.share,
            len(self.gatekeeper.names),
            self.certificate_ends_at,
            tuple(self._troubles.values()),
            callers,
        )

    def take_over(self, config: Config) -> None:
        """What a reload may change: tokens, webhooks, what is said of this gateway.

        Raises:
            ConfigError: nothing was taken over.
        """
        secrets_seen = _versions(secret_files(config.webhooks))
        webhooks = compile_webhooks(config.webhooks)
        path = config.intake.tokens_file
        seen = file_version(path) if path else None
        book = TokenBook(read_tokens(path) if path else [])
        self._config, self._tokens_seen, self._secrets_seen = config, seen, secrets_seen
        self._put_webhooks(webhooks)
        self.gatekeeper.take_over(book)
        self._troubles.pop(_TOKENS, None)
        self._troubles.pop(_WEBHOOKS, None)

    async def watch(self) -> None:
        """Take changed files over, each by itself, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._renew_certificate()
            self._renew_tokens()
            self._renew_secrets()

    def _renew_certificate(self) -> None:
        if self._tls is None:
            return
        try:
            if self._tls.renew():
                self._troubles.pop(_CERTIFICATE, None)
                self._look_at_certificate()
                _log.info("gateway.certificate_renewed")
        except ConfigError as error:
            self._tell_refused(_CERTIFICATE, error)

    def _look_at_certificate(self) -> None:
        """Until when it is good; whether any client would take it."""
        if self._tls is None:
            return
        try:
            shown = shown_certificate(self._tls.context, self._config.intake.tls_cert)
        except ConfigError as error:
            self.certificate_ends_at = None
            self._troubles[_CERTIFICATE] = Trouble(error.message, error.hint or "renew it", True)
            return
        except OSError:
            return  # it is just being replaced: looked at again when it is taken over
        self.certificate_ends_at = 1000 * int(ssl.cert_time_to_seconds(str(shown["notAfter"])))

    def _renew_tokens(self) -> bool:
        """Whether other tokens are in force now; one `stat` where the file is as it was."""
        path = self._config.intake.tokens_file
        if not path:
            return False
        seen = file_version(path)
        if seen == self._tokens_seen:
            return False
        if self._is_being_written(seen):
            return self._take_in_tokens(path, seen)
        self._tokens_seen = seen
        try:
            self.gatekeeper.take_over(TokenBook(read_tokens(path)))
        except ConfigError as error:
            self._tell_refused(_TOKENS, error)
            return False
        self._troubles.pop(_TOKENS, None)
        _log.info("gateway.tokens_renewed")
        return True

    def _is_being_written(self, seen: FileVersion | None) -> bool:
        """Whether the tokens were changed where they lie, and just now: then some may be
        missing, and whoever were refused would hold everything. (So it seems, too, where a
        file that was written aside and renamed has got the number of one before it.)"""
        before = self._tokens_seen
        if seen is None or before is None or not seen.is_same_file(before):
            return False
        return 0 <= self._clock.wall_ms() - seen.changed_ns // 1_000_000 < SETTLED_MS

    def _take_in_tokens(self, path: str, seen: FileVersion | None) -> bool:
        """What is there already is good; what is missing may yet be written."""
        if seen == self._tokens_taken_in:
            return False
        self._tokens_taken_in = seen
        try:
            self.gatekeeper.take_in(read_whole_lines(path))
        except ConfigError:
            return False  # in the middle of a line; told if it stays so
        return True

    def _renew_secrets(self) -> None:
        """The secrets of signed webhooks, where their files have changed."""
        seen = _versions(secret_files(self._config.webhooks))
        if seen == self._secrets_seen:
            return
        self._secrets_seen = seen
        try:
            self._put_webhooks(compile_webhooks(self._config.webhooks))
        except ConfigError as error:
            self._tell_refused(_WEBHOOKS, error)
            return
        self._troubles.pop(_WEBHOOKS, None)
        _log.info("gateway.webhooks_renewed")

    def _put_webhooks(self, webhooks: Mapping[str, Webhook]) -> None:
        self._webhooks.webhooks = webhooks
        self.gatekeeper.signed_webhooks = {
            name: webhook.signature.header
            for name, webhook in webhooks.items()
            if webhook.signature
        }

    def _tell_refused(self, what: str, error: ConfigError) -> None:
        self._troubles[what] = Trouble(error.message, error.hint or "mend it")
        _log.error(
            f"gateway.{what}_refused",
            error=error.message,
            hint=error.hint,
            effect="what was there before stays in force",
        )

    def _describes_itself(self) -> str:
        config = self._config
        return (
            f"1; dedup={int(config.dedup.key_window_s)}; type={config.komodor.event_type_max}; "
            f"bytes={config.intake.event_bytes_max}"
        )


def _versions(paths: Iterable[str]) -> list[FileVersion | None]:
    return [file_version(path) for path in paths]
