"""The agent's rooms, made and joined: who gets whom.

Intake and delivery meet here and nowhere else, in one wake-up and one report.
Nothing is decided here, and nothing is asked of the outbox.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from outboxd import __version__
from outboxd.agent.health import Health
from outboxd.agent.listeners import Listeners
from outboxd.agent.opening import SharedOutbox
from outboxd.agent.reports import OutageReports
from outboxd.agent.systemd import PassedSocket
from outboxd.agent.upkeep import Upkeep
from outboxd.api.context import ApiContext
from outboxd.api.control import ControlRoutes
from outboxd.api.peer import require_operator
from outboxd.api.routes import ReadingRoutes
from outboxd.api.session_routes import SessionRoutes
from outboxd.api.sessions import Sessions
from outboxd.clock import Clock
from outboxd.config.changes import changed, changes_the_way, needs_restart
from outboxd.config.sections import Config
from outboxd.delivery.facts import Fact, OutageEnded
from outboxd.delivery.sender import Sender
from outboxd.delivery.settings import DeliverySettings
from outboxd.delivery.transport import Transport
from outboxd.errors import CommitUnknown, Refused
from outboxd.findings import Finding
from outboxd.gateway.routes import WebhookRoutes
from outboxd.gateway.shipped import compile_webhooks
from outboxd.intake.admission import Admission, Shares
from outboxd.intake.http import IntakeRoutes
from outboxd.intake.intake import Intake
from outboxd.intake.producer import AGENT, user
from outboxd.observe.callers import CallerBook
from outboxd.observe.delivery import DeliveryObserver
from outboxd.observe.logs import get_logger
from outboxd.observe.metrics import Metrics
from outboxd.observe.producers import ProducerObserver
from outboxd.observe.textfile import write_textfile
from outboxd.outbox.opened import Opened
from outboxd.outbox.outbox import Outbox
from outboxd.outbox.upkeep import TICK_S, OutboxUpkeep, UpkeepJob
from outboxd.serve.answers import Refusal
from outboxd.serve.request import Request
from outboxd.serve.table import Route
from outboxd.spool.reader import SpoolReader
from outboxd.status import Deliverer, Destination, GatewayStatus
from outboxd.web.activity import Activity
from outboxd.web.outbox_source import OutboxSource
from outboxd.web.page import web_routes

if TYPE_CHECKING:
    from outboxd.agent.election import Election
    from outboxd.gateway.listener import GatewayListener

TEXTFILE_S = 15.0
# What a stop waits for a shared outbox before it leaves who still asks without an answer.
SERVER_ANSWERS_S = 1.0


def sender_settings(config: Config) -> DeliverySettings:
    """What the sender needs of the configuration."""
    return DeliverySettings(config.komodor, config.delivery, not config.dedup.repeat_window_s)


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
        self._key = key
        self._log = get_logger("agent")
        self.election = _election(outbox, opened, clock)
        self.sender = Sender(
            outbox,
            self.transport,
            sender_settings(config),
            clock,
            random,
            DeliveryObserver(self.metrics, self._hear),
            *(() if self.election is None else (self.election.may_launch,)),
        )
        self.admission = Admission(
            outbox,
            lambda: outbox.sizes().free,
            clock,
            config.outbox.events_max,
            config.outbox.disk_free_min,
            Shares({user(0).name, user(os.geteuid()).name, AGENT.name}),
        )
        self._callers = CallerBook()
        self.door = Intake(
            outbox,
            self.admission,
            self.metrics,
            clock,
            defaults=config.defaults.for_events(),
            event_type_max=config.komodor.event_type_max,
            event_bytes_max=config.intake.event_bytes_max,
            ttl_s=config.outbox.ttl_s,
        )
        self._observer = self.door.watch = ProducerObserver(
            self.metrics, clock, self._callers, has_tokens=bool(config.intake.listen)
        )
        if self.election is not None:
            self.election.join(self.sender, self._database_trouble, lambda: self._key)
        self.spool: SpoolReader | None = None  # gateways that share an outbox have none
        if config.intake.spool:
            self.spool = SpoolReader(config.intake.spool, self.door, outbox, self.metrics, clock)
            self.spool.disk_free_min = config.outbox.disk_free_min
        self._keeper = OutboxUpkeep(
            outbox, clock, self.metrics.pruned, config.outbox.retain_delivered_s
        )
        self.health = Health(outbox, self.sender, self.admission)
        self._reports = OutageReports(outbox, self.door)
        self._upkeep = Upkeep(clock, self._jobs(), self.metrics)
        self._listeners: Listeners | None = None
        self._gateway: GatewayListener | None = None
        self._random = random
        self._closing: set[asyncio.Task[None]] = set()  # transports that are no longer used
        self._ready = False
        self._on_change: Callable[[], None] = lambda: None
        self._api = ApiContext(
            outbox=outbox,
            intake=self.admission,
            destination=_destination(self.sender, self.election),
            metrics=self.metrics,
            clock=clock,
            version=__version__,
            host=socket.gethostname(),
            socket_path=config.intake.socket,
            sent_body=self.sender.sent_body,
            unhealthy=self.health.fault,
            ready=lambda: self._ready,
            reads_others=lambda: self.config.intake.read_others,
            copied=lambda: opened.copied(outbox),
            gateway=self._gateway_status,
            deliverer=self._deliverer,
            refused=self._callers.refused_users,
        )
        self._activity = Activity(outbox, self._api.destination, clock)
        self._timeline = OutboxSource(
            outbox, self._activity, self._api.status, clock, self.metrics.limit_met
        )
        outbox.on_arrival = self.sender.arrived
        outbox.on_commit = self.metrics.commit
        self.door.on_refused = self._refused
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
        outbox = await opened.start()
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
            spool_waiting=self.spool.files_waiting if self.spool is not None else lambda: 0,
            destination=self.sender.status,
            deliverer=self._deliverer,
        )
        self.metrics.limits(
            events_max=config.outbox.events_max, disk_free_min_bytes=config.outbox.disk_free_min
        )

    # --- intake ---

    async def open_intake(
        self, passed: Sequence[PassedSocket], operation: Sequence[Route] = ()
    ) -> None:
        """Open the socket, the spool and the page; from here on events come in.

        `operation`: routes of the socket that look after the agent itself.
        """
        config = self.config
        reading = ReadingRoutes(self._api)
        intake = IntakeRoutes(self.door, self.metrics)
        webhooks = WebhookRoutes(self.door, self.metrics, compile_webhooks(config.webhooks))
        if config.intake.listen:
            # Most agents are none's gateway.
            from outboxd.gateway.listener import GatewayListener

            self._gateway = GatewayListener(
                config,
                self.door,
                intake,
                self.metrics,
                self._callers,
                self.clock,
                self._random,
                is_healthy=lambda: self.health.fault() is None,
                is_ready=lambda: self._ready and self.admission.refusal() is None,
            )
        self._webhooks = webhooks
        on_page = ReadingRoutes(self._api, self._timeline.page).routes()
        sessions = Sessions(self.clock.monotonic_s)
        acting = SessionRoutes(sessions, lambda: self.page_address, self.operator)
        control = ControlRoutes(self._api, self.operator)
        on_page_control = ControlRoutes(self._api, sessions.require_session).routes()
        self._listeners = Listeners(
            config,
            self.metrics,
            self.clock,
            [
                *intake.routes(),
                *webhooks.routes(),
                *reading.routes(),
                *reading.socket_routes(),
                *control.routes(),
                *control.socket_routes(),
                *acting.socket_routes(),
                *operation,
            ],
            [*on_page, *on_page_control, *acting.page_routes(), *web_routes(self._timeline)],
            self._gateway.make_server if self._gateway is not None else None,
        )
        self.metrics.watch(
            connections=self._listeners.connection_count,
            certificate_ends_at=lambda: (
                None if self._gateway is None else self._gateway.certificate_ends_at
            ),
        )
        await self._listeners.open(passed)
        if self.spool is not None:
            await self.spool.start()
        self._ready = True

    @property
    def page_address(self) -> str | None:
        """Where the page is; None: nowhere now."""
        return None if self._listeners is None else self._listeners.address("page")

    def operator(self, request: Request) -> str:
        """Who acts, in words for the log. Raises Refusal 403 for whoever may not; status,
        metrics and log have who that was."""
        try:
            return str(require_operator(request))
        except Refusal as refusal:
            if request.peer is not None:
                producer = user(request.peer.user_id).name
                self._observer.refused(producer, "no_right", 1, str(refusal))
            raise

    def _gateway_status(self) -> GatewayStatus | None:
        if self._gateway is None or self._listeners is None:
            return None
        callers = self._callers.seen(self.clock.wall_ms())
        return self._gateway.status(self._listeners.address("gateway"), callers)

    def findings(self) -> list[Finding]:
        """What of the parts that are not the main job works, for `check`."""
        listeners = [] if self._listeners is None else self._listeners.findings()
        return [*listeners, *self._upkeep.findings()]

    def _refused(self, refusal: Refused, count: int) -> None:
        self._log.warning("event.refused", count=count, error=refusal.message, hint=refusal.hint)
        self._on_change()

    def tell_changes(self, told: Callable[[], None]) -> None:
        """Call `told` from now on whenever something happens that a person may ask about."""

        def committed(duration_s: float, rows: int) -> None:
            self.metrics.commit(duration_s, rows)
            told()

        self._on_change, self.outbox.on_commit = told, committed

    async def close_intake(self) -> None:
        """Take nothing more; what is in hand is answered."""
        if self._listeners is not None:
            self._listeners.stop_accepting()
        if self.spool is not None:
            await self.spool.stop()
        await self._timeline.close()  # a page that listens would keep its server waiting
        giving_up = None
        if self.outbox.is_shared:
            loop = asyncio.get_running_loop()
            giving_up = loop.call_later(SERVER_ANSWERS_S, self._give_up_waiting)
        if self._listeners is not None:
            await self._listeners.stop()
        if giving_up is not None:
            giving_up.cancel()

    def _give_up_waiting(self) -> None:
        """Whoever still waits for an answer at the stop waits for a database that hangs."""
        self.outbox.give_up_waiting(
            CommitUnknown(
                "the outbox's database does not answer, and the agent stops",
                "nothing to do: whoever waits asks again with the same key",
            ),
            for_all=True,
        )

    # --- delivery ---

    def _hear(self, fact: Fact) -> None:
        self._on_change()
        if isinstance(fact, OutageEnded) and self.config.delivery.report_outage:
            self._reports.tell(fact, self.config.delivery.late_after_s)

    async def give_up_delivery(self) -> None:
        """After the sender has ended: another gateway may deliver."""
        if self.election is not None:
            await self.election.give_up()

    def _deliverer(self) -> Deliverer | None:
        return None if self.election is None else self.election.state()

    def _database_trouble(self, refusal: Refused | None) -> None:
        self.admission.set_trouble(refusal)
        self._on_change()

    # --- the rest ---

    def background(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs beside the sender until it is cancelled."""
        running: list[tuple[str, Coroutine[Any, Any, None]]] = [("upkeep", self._upkeep.run())]
        if self._listeners is not None:
            running.append(("listeners", self._listeners.watch()))
        if self._gateway is not None:
            running.append(("gateway", self._gateway.watch()))
        if self.election is not None:
            running.append(("election", self.election.run()))
        if self._opened.has_rescues:
            running.append(("salvage", self._salvage()))
        if self.config.http.listen:
            running.append(("activity", self._activity.run()))
        return running

    def _jobs(self) -> list[UpkeepJob]:
        """What the upkeep has to do."""
        jobs = [*self._keeper.jobs(), *self._opened.jobs(self.outbox)]
        jobs.append(UpkeepJob("certificates", TICK_S, self._follow_certificates))
        if self.config.metrics.textfile:
            jobs.append(UpkeepJob("textfile", TEXTFILE_S, self._write_textfile))
        return jobs

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
        path, outbox = self.config.metrics.textfile, self.outbox.path
        now_s = self.clock.wall_ms() / 1000
        await asyncio.to_thread(write_textfile, path, self.metrics, outbox, now_s)

    def key_file(self) -> str | None:
        """The file whose change is a new key."""
        return self.config.komodor.api_key_file or None

    def set_key(self, key: str | None) -> None:
        """A new API key: a hold may be over."""
        self._key = key
        self.transport.set_key(key)
        self.sender.key_changed()

    def reconfigure(self, config: Config, key: str | None) -> list[str]:
        """Take over what can change while running; the names of what cannot.

        Raises:
            ConfigError: it was refused, and nothing has changed.
        """
        names = changed(self.config, config)
        # What may refuse them comes first: then nothing has changed yet.
        webhooks = compile_webhooks(config.webhooks)
        transport = self.transport
        if changes_the_way(names):
            transport = Transport(config.komodor, key)
        else:
            transport.reread_files(whether_changed_or_not=True)
        if self._gateway is not None:
            self._gateway.take_over(config)
        self._webhooks.webhooks = webhooks
        transport.set_key(key)
        old, self.transport = self.transport, transport
        before, self.config = self.config, config
        self._key = key
        self.sender.reconfigure(sender_settings(config), self.transport)
        self.admission.set_limits(config.outbox.events_max, config.outbox.disk_free_min)
        if self.spool is not None:
            self.spool.disk_free_min = config.outbox.disk_free_min
        self.door.configure(
            config.defaults.for_events(),
            config.komodor.event_type_max,
            config.intake.event_bytes_max,
            config.outbox.ttl_s,
        )
        self.outbox.set_windows(config.dedup.key_window_s, config.dedup.repeat_window_s)
        self._keeper.retain_delivered_s = config.outbox.retain_delivered_s
        self.metrics.limits(
            events_max=config.outbox.events_max, disk_free_min_bytes=config.outbox.disk_free_min
        )
        if old is not transport:
            task = asyncio.get_running_loop().create_task(_close_later(old, before))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return needs_restart(names)

    def _damage_found(self, seq: int, detail: str) -> None:
        self._log.error(
            "damage.found",
            seq=seq,
            detail=detail,
            hint="what is left of it is kept in the table `damaged`; check the disk",
        )

    async def close(self) -> None:
        """After the sender has ended."""
        self._reports.cancel()
        for task in tuple(self._closing):
            task.cancel()
        await self.transport.close()
        await self.outbox.stop()


def _destination(sender: Sender, election: Election | None) -> Destination:
    if election is None:
        return sender
    from outboxd.agent.election import SharedDestination

    return SharedDestination(sender, election)


def _election(outbox: Outbox, opened: Opened, clock: Clock) -> Election | None:
    """Who delivers is a question only where several share an outbox."""
    if not isinstance(opened, SharedOutbox):
        return None
    from outboxd.agent.election import Election

    return Election(outbox, opened.connections, clock)


async def _close_later(transport: Transport, config: Config) -> None:
    """Requests under way may still use it for as long as one may last."""
    await asyncio.sleep(config.komodor.request_timeout_s)
    await transport.close()
