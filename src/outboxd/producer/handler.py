"""A handler for `logging` that turns records into events.

    logging.getLogger().addHandler(OutboxdHandler(level=logging.ERROR, services=["billing"]))

A record is in the spool when the call that logged it returns. So there is
nothing to flush, no thread to start and no lock to wait for, and whatever ends
the process next (`os._exit`, a signal, the interpreter's own end) loses none:
it works alike in a child of any kind, in a signal handler, in a destructor and
while the interpreter is finalizing. It costs a few system calls and waits for
no disk and no agent; what a power cut can take is what the kernel has not
written yet.

It must never raise into the program that logs, and never lose a record without
a word: what cannot be kept is counted, told on stderr, and the next event that
can be stored tells how many there were.

Where no agent reads the spool (a container that got the socket alone), a
record goes over the socket, with a short end to every wait.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from time import monotonic, time_ns

from outboxd.errors import OutboxdError
from outboxd.event import jsontext
from outboxd.event.komodor import EVENT_TYPE_MAX, Event, build, parse
from outboxd.producer.hand_in import Stored, ask, compose, find_place
from outboxd.producer.messages import write
from outboxd.producer.spool import NotStored, put

RECORDS_PER_MINUTE_MAX = 60_000
SUMMARY_CHARACTERS_MAX = 1000
EXCEPTION_CHARACTERS_MAX = 8000
# How deep records may be logged from within the handler's own work: by a signal
# handler (which the next signal interrupts) or a destructor that runs in its midst, or
# by the `__str__` of an argument. What goes deeper logs itself for ever; the
# interpreter's own limit, a thousand calls, would come at three times that.
NESTED_MAX = 32
# An agent that takes longer has trouble, and the spool is near.
CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 0.25, 1.0
SOCKET_REST_S = 30.0  # for so long after a failure the socket is not tried again
# Log records are the first to leave a short disk to the others. The agent itself
# refuses events below `[outbox] disk_free_min`, which is 64 MiB by default.
FREE_BYTES_MIN, FREE_SHARE_MIN = 256 << 20, 0.05
FREE_INODES_MIN = 20_000


class OutboxdHandler(logging.Handler):
    """Each record at or above `level` becomes an event.

    `event_type` is a %-format over the record's attributes, as a logging
    format is; the summary is the record's message. `details` are added to each
    event's own: logger, level, place, process, and the exception if there is one.

    `config` is the path of a configuration file, for the socket and the spool.
    With `socket`, the path of an agent's socket, records go there first.

    Raises EventError where scope or details are none that an event may have.
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
        config: str | os.PathLike[str] | None = None,
        socket: str | os.PathLike[str] | None = None,
        records_per_minute_max: int = RECORDS_PER_MINUTE_MAX,
    ) -> None:
        super().__init__(level)
        self._event_type = event_type
        checked = parse(
            build("log", "a first look", "error", clusters, namespaces, services, details)
        )
        self._scope = checked.scope
        # As text: while the interpreter finalizes nothing can be imported, and
        # the encoding of nested values needs `json`.
        self._details = (checked.details or "{}")[1:-1]
        self._detail_names = frozenset(details or ())
        self._records_per_minute_max = records_per_minute_max
        place = find_place(None if config is None else os.fspath(config))
        self._spool = place.spool
        self._socket = place.socket if socket is None else os.fspath(socket)
        self._asks_first = socket is not None
        self._counts = _Counts()
        self._nesting = threading.local()

    @property
    def dropped(self) -> int:
        """Records of this process that could not be kept."""
        return self._counts_here().dropped.value()

    def handle(self, record: logging.LogRecord) -> bool:
        """As `Handler.handle`, but without its lock: nothing here is shared that needs one,
        and a lock may be held by whatever a signal or a fork interrupted."""
        allowed = self.filter(record)
        if allowed:
            self.emit(allowed if isinstance(allowed, logging.LogRecord) else record)
        return bool(allowed)

    def emit(self, record: logging.LogRecord) -> None:
        """Store it, now."""
        counts = self._counts_here()
        depth = getattr(self._nesting, "depth", 0)
        self._nesting.depth = depth + 1
        try:
            if depth >= NESTED_MAX:
                raise NotStored("logging them logs again, without end")
            counts.admit(self._records_per_minute_max)
            self._store(self._event(record), counts)
            self._tell_of_dropped(counts)
        except BaseException as error:
            self._count_dropped(counts, error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C, or what a signal handler raised: it is the program's
        finally:
            self._nesting.depth = depth

    def _counts_here(self) -> _Counts:
        """This process's own: a child starts with its parent's."""
        if self._counts.process != os.getpid():
            self._counts = _Counts()
        return self._counts

    def _store(self, event: Event, counts: _Counts) -> None:
        into_spool = not self._asks_first and self._is_spool_read()
        if into_spool:
            self._check_disk()
            try:
                self._put(event)
            except NotStored as error:
                not_stored = error  # this user may have no right to; over the socket it may
            else:
                return
        if monotonic() >= counts.socket_rests_until_s:
            if isinstance(self._ask(event), Stored):
                return
            counts.socket_rests_until_s = monotonic() + SOCKET_REST_S
        if into_spool:
            raise not_stored
        self._put(event)

    def _put(self, event: Event) -> None:
        put(self._spool, compose(event) + b"\n", synced=False)

    def _ask(self, event: Event) -> Stored | str:
        return ask(
            event,
            self._socket,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            answer_timeout_s=ANSWER_TIMEOUT_S,
        )

    def _is_spool_read(self) -> bool:
        """Whether an agent has ever opened this spool: it alone makes `rejected/`, and who
        hands in with no agent there makes the rest."""
        try:
            os.stat(f"{self._spool}/rejected")
        except OSError:
            return False
        return True

    def _check_disk(self) -> None:
        disk = os.statvfs(self._spool)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < min(FREE_BYTES_MIN, disk.f_blocks * disk.f_frsize * FREE_SHARE_MIN):
            message = f"the disk of {self._spool} has {free_bytes >> 20} MiB left"
            raise NotStored(message, "make room on it (see `df -h`), or start the agent")
        # Some file systems have no fixed number of inodes, and report none.
        if disk.f_files and disk.f_favail < min(FREE_INODES_MIN, disk.f_files * FREE_SHARE_MIN):
            message = f"the disk of {self._spool} has {disk.f_favail} inodes left"
            raise NotStored(message, "remove files from it (see `df -i`), or start the agent")

    def _tell_of_dropped(self, counts: _Counts) -> None:
        """In an event of its own, once it can be stored; by one at a time."""
        dropped = counts.dropped.value()
        if dropped == counts.told:
            return
        try:
            baton = counts.baton.pop()
        except IndexError:
            return  # another thread is at it
        try:
            untold = dropped - counts.told
            event = self._event_of(
                "log records dropped",
                f"{untold} log records could not be kept",
                "warning",
                {"dropped": untold, "process": os.getpid()},
            )
            self._store(event, counts)
            counts.told = dropped
        except (OutboxdError, OSError):
            return  # with the next one, then
        finally:
            counts.baton.append(baton)

    def _count_dropped(self, counts: _Counts, error: BaseException) -> None:
        """Count it, and tell at the first, and each time that their number has doubled."""
        counts.dropped.add()
        dropped = counts.dropped.value()
        if dropped < counts.tell_at or sys.stderr is None or not logging.raiseExceptions:
            return
        counts.tell_at = dropped * 2
        why = str(error) if isinstance(error, OutboxdError) else f"{type(error).__name__}: {error}"
        noun = "record" if dropped == 1 else "records"
        try:
            # Not by logging: that would come back here.
            write(f"outboxd: {dropped} log {noun} could not be kept: {why}\n")
        except Exception:
            return  # it is closed, or full, or of the program's own making: there is no other

    def _event(self, record: logging.LogRecord) -> Event:
        """The record as an event, in the thread that logs: what it refers to may change."""
        message = _clean(_message(record))
        summary, _, rest = message.partition("\n")
        details: dict[str, str | int] = {
            "logger": _clean(record.name),
            "level": _clean(record.levelname),
            "place": _clean(f"{record.pathname}:{record.lineno}"),
            "process": record.process or os.getpid(),
        }
        if rest or len(summary) > SUMMARY_CHARACTERS_MAX:
            details["message"] = _cut(message, EXCEPTION_CHARACTERS_MAX)
        if record.exc_info and record.exc_info[0] is not None:
            details["exception"] = record.exc_info[0].__name__
        traceback = _traceback(record, self.formatter or _FORMATTER)
        if traceback:
            # Its end says what happened, its beginning only how it came there.
            details["traceback"] = _clean(traceback)[-EXCEPTION_CHARACTERS_MAX:]
        return self._event_of(
            _cut(_clean(_type(self._event_type, record)), EVENT_TYPE_MAX) or "log",
            _cut(summary, SUMMARY_CHARACTERS_MAX) or "(empty message)",
            _severity(record.levelno),
            details,
            _moment_ms(record.created),
        )

    def _event_of(
        self,
        event_type: str,
        summary: str,
        severity: str,
        details: Mapping[str, str | int],
        occurred_at: int | None = None,
    ) -> Event:
        own = {name: each for name, each in details.items() if name not in self._detail_names}
        texts = [text for text in (jsontext.encode(own)[1:-1], self._details) if text]
        return Event(
            event_type,
            summary,
            severity,
            self._scope,
            "{" + ",".join(texts) + "}",
            f"outboxd-{os.urandom(16).hex()}",
            time_ns() // 1_000_000 if occurred_at is None else occurred_at,
        )


class _Counts:
    """What one process counts. Threads, signal handlers and destructors come at once, and
    no lock would be safe from all of them: each step is one call that nothing interrupts,
    or may be done twice without harm."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.dropped = _Counter()
        self.told = 0  # of `dropped`, those that an event has told of
        self.tell_at = 1  # so many dropped are told on stderr next
        self.baton: list[None] = [None]  # who has it tells of what was dropped
        self.socket_rests_until_s = 0.0
        self._minute = (monotonic(), itertools.count(1))

    def admit(self, records_per_minute_max: int) -> None:
        """Raises NotStored where records come faster than that: a program that logs in a
        tight loop must neither fill the disk nor keep the others' events waiting."""
        started_s, records = self._minute
        if monotonic() - started_s >= 60:
            records = itertools.count(1)
            self._minute = (monotonic(), records)
        if next(records) > records_per_minute_max:
            raise NotStored(
                f"more than {records_per_minute_max} came within a minute",
                "log less, or give the handler another records_per_minute_max",
            )


class _Counter:
    """A number that anybody may raise at any moment: each step is one call in C."""

    def __init__(self) -> None:
        self._left = itertools.repeat(None, sys.maxsize)

    def add(self) -> None:
        next(self._left)

    def value(self) -> int:
        return sys.maxsize - operator.length_hint(self._left)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        # A slip in the call must not cost the record.
        return f"{_shown(record.msg)} (its arguments do not fit: {type(error).__name__}: {error})"


def _shown(message: object) -> str:
    try:
        return str(message)
    except Exception:
        return f"(a {type(message).__name__} that cannot be shown)"


def _moment_ms(created: object) -> int | None:
    """When a record was made; None where it does not tell, as one from elsewhere may not."""
    try:
        return int(created * 1000)  # type: ignore[operator]
    except (TypeError, ValueError, OverflowError):
        return None


def _type(event_type: str, record: logging.LogRecord) -> str:
    try:
        return event_type % record.__dict__
    except Exception:
        return f"log {record.levelname}"


def _traceback(record: logging.LogRecord, formatter: logging.Formatter) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return record.exc_text
    try:
        return formatter.formatException(record.exc_info)
    except Exception:
        # While the interpreter finalizes, the lines of the source cannot be had.
        _, error, traceback = record.exc_info
        places = []
        while traceback is not None:
            code = traceback.tb_frame.f_code
            places.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
            traceback = traceback.tb_next
        return "\n".join([*places, f"{type(error).__name__}: {error}"])


def _severity(level: int | None) -> str:
    level = level or 0
    if level >= logging.ERROR:
        return "error"
    return "warning" if level >= logging.WARNING else "information"


def _clean(text: object) -> str:
    """As text, and what no event may hold replaced: U+0000 and halves of surrogate pairs.

    A record made from what another program sent (`makeLogRecord`) may have None for a name."""
    return str(text).replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


_FORMATTER = logging.Formatter()
