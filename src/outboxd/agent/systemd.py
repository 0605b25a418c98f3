"""What the agent and systemd tell each other: sd_notify and passed sockets.

Two small protocols of environment variables, a datagram socket and file
descriptors, spoken here without libsystemd. Telling systemd something must
never fail or delay the agent, and means nothing where systemd is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

from outboxd.clock import Clock
from outboxd.errors import ConfigError

FIRST_PASSED_DESCRIPTOR = 3
TELL_S = 0.5  # from a change to its telling


class Notifier:
    """Tells systemd how the agent stands; silent where nobody listens."""

    def __init__(
        self, environ: MutableMapping[str, str] | None = None, clock: Clock | None = None
    ) -> None:
        environ = os.environ if environ is None else environ
        self._clock = clock or Clock()
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environ)

    @property
    def enabled(self) -> bool:
        """Whether somebody listens."""
        return self._address is not None

    def watchdog_interval_s(self) -> float | None:
        """How often to call `watchdog`: a third of the time allowed; None: no need."""
        return None if self.watchdog_s is None else self.watchdog_s / 3

    def ready(self, status: str = "") -> bool:
        """The agent takes events (also the end of a reload)."""
        return self.send("READY=1", *_status(status))

    def reloading(self) -> bool:
        """The configuration is being read anew; `ready` ends it."""
        monotonic_us = int(self._clock.monotonic_s() * 1_000_000)
        return self.send("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}")

    def stopping(self, status: str = "") -> bool:
        """The agent drains and ends."""
        return self.send("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(*_status(text))

    def watchdog(self) -> bool:
        """The agent makes progress. To be called only when it does."""
        return self.send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping will take this much longer from now on."""
        return self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def send(self, *fields: str) -> bool:
        """Send `NAME=value` fields; False where it did not arrive."""
        if self._address is None or not fields:
            return False
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    socket.AF_UNIX,
                    socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                )
            self._socket.sendto("\n".join(fields).encode(), self._address)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class PassedSocket(NamedTuple):
    """A listening socket that systemd made for the agent."""

    name: str  # FileDescriptorName= of its unit, "" if it has none
    socket: socket.socket


def passed_sockets(environ: MutableMapping[str, str] | None = None) -> list[PassedSocket]:
    """Take the listening stream sockets that systemd passed; [] where it passed none.

    They are taken once: the variables are removed, so that no child of this
    process believes them to be its own.
    """
    environ = os.environ if environ is None else environ
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors = range(FIRST_PASSED_DESCRIPTOR, FIRST_PASSED_DESCRIPTOR + int(count))
    fdnames = names.split(":") if names else []
    fdnames += [""] * (len(descriptors) - len(fdnames))
    return [
        PassedSocket(name, _listening(descriptor))
        for descriptor, name in zip(descriptors, fdnames, strict=False)
    ]


def _listening(descriptor: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise _not_a_listener(descriptor)
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _not_a_listener(descriptor) from error
    listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if passed.type != socket.SOCK_STREAM or not listens:
        passed.detach()
        raise _not_a_listener(descriptor)
    passed.setblocking(False)
    return passed


def _not_a_listener(descriptor: int) -> ConfigError:
    return ConfigError(
        f"what systemd passed as file descriptor {descriptor} is no listening stream socket",
        "the socket unit needs ListenStream= and Accept=no",
    )


def _address(text: str) -> str | bytes | None:
    if text.startswith("/"):
        return text
    if text.startswith("@"):  # abstract: no file
        return b"\0" + text[1:].encode()
    return None  # none given, or vsock: that is for virtual machines


def _watchdog_s(environ: MutableMapping[str, str]) -> float | None:
    """The time after which systemd takes silence for a hang."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        if (microseconds := int(environ.get("WATCHDOG_USEC", "0"))) > 0:
            return microseconds / 1_000_000
    return None


def _status(text: str) -> tuple[str, ...]:
    # A line break would begin another field.
    return (f"STATUS={' '.join(text.split())}",) if text else ()


class StatusLine:
    """The line that `systemctl status` shows, kept up with what happens.

    `summary()` is told soon after each `changed`, at most once in `TELL_S`, and not
    at all while nothing changes: an idle agent is not woken for it.
    """

    def __init__(self, notifier: Notifier, summary: Callable[[], str]) -> None:
        self._notifier = notifier
        self._summary = summary
        self._timer: asyncio.TimerHandle | None = None
        self._told = ""

    def changed(self) -> None:
        """Something happened that the line may speak of."""
        if self._timer is None and self._notifier.enabled:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        summary = self._summary()
        if summary != self._told and self._notifier.status(summary):
            self._told = summary
