"""A handler for `logging` that turns records into events.

    logging.getLogger().addHandler(OutboxdHandler(level=logging.ERROR, services=["billing"]))

It must never block or fail the program that logs: a record goes into a bounded
queue, one daemon thread hands it in, and where the queue is full the record is
dropped and counted, and the next event tells how many. At the program's end it
waits a bounded time for what is still queued; the rest goes into the spool.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

from outboxd.config.load import Config, load_client
from outboxd.errors import OutboxdError
from outboxd.event.komodor import EVENT_TYPE_MAX, build
from outboxd.producer.hand_in import hand_in, hand_to_spool
from outboxd.times import rfc3339

QUEUE_MAX = 1000
FLUSH_TIMEOUT_S = 5.0
SUMMARY_CHARACTERS_MAX = 1000
EXCEPTION_CHARACTERS_MAX = 8000
# Where an agent that hangs would keep a crashing program waiting, the spool is near.
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 1.0, 3.0

_this_thread = threading.local()


class OutboxdHandler(logging.Handler):
    """Each record at or above `level` becomes an event.

    `event_type` is a %-format over the record's attributes, as a logging
    format is; the summary is the record's message. `details` are added to each
    event's own: logger, level, place, process, and the exception if there is one.
    """

    def __init__(
        self,
        level: int | str = logging.ERROR,
        *,
        event_type: str = "log %(levelname)s",
        clusters: Sequence[str] = (),
        namespaces: Sequence[str] = (),
        services: Sequence[str] = (),
        details: Mapping[str, object] | None = None,
        config: str | None = None,
        socket: str | None = None,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        super().__init__(level)
        self.dropped = 0  # records that found the queue full, or no place to be stored
        self._event_type = event_type
        self._scope = (list(clusters), list(namespaces), list(services))
        self._details = dict(details or {})
        self._config_path = config
        self._config: Config | None = None
        self._socket = socket
        self._untold = 0  # of `dropped`, those that no event has told of yet
        self._queue_max = queue_max
        self._start_afresh()
        _handlers.add(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue it; what comes from handing in itself is left alone."""
        if getattr(_this_thread, "handing_in", False):
            return
        try:
            data = self._event(record)
            self._ensure_thread()
            self._idle.clear()
            self._queue.put_nowait(data)
        except queue.Full:
            self._count_dropped()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until what is queued is handed in, or for `FLUSH_TIMEOUT_S`."""
        self.wait(FLUSH_TIMEOUT_S if not _Ending.has_waited else 0.0)

    def wait(self, timeout_s: float) -> bool:
        """Wait until all that is queued is handed in; False if it was not in time."""
        deadline_s = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and not self._is_done():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._idle.wait(min(left_s, 0.5))
        return self._is_done()

    def close(self) -> None:
        self.flush()
        _handlers.discard(self)
        super().close()

    def _start_afresh(self) -> None:
        """No thread yet, nothing queued: at the start, and in a child after a fork."""
        self._queue: queue.Queue[bytes] = queue.Queue(self._queue_max)
        self._in_hand: bytes | None = None
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._count_lock = threading.Lock()

    def _ensure_thread(self) -> None:
        with self._thread_lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._work, name="outboxd-handler", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        _this_thread.handing_in = True
        while True:
            data = self._in_hand = self._queue.get()
            try:
                self._hand_in(data)
                self._tell_of_dropped()
            except Exception:
                self._count_dropped()
            finally:
                self._in_hand = None
                self._queue.task_done()
                if self._is_done():
                    self._idle.set()

    def _hand_in(self, data: bytes) -> None:
        if self._config is None:
            self._config = load_client(self._config_path)
        hand_in(
            data,
            self._config,
            self._socket,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            answer_timeout_s=ANSWER_TIMEOUT_S,
        )

    def _spool_rest(self) -> None:
        """What the agent did not take in time goes straight into the spool."""
        try:
            config = self._config or load_client(self._config_path)
            in_hand = self._in_hand
            if in_hand is not None:
                # The agent may yet take it: it has a dedup key, so it will be one event.
                hand_to_spool(in_hand, config, "the program ended")
            while True:
                hand_to_spool(self._queue.get_nowait(), config, "the program ended")
        except (queue.Empty, OutboxdError):
            return

    def _tell_of_dropped(self) -> None:
        with self._count_lock:
            untold, self._untold = self._untold, 0
        if not untold:
            return
        try:
            self._hand_in(
                build(
                    "log records dropped",
                    f"{untold} log records came faster than they could be stored",
                    "warning",
                    *self._scope,
                    {**self._details, "dropped": untold},
                )
            )
        except OutboxdError:
            with self._count_lock:
                self._untold += untold

    def _count_dropped(self) -> None:
        with self._count_lock:
            self.dropped += 1
            self._untold += 1
            first = self.dropped == 1
        if first and logging.raiseExceptions and sys.stderr is not None:
            # Once, and not by logging: that would come back here.
            sys.stderr.write(
                "outboxd: log records are dropped: they cannot be stored fast enough,"
                " or not at all; `outboxd status` may tell why\n"
            )

    def _is_done(self) -> bool:
        return self._queue.unfinished_tasks == 0

    def _event(self, record: logging.LogRecord) -> bytes:
        """The record as an event, in the thread that logs: what it refers to may change."""
        message = _clean(record.getMessage())
        summary, _, rest = message.partition("\n")
        details: dict[str, object] = {
            "logger": record.name,
            "level": record.levelname,
            "place": f"{record.pathname}:{record.lineno}",
            "process": record.process,
        }
        if rest or len(summary) > SUMMARY_CHARACTERS_MAX:
            details["message"] = _cut(message, EXCEPTION_CHARACTERS_MAX)
        if record.exc_info and record.exc_info[0] is not None:
            formatter = self.formatter or _FORMATTER
            text = _clean(formatter.formatException(record.exc_info))
            details["exception"] = record.exc_info[0].__name__
            # Its end says what happened, its beginning only how it came there.
            details["traceback"] = text[-EXCEPTION_CHARACTERS_MAX:]
        elif record.exc_text:
            details["traceback"] = _clean(record.exc_text)[-EXCEPTION_CHARACTERS_MAX:]
        return build(
            _cut(_clean(self._event_type % record.__dict__), EVENT_TYPE_MAX),
            _cut(summary, SUMMARY_CHARACTERS_MAX) or "(empty message)",
            _severity(record.levelno),
            *self._scope,
            {**details, **self._details},
            f"outboxd-{os.urandom(16).hex()}",
            rfc3339(int(record.created * 1000)),
        )


def _severity(level: int) -> str:
    if level >= logging.ERROR:
        return "error"
    return "warning" if level >= logging.WARNING else "information"


def _clean(text: str) -> str:
    """What no event may hold, replaced: U+0000 and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


class _Ending:
    """Whether the program's end has waited already: `logging` flushes once more, and
    then once more to close, and the sum must stay bounded."""

    has_waited = False


def _flush_all() -> None:
    """At the program's end: all handlers within one bound."""
    deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
    for handler in list(_handlers):
        handler.wait(max(0.0, deadline_s - time.monotonic()))
        handler._spool_rest()
    _Ending.has_waited = True


def _after_fork() -> None:
    """A forked child has no such thread, and what is queued is its parent's to hand in."""
    _this_thread.handing_in = False
    for handler in list(_handlers):
        handler._start_afresh()


_FORMATTER = logging.Formatter()
_handlers: weakref.WeakSet[OutboxdHandler] = weakref.WeakSet()
atexit.register(_flush_all)
os.register_at_fork(after_in_child=_after_fork)
