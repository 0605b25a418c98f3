"""The agent: puts the rooms together, starts them in order and stops them in order.

Start: configuration, outbox (the lock is the first thing that can fail), sender,
intake; ready only when intake is open. Stop: nothing more is sent, what flies
lands or is given up after `drain_timeout`, and is settled; until then events are
taken. Then intake closes, what is in hand is answered, and the outbox closes. It
must never answer for an event that is not committed, whatever happens in between.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import uvloop

from outboxd import __version__
from outboxd.agent.examination import Examination
from outboxd.agent.opening import open_configured
from outboxd.agent.parts import AgentParts
from outboxd.agent.systemd import Notifier, PassedSocket, StatusLine, passed_sockets
from outboxd.api.operation import OperationRoutes
from outboxd.clock import Clock, CorrectedClock
from outboxd.config.api_key import ApiKey, read_api_key
from outboxd.config.load import load
from outboxd.config.sections import Config
from outboxd.errors import OutboxdError, SyncFailed, Unavailable
from outboxd.memory import give_back
from outboxd.observe import logs
from outboxd.outbox.opened import Opened

# A new key ends a hold: whoever put it there watches for that.
KEY_WATCH_S = 2.0
# What a stop takes beside the drain; the service manager is told to wait so long.
STOP_MARGIN_S = 20.0
# Of it, what the last outcomes are given to be written: on a disk, and where a database
# may hang, which is then left with them in flight.
SETTLING_S, SETTLING_SHARED_S = 5.0, 2.0


def run_agent(config_path: str | None) -> int:
    """Run until SIGTERM or SIGINT; the exit code.

    Raises:
        ConfigError: exit code 78.
        OutboxLocked: another agent has the outbox; exit code 75.
    """
    config = load(config_path)
    clock = CorrectedClock() if config.outbox.url else Clock()
    key = read_api_key(config)
    logs.configure(config.log.level, config.log.format)
    logs.keep_secret([key.value])
    tell_key(key)
    passed = passed_sockets()
    opened = open_configured(config, clock)
    # Threads share the interpreter: let the writer have it back soon after its sync.
    sys.setswitchinterval(0.0002)
    agent = Agent(config, config_path, key, opened, passed, clock)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(agent.main())
    finally:
        logs.flush()
    if agent.disk_failed:
        # An orderly end would have SQLite close the file, and sync it once more.
        os._exit(code)
    return code


def tell_key(key: ApiKey) -> None:
    """What is wrong with the key; nothing where there is one and no trouble with it."""
    log = logs.get_logger("agent")
    for problem in key.problems:
        log.warning("key.unusable", error=problem.message, hint=problem.hint)
    if key.value is None:
        log.warning(
            "key.missing",
            hint="set $KOMODOR_API_KEY or [komodor] api_key_file; events are kept until then",
        )


class Agent:
    """One agent, from start to stop."""

    def __init__(
        self,
        config: Config,
        config_path: str | None,
        key: ApiKey,
        opened: Opened,
        passed: list[PassedSocket],
        clock: Clock,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._key = key
        self._opened = opened
        self._passed = passed
        self._clock = clock
        self._log = logs.get_logger("agent")
        self._notifier = Notifier()
        self._stopped = asyncio.Event()
        self._error: OutboxdError | None = None
        self.disk_failed = False  # the outbox was left as it is, not closed
        self._signals = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._sender_task: asyncio.Task[None] | None = None
        self._line: StatusLine | None = None

    async def main(self) -> int:
        """Start, run until told to stop, stop."""
        self._listen_to_signals()
        try:
            await self._start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # see `cli.run`
            await self._stopped.wait()
        except OutboxdError as error:
            self._error = self._error or error
        await self._shut_down()
        if self._error is None:
            self._log.info("agent.stopped")
            return 0
        self._log.error("agent.failed", error=self._error.message, hint=self._error.hint)
        return self._error.exit_code

    # --- start ---

    async def _start(self) -> None:
        self._parts = parts = await AgentParts.make(
            self._config, self._key.value, self._opened, self._clock, random.Random().random
        )
        parts.outbox.on_fatal = self._fail
        self._line = StatusLine(self._notifier, parts.health.summary)
        if self._notifier.enabled:
            parts.tell_changes(self._line.changed)
        examination = Examination(
            self._clock, self._config_path, lambda: self._config, parts.findings
        )
        operation = OperationRoutes(self.reload, examination.findings, parts.operator)
        await parts.open_intake(self._passed, operation.routes())
        self._sender_task = self._spawn("sender", parts.sender.run())
        for name, work in parts.background():
            self._spawn(name, work)
        self._spawn("key", self._watch_key())
        interval_s = self._notifier.watchdog_interval_s()
        if interval_s is not None:
            self._spawn("watchdog", self._feed_watchdog(interval_s))
        counts = parts.outbox.counts
        self._log.info(
            "agent.started",
            version=__version__,
            pid=os.getpid(),
            config=self._config.source or "built-in defaults",
            endpoint=self._config.komodor.endpoint,
            outbox=parts.outbox.path,
            socket=self._config.intake.socket,
            spool=self._config.intake.spool,
            http=parts.page_address,
            pending=counts.pending,
            dead=counts.dead,
        )
        # What the start has made stays: the collector need not look at it again
        # each time, which stops the loop for tens of milliseconds. Not so what it
        # has left behind.
        give_back()
        gc.freeze()
        self._notifier.ready(parts.health.summary())

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A part that ends by itself has failed: the agent starts afresh."""
        if task.cancelled() or self._stopped.is_set():
            return
        error = task.exception()
        if isinstance(error, OutboxdError):
            self._fail(error)
        elif error is not None:
            self._log.error("part.failed", name=task.get_name(), exc_info=error)
            self._fail(OutboxdError(f"internal error in {task.get_name()}: {error!r}"))

    def _fail(self, error: OutboxdError) -> None:
        if self._error is None:
            self._error = error
        self._stopped.set()

    # --- signals ---

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    def _told_to_stop(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            # What is in flight is recorded as such: nothing is lost by it.
            self._log.warning("agent.forced", signal=signal.Signals(number).name)
            logs.flush()
            os._exit(128 + number)
        self._log.info("agent.stopping", signal=signal.Signals(number).name)
        self._stopped.set()

    def _hung_up(self) -> None:
        """SIGHUP: reload; a refusal stands in the log, and nowhere else."""
        with suppress(OutboxdError):
            self.reload()

    def reload(self) -> list[str]:
        """Take a new configuration and key over; a bad one changes nothing.

        Gives the changed settings that only a restart takes over.

        Raises:
            OutboxdError: it was refused, and why.
        """
        if self._stopped.is_set() or getattr(self, "_parts", None) is None:
            raise Unavailable("the agent stops, or has only just started", "try again")
        self._notifier.reloading()
        try:
            config = load(self._config_path)
            key = read_api_key(config)
            if key.value is None and key.problems:
                # A file that is being written, perhaps: what worked is kept.
                key = key._replace(value=self._key.value, source=self._key.source)
            logs.keep_secret([self._key.value, key.value])
            left = self._parts.reconfigure(config, key.value)
            logs.configure(config.log.level, config.log.format)
        except OutboxdError as error:
            self._parts.metrics.reload(False)
            self._log.error(
                "config.refused",
                error=error.message,
                hint=error.hint,
                effect="the configuration before stays in force",
            )
            raise
        else:
            self._config, self._key = config, key
            self._parts.metrics.reload(True)
            self._log.info("config.reloaded", needs_restart=left or None)
            tell_key(key)
            return left
        finally:
            self._notifier.ready(self._parts.health.summary())

    # --- while it runs ---

    async def _watch_key(self) -> None:
        """A new content of the key file is taken over at once: it may end a hold."""
        while True:
            await asyncio.sleep(KEY_WATCH_S)
            if self._parts.key_file() is None:
                continue  # a reload may name one
            known = self._key
            found = await asyncio.to_thread(read_api_key, self._config)
            if self._key is not known:
                continue  # a reload has read it since, and perhaps another file
            if found.problem is not None and str(found.problem) != str(self._key.problem):
                self._log.warning(
                    "key.unusable", error=found.problem.message, hint=found.problem.hint
                )
            before, self._key = known.value, found
            if found.value is None:
                # It is being replaced, perhaps: the one in memory stays in use.
                self._key = found._replace(value=before)
            elif found.value != before:
                logs.keep_secret([before, found.value])
                self._log.info("key.changed", source=found.source)
                self._parts.set_key(found.value)

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Only while writer and sender get on with their work."""
        while True:
            if self._parts.health.fault() is None:
                self._notifier.watchdog()
            if self._line is not None:
                self._line.changed()  # what changes with time alone
            await asyncio.sleep(interval_s)

    # --- stop ---

    async def _shut_down(self) -> None:
        self._notifier.stopping("draining")
        parts = getattr(self, "_parts", None)
        if parts is None:
            self._opened.close()
            return
        self.disk_failed = parts.outbox.fatal is not None
        drain_timeout_s = 0.0 if self.disk_failed else self._config.delivery.drain_timeout_s
        self._notifier.extend_timeout(drain_timeout_s + STOP_MARGIN_S)
        self._stopped.set()
        parts.sender.stop(drain_timeout_s)
        if self._sender_task is not None:
            # Meanwhile events are taken: what flies must not make a producer wait.
            # It ends within the drain, but where a database does not answer.
            settling_s = SETTLING_SHARED_S if parts.outbox.is_shared else SETTLING_S
            await asyncio.wait({self._sender_task}, timeout=drain_timeout_s + settling_s)
        await parts.give_up_delivery()
        await parts.close_intake()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await parts.close()
        except SyncFailed as error:
            self._error = self._error or error
        self.disk_failed = parts.outbox.fatal is not None
        self._opened.release()
        if self._line is not None:
            self._line.close()
        self._notifier.close()
