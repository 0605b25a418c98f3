"""The agent's rooms, made and joined: who gets whom.

Intake and delivery meet here and nowhere else, in one wake-up and one report.
Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from outboxd import __version__
from outboxd.agent.listeners import Listeners
from outboxd.agent.systemd import PassedSocket
from outboxd.agent.upkeep import Upkeep
from outboxd.api.context import ApiContext
from outboxd.api.control import ControlRoutes
from outboxd.api.routes import ReadingRoutes
from outboxd.api.session_routes import SessionRoutes
from outboxd.api.sessions import Sessions
from outboxd.clock import Clock
from outboxd.config.load import Config
from outboxd.delivery.facts import Fact, OutageEnded
from outboxd.delivery.late import shown_body
from outboxd.delivery.report import outage_report
from outboxd.delivery.sender import Sender
from outboxd.delivery.settings import Settings
from outboxd.delivery.transport import Transport
from outboxd.errors import OutboxdError
from outboxd.gateway.listener import GatewayListener
from outboxd.gateway.routes import WebhookRoutes
from outboxd.gateway.shipped import compile_webhooks
from outboxd.intake.admission import Admission
from outboxd.intake.http import IntakeRoutes
from outboxd.intake.intake import Intake
from outboxd.intake.producer import AGENT, user
from outboxd.intake.shares import Shares
from outboxd.observe.delivery import DeliveryObserver
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.observe.textfile import write_textfile
from outboxd.outbox.model import Entry, Source
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.sqlite.opening import Opened
from outboxd.outbox.upkeep import TICK_S, Job, OutboxUpkeep
from outboxd.spool.reader import SpoolReader
from outboxd.web.activity import Activity
from outboxd.web.outbox_source import OutboxSource
from outboxd.web.page import web_routes

TEXTFILE_S = 15.0
# The patience with one piece of work: a commit on a slow disk.
STUCK_AFTER_S = 60.0


def sender_settings(config: Config) -> Settings:
    """What the sender needs of the configuration."""
    delivery = config.delivery
    return Settings(
        endpoint=config.komodor.endpoint,
        concurrency_max=delivery.concurrency_max,
        rate_max=delivery.rate_max,
        backoff_initial_s=delivery.backoff_initial_s,
        backoff_max_s=delivery.backoff_max_s,
        attempts_max=delivery.attempts_max,
        hold_probe_s=delivery.hold_probe_s,
        retry_after_max_s=config.komodor.retry_after_max_s,
        stamp=delivery.stamp,
        late_after_s=delivery.late_after_s,
        order=delivery.order,
        fresh_share=delivery.fresh_share,
        read_ahead=not config.dedup.repeat_window_s,
    )


class AgentParts:
    """Everything that runs; made by `make`, in the order of `open_intake`,
    `background`, `close_intake`, `close`."""

    def __init__(
        self,
        config: Config,
        key: str | None,
        outbox: Outbox,
        opened: Opened,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self.config = config
        self.outbox = outbox
        self._opened = opened
        self.clock = clock
        self.metrics = Metrics(__version__, clock)
        self.transport = Transport(config.komodor, key)
        self._observer = DeliveryObserver(self.metrics)
        self._key = key
        self._log = get_logger("agent")
        self.sender = Sender(
            outbox, self.transport, sender_settings(config), clock, random, self._observe
        )
        self.admission = Admission(
            lambda: outbox.counts,
            lambda: outbox.sizes().free,
            clock,
            config.outbox.events_max,
            config.outbox.disk_free_min,
            lambda: outbox.waiting,
            Shares({user(0).name, user(os.geteuid()).name, AGENT.name}),
        )
        self.door = Intake(
            outbox,
            self.admission,
            self.metrics,
            clock,
            defaults=config.defaults,
            event_type_max=config.komodor.event_type_max,
            event_bytes_max=config.intake.event_bytes_max,
            ttl_s=config.outbox.ttl_s,
        )
        self.spool = SpoolReader(config.intake.spool, self.door, outbox, self.metrics, clock)
        self._keeper = OutboxUpkeep(
            outbox, clock, self.metrics.pruned, config.outbox.retain_delivered_s
        )
        self._listeners: Listeners | None = None
        self._gateway: GatewayListener | None = None
        self._random = random
        self.http_address: str | None = None
        self._reporting: set[asyncio.Task[None]] = set()
        self._ready = False
        self._api = ApiContext(
            outbox=outbox,
            intake=self.admission,
            destination=self.sender,
            metrics=self.metrics,
            clock=clock,
            version=__version__,
            host=socket.gethostname(),
            socket_path=config.intake.socket,
            sent_body=self.sent_body,
            unhealthy=self.unhealthy,
            ready=lambda: self._ready,
            reads_others=lambda: self.config.intake.read_others,
            copied=lambda: opened.copied(outbox),
        )
        self._activity = Activity(outbox, self.sender, clock)
        self._timeline = OutboxSource(outbox, self._activity, self._api.status, clock)
        outbox.on_arrival = self.sender.arrived
        outbox.on_claimed = self.sender.arrived_claimed
        outbox.on_commit = self.metrics.commit
        outbox.on_damage = self._damage_found
        self._watch_metrics()

    @classmethod
    async def make(
        cls,
        config: Config,
        key: str | None,
        opened: Opened,
        clock: Clock,
        random: Callable[[], float],
    ) -> AgentParts:
        """Start the outbox's writer, and make the rest around it."""
        outbox = await Outbox.start(opened.engine)
        return cls(config, key, outbox, opened, clock, random)

    def _watch_metrics(self) -> None:
        outbox, config = self.outbox, self.config
        self.metrics.watch(
            counts=lambda: outbox.counts,
            oldest_pending_at=lambda: outbox.oldest_pending_at,
            damage=lambda: outbox.damage,
            outbox_bytes=lambda: outbox.sizes().stored,
            wal_bytes=lambda: outbox.sizes().log,
            disk_free_bytes=lambda: outbox.sizes().free,
            accepting=lambda: self.admission.state().accepting,
            spool_waiting=self.spool.files_waiting,
            destination=self.sender.status,
        )
        self.metrics.limits(
            events_max=config.outbox.events_max, disk_free_min_bytes=config.outbox.disk_free_min
        )

    # --- intake ---

    async def open_intake(self, passed: Sequence[PassedSocket]) -> None:
        """Open the socket, the spool and the page; from here on events come in."""
        config = self.config
        reading = ReadingRoutes(self._api).routes()
        intake = IntakeRoutes(self.door, self.metrics)
        webhooks = WebhookRoutes(self.door, self.metrics, compile_webhooks(config.webhooks))
        if config.intake.listen:
            self._gateway = GatewayListener(
                config,
                self.door,
                intake,
                self.metrics,
                self.clock,
                self._random,
                is_healthy=lambda: self.unhealthy() is None,
                is_ready=lambda: self._ready,
            )
        self._webhooks = webhooks
        on_page = ReadingRoutes(self._api, self._timeline.page).routes()
        sessions = Sessions(self.clock.monotonic_s)
        acting = SessionRoutes(sessions, lambda: self.http_address)
        control = ControlRoutes(self._api, sessions)
        self._listeners = Listeners(
            config,
            self.metrics,
            self.clock,
            [
                *intake.routes(),
                *webhooks.routes(),
                *reading,
                *control.routes(),
                *control.socket_routes(),
                *acting.socket_routes(),
            ],
            [*on_page, *control.routes(), *acting.page_routes(), *web_routes(self._timeline)],
            self._gateway.make_server if self._gateway is not None else None,
        )
        self.metrics.watch(connections=self._listeners.connection_count)
        await self._listeners.open(passed)
        self.http_address = self._listeners.address("page")
        await self.spool.start()
        self._ready = True

    async def close_intake(self) -> None:
        """Take nothing more; what is in hand is answered."""
        if self._listeners is not None:
            self._listeners.stop_accepting()
        await self.spool.stop()
        await self._timeline.close()  # a page that listens would keep its server waiting
        if self._listeners is not None:
            await self._listeners.stop()

    # --- delivery ---

    def _observe(self, fact: Fact) -> None:
        self._observer(fact)
        if isinstance(fact, OutageEnded) and self.config.delivery.report_outage:
            task = asyncio.get_running_loop().create_task(self._report(fact))
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)

    async def _report(self, outage: OutageEnded) -> None:
        """The agent's own event on the timeline, of an outage worth telling."""
        longest_s = (outage.ended_at - outage.oldest_at) / 1000
        delayed = outage.delayed - await self._own_reports_pending()
        if delayed <= 0 or longest_s < self.config.delivery.late_after_s:
            return
        data = outage_report(
            delayed=delayed,
            longest_delay_s=longest_s,
            began_at=outage.began_at,
            ended_at=outage.ended_at,
            reason=outage.reason,
            host=socket.gethostname(),
        )
        try:
            await self.door.take(data, Source.AGENT, AGENT)
        except OutboxdError as error:
            self._log.warning("report.failed", error=error.message, hint=error.hint)

    async def _own_reports_pending(self) -> int:
        """Reports of earlier outages that wait; only few entries can all be reports."""
        if self.outbox.counts.pending > 64:
            return 0
        return await self.outbox.read(lambda engine: engine.own_reports_pending())

    def sent_body(self, entry: Entry) -> bytes:
        """What was sent last, or would be sent now."""
        delivery = self.config.delivery
        return shown_body(entry, self.clock.wall_ms(), delivery.stamp, delivery.late_after_s)

    # --- the rest ---

    def background(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs beside the sender until it is cancelled."""
        jobs = [*self._keeper.jobs(), *self._opened.jobs(self.outbox)]
        path = self.config.metrics.textfile
        jobs.append(Job("certificates", TICK_S, self._follow_certificates))
        if path:
            jobs.append(Job("textfile", TEXTFILE_S, self._write_textfile))
        running = [("upkeep", Upkeep(self.clock, jobs).run())]
        if self._listeners is not None:
            running.append(("listeners", self._listeners.watch()))
        if self._gateway is not None:
            running.append(("gateway", self._gateway.watch()))
        if self._opened.rescues:
            running.append(("salvage", self._salvage()))
        if self.config.http.listen:
            running.append(("activity", self._activity.run()))
        return running

    async def _salvage(self) -> None:
        """The rest of what damaged files hold, while events come in and go out."""
        salvaged, lost = await self._opened.salvage(self.outbox)
        self._log.warning("salvage.finished", salvaged=salvaged, lost=lost)
        self.sender.wake()

    async def _follow_certificates(self) -> None:
        """Authorities or a certificate that were replaced on disk may end a hold."""
        if self.transport.reread_files():
            self._log.info("certificates.changed")
            self.sender.key_changed()

    async def _write_textfile(self) -> None:
        await asyncio.to_thread(write_textfile, self.config.metrics.textfile, self.metrics)

    def key_file(self) -> str | None:
        """The file whose change is a new key."""
        return self.config.komodor.api_key_file or None

    def set_key(self, key: str) -> None:
        """A new API key: a hold may be over."""
        self._key = key
        self.transport.set_key(key)
        self.sender.key_changed()

    def reconfigure(self, config: Config, key: str | None) -> list[str]:
        """Take over what can change while running; the names of what cannot."""
        left = _needs_restart(self.config, config)
        webhooks = compile_webhooks(config.webhooks)
        if self._gateway is not None:
            self._gateway.take_over(config)
        self._webhooks.webhooks = webhooks
        old = None
        if _way(self.config) != _way(config):  # it may refuse them: nothing has changed yet
            old, self.transport = self.transport, Transport(config.komodor, key)
        else:
            self.transport.reread_files(whether_changed_or_not=True)
            self.transport.set_key(key)
        before, self.config = self.config, config
        self._key = key
        self.sender.reconfigure(sender_settings(config), self.transport)
        self.admission.set_limits(config.outbox.events_max, config.outbox.disk_free_min)
        self.door.configure(
            config.defaults,
            config.komodor.event_type_max,
            config.intake.event_bytes_max,
            config.outbox.ttl_s,
        )
        self.outbox.set_windows(config.dedup.key_window_s, config.dedup.repeat_window_s)
        self._keeper.retain_delivered_s = config.outbox.retain_delivered_s
        self.metrics.limits(
            events_max=config.outbox.events_max, disk_free_min_bytes=config.outbox.disk_free_min
        )
        if old is not None:
            task = asyncio.get_running_loop().create_task(_close_later(old, before))
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
        return left

    def stuck_s(self) -> float:
        """For how long writer or sender have made no progress with work in hand."""
        return max(self.outbox.stuck_s(), self.sender.stuck_s())

    def unhealthy(self) -> str | None:
        """Why the agent makes no progress; None while it does."""
        if self.outbox.fatal is not None:
            return self.outbox.fatal.message
        stuck_s = self.stuck_s()
        if stuck_s < STUCK_AFTER_S:
            return None
        return f"no progress for {round(stuck_s)} s with work in hand"

    def summary(self) -> str:
        """One line for the service manager."""
        counts, destination = self.outbox.counts, self.sender.status()
        why = f" ({destination.reason})" if destination.reason else ""
        return f"{counts.pending} events pending, destination {destination.state}{why}"

    def _damage_found(self, seq: int, detail: str) -> None:
        self._log.error(
            "damage.found",
            seq=seq,
            detail=detail,
            hint="what is left of it is kept in the table `damaged`; check the disk",
        )

    async def close(self) -> None:
        """After the sender has ended."""
        for task in tuple(self._reporting):
            task.cancel()
        await self.transport.close()
        await self.outbox.stop()


def _way(config: Config) -> tuple[object, ...]:
    """What the transport is made of."""
    komodor = config.komodor
    return (
        komodor.endpoint,
        komodor.proxy,
        komodor.ca_file,
        komodor.client_cert,
        komodor.client_key,
        komodor.connect_timeout_s,
        komodor.request_timeout_s,
    )


def _needs_restart(before: Config, after: Config) -> list[str]:
    """Settings that changed and are read only at the start."""

    def fixed(config: Config) -> dict[str, object]:
        return {
            "[intake] socket": config.intake.socket,
            "[intake] socket_mode": config.intake.socket_mode,
            "[intake] socket_group": config.intake.socket_group,
            "[intake] spool": config.intake.spool,
            "[intake] listen": config.intake.listen,
            "[intake] tls_cert": config.intake.tls_cert,
            "[intake] tls_key": config.intake.tls_key,
            "[intake] client_ca": config.intake.client_ca,
            "[intake] connections_max": config.intake.connections_max,
            "[intake] connections_per_peer": config.intake.connections_per_peer,
            "[outbox] path": config.outbox.path,
            "[http] listen": config.http.listen,
            "[metrics] textfile": config.metrics.textfile,
        }

    now = fixed(after)
    return [name for name, value in fixed(before).items() if value != now[name]]


async def _close_later(transport: Transport, config: Config) -> None:
    """Requests under way may still use it for as long as one may last."""
    await asyncio.sleep(config.komodor.request_timeout_s)
    await transport.close()
