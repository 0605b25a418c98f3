"""Log lines: one for each change of state, to stderr.

JSON where nobody watches, readable where somebody does. Names are noun dot
past tense (`delivery.settled`), the rest are key-value pairs. An API key never
gets into a line, an event's body only at debug level; writing one never raises
and a line below the level costs next to nothing.

    log = get_logger("sender")
    log.info("destination.held", reason=reason, status=401)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outboxd.clock import Clock
from outboxd.logger import structlog
from outboxd.observe.redact import Redactor
from outboxd.observe.sink import Sink
from outboxd.observe.throttle import Throttle
from outboxd.text import harmless, harmless_json
from outboxd.times import rfc3339

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "console")

# How the journal's levels are numbered (syslog's).
_JOURNAL_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


class Logger(structlog.BoundLoggerBase):
    """A logger whose level can change at any time, with `configure`.

    The methods are structlog's for the level at hand: below it they do nothing
    at all.
    """

    def debug(self, event: str, **values: Any) -> None: ...

    def info(self, event: str, **values: Any) -> None: ...

    def warning(self, event: str, **values: Any) -> None: ...

    def error(self, event: str, **values: Any) -> None: ...

    def exception(self, event: str, **values: Any) -> None:
        """As `error`, with the traceback of the exception being handled."""

    def is_enabled_for(self, level: int) -> bool: ...  # type: ignore[empty-body]


def get_logger(part: str | None = None, **values: Any) -> Logger:
    """A logger for a part of the agent; `values` go into each of its lines."""
    context = dict(values) if part is None else {"part": part, **values}
    return Logger(None, _processors, context)


def configure(level: str = "info", format: str = "auto", descriptor: int = 2) -> None:
    """Set level and format from now on, for loggers that exist as well."""
    assert level in LEVELS
    assert format in FORMATS
    _set_level(level)
    _output.to(Sink(descriptor), format)
    structlog.configure(
        processors=_processors, wrapper_class=Logger, cache_logger_on_first_use=True
    )
    _listen_to_libraries()


def keep_secret(secrets: Iterable[str | None]) -> None:
    """Take these texts (the API key, now and before) out of every line from now on."""
    _redactor.keep_secret(secrets)


def flush() -> None:
    """Tell what was left out so far, as before the end of the program."""
    _output.tell_left_out(_throttle.close())
    _output.tell_lost()


@contextmanager
def captured(level: str = "debug") -> Iterator[list[MutableMapping[str, Any]]]:
    """For tests: gather what is logged instead of writing it."""
    lines: list[MutableMapping[str, Any]] = []

    def gather(_logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
        lines.append({**values, "level": method})
        raise structlog.DropEvent

    before, level_before = list(_processors), _level
    _processors[:] = [gather]
    _set_level(level)
    try:
        yield lines
    finally:
        _processors[:] = before
        _set_level(level_before)


class _Output:
    """Turns the finished line into text and writes it."""

    def __init__(self, sink: Sink) -> None:
        self._clock = Clock()
        self.to(sink, "json")

    def to(self, sink: Sink, format: str) -> None:
        self._sink = sink
        self._journal = sink.is_journal()
        terminal = sink.is_terminal()
        self._json = format == "json" or (format == "auto" and not terminal)
        self._console = structlog.dev.ConsoleRenderer(
            colors=terminal,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )

    def __call__(self, _logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
        self.tell_left_out(_throttle.ended(self._clock.monotonic_s()))
        self.tell_lost()
        try:
            self._say(method, values)
        except Exception:  # whatever could not be put into words, its name can
            self._say(method, {"event": str(values.get("event")), "unprintable": True})
        raise structlog.DropEvent

    def tell_lost(self) -> None:
        lost = self._sink.lost
        told: EventDict = {"event": "lines.lost", "count": lost}
        if lost and self._say("warning", told, counted=False):
            self._sink.told(lost)

    def tell_left_out(self, left_out: Iterable[tuple[Any, int]]) -> None:
        for (level, event, library), count in left_out:
            values: EventDict = {"event": "lines.omitted", "of": event, "count": count}
            self._say(level, values if library is None else {**values, "library": library})

    def _say(self, level: str, values: EventDict, counted: bool = True) -> bool:
        line: EventDict = {
            "timestamp": rfc3339(self._clock.wall_ms()),
            "level": level,
            "event": values.pop("event", ""),
            **values,
        }
        if self._json:
            text = harmless_json(json.dumps(line, ensure_ascii=False))
        else:
            text = str(self._console(None, level, _printable(line)))
        if self._journal:
            mark = f"<{_JOURNAL_PRIORITIES.get(level, 6)}>"
            text = mark + text.replace("\n", "\n" + mark)
        return self._sink.write(text + "\n", counted)


def _printable(values: EventDict) -> EventDict:
    """The same with control characters spelt out, so that no text from outside
    can drive the reader's terminal."""
    return {
        key: harmless(value, lines=True) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _limit(_logger: WrappedLogger, method: str, values: EventDict) -> EventDict:
    """Leave out what repeats; at debug level somebody wants to see it all."""
    if method == "debug":
        return values
    kind = (method, values.get("event"), values.get("library"))
    if _throttle.admit(kind, _clock.monotonic_s()):
        return values
    raise structlog.DropEvent


def _set_level(level: str) -> None:
    """Give every logger the methods for this level (they share one class)."""
    global _level
    filtering = structlog.make_filtering_bound_logger(level)
    for name in ("debug", "info", "warning", "error", "critical", "exception", "log"):
        setattr(Logger, name, vars(filtering)[name])
    for name in ("warn", "fatal", "is_enabled_for", "get_effective_level"):
        setattr(Logger, name, vars(filtering)[name])
    _level = level


class _FromLibraries(logging.Handler):
    """Brings what libraries log (asyncio, httpx) into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        method = "error" if record.levelno >= logging.ERROR else "warning"
        try:
            values = {"library": record.name, "message": record.getMessage()}
            getattr(_library_log, method)("library.reported", exc_info=record.exc_info, **values)
        except Exception:  # a library's faulty log call is not worth an outage
            _library_log.warning("library.reported", library=record.name, message=str(record.msg))


def _listen_to_libraries() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _FromLibraries) for handler in root.handlers):
        root.addHandler(_FromLibraries(level=logging.WARNING))


_clock = Clock()
_throttle = Throttle()
_redactor = Redactor()
_output = _Output(Sink())
_level = "info"
# One list for every logger, changed in place and never replaced.
_processors: list[Processor] = [
    _limit,
    structlog.processors.format_exc_info,
    _redactor,
    _output,
]
_library_log = get_logger()
_set_level(_level)
