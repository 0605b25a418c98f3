"""The words in which every part of outboxd says that something failed.

This room holds error types and exit codes alone and imports nothing but the
interpreter, because what a cron job calls must start at once. An error says
what failed, where, and what to do next; it is raised, never logged and
swallowed.

Exit codes are those of BSD's sysexits.h, which mail programs and cron users
know.
"""

from __future__ import annotations

EX_OK = 0
EX_USAGE = 64  # the command line is wrong
EX_DATAERR = 65  # the event (or an id) is not valid
EX_UNAVAILABLE = 69  # the agent or Komodor cannot be reached
EX_SOFTWARE = 70  # an internal error: ours, please report it
EX_IOERR = 74  # the disk failed a sync: start afresh, never retry it
EX_TEMPFAIL = 75  # could be stored nowhere, try again
EX_NOPERM = 77  # not permitted
EX_CONFIG = 78  # the configuration is wrong


class OutboxdError(Exception):
    """Something failed that its reader can do something about.

    `message` says what failed and where, `hint` what to do next (or None).
    """

    exit_code = EX_SOFTWARE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(OutboxdError):
    """The command line is wrong."""

    exit_code = EX_USAGE


class BadQuery(UsageError):
    """What a listing was asked for is not possible; `field` is the filter's name."""

    def __init__(self, message: str, field: str | None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.field = field


class ConfigError(OutboxdError):
    """The configuration is wrong: names the key, its value and what is allowed."""

    exit_code = EX_CONFIG


class EventError(OutboxdError):
    """An event is not valid; nothing of it was kept.

    `field` is a JSON path such as `$.scope.clusters[0]`, or None where the
    fault lies with the whole text.
    """

    exit_code = EX_DATAERR

    def __init__(self, message: str, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.field = field


class EventTooLarge(EventError):
    """An event is larger than `[intake] event_bytes_max`."""


class UnknownId(OutboxdError):
    """There is no entry with this id."""

    exit_code = EX_DATAERR


def no_entry(id: str) -> UnknownId:
    """There is no entry with this id, or none that the caller may see: told alike."""
    return UnknownId(
        f"there is no entry with the id {id!r}",
        "`outboxd events` lists those there are; what was delivered is pruned after"
        " [outbox] retain_delivered",
    )


class NotPermitted(OutboxdError):
    """The caller may not do this."""

    exit_code = EX_NOPERM


class Unavailable(OutboxdError):
    """The agent or Komodor cannot be reached."""

    exit_code = EX_UNAVAILABLE


class Refused(OutboxdError):
    """The agent takes no events now; try again after `retry_after_s` seconds."""

    exit_code = EX_TEMPFAIL

    def __init__(self, message: str, hint: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class OutboxFull(Refused):
    """The backlog reached `[outbox] events_max`."""


class DiskShort(Refused):
    """Too little room on the disk to commit; nothing was kept."""


class OutboxUnreachable(Refused):
    """The outbox's database cannot be reached, or takes no writes: nothing was kept."""


class CommitUnknown(OutboxdError):
    """The end of a commit was not seen: what became of it is not known. Whoever waits
    for a receipt gets no answer, and asks again with the same key."""

    exit_code = EX_TEMPFAIL


class LeaseLost(OutboxdError):
    """Another gateway delivers: nothing of this turn was written."""


class OutboxLocked(OutboxdError):
    """Another process has this outbox open."""

    exit_code = EX_TEMPFAIL

    def __init__(self, message: str, hint: str | None = None, pid: int | None = None) -> None:
        super().__init__(message, hint)
        self.pid = pid


class OutboxUnusable(OutboxdError):
    """The outbox cannot be opened as it is: a directory in its place, no
    permission, or written by a newer version."""

    exit_code = EX_CONFIG


class SyncFailed(OutboxdError):
    """A sync to disk failed. The kernel may call the lost pages clean, so it
    is never retried: the process must end and start afresh."""

    exit_code = EX_IOERR


class OutboxDamaged(OutboxdError):
    """The outbox is not what was written; the next start sets it aside and salvages.

    `found` says what is wrong, for the next start to tell.
    """

    exit_code = EX_IOERR

    def __init__(self, message: str, hint: str | None = None, found: str = "") -> None:
        super().__init__(message, hint)
        self.found = found or message
