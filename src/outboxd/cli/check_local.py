"""What `check` looks at on this machine: directories, disk, socket, key file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from outboxd.cli.agent import AgentQueue, NoAgent
from outboxd.cli.findings import Finding, bad, good, note
from outboxd.cli.offline import FileQueue, free_bytes
from outboxd.config.load import Config
from outboxd.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    NotPermitted,
    OutboxdError,
)
from outboxd.units import format_size

LITTLE_SPACE_SHARE = 4  # free disk below so many times the minimum is worth a note


def directories(config: Config) -> Iterator[Finding]:
    """Where outbox and spool lie, or would lie."""
    yield _directory("outbox", os.path.dirname(os.path.abspath(config.outbox.path)))
    yield _directory("spool", config.intake.spool, others_may_write=True)
    parts = [os.path.join(config.intake.spool, name) for name in ("tmp", "new", "rejected")]
    there = [part for part in parts if os.path.isdir(part)]
    if len({os.stat(part).st_dev for part in there}) > 1:
        yield bad(
            "spool",
            f"{', '.join(there)} are on several file systems",
            "put all of [intake] spool on one: a rename moves no file between two",
            EX_CONFIG,
        )
    yield _directory("socket", os.path.dirname(os.path.abspath(config.intake.socket)))


def disk(config: Config) -> Finding:
    """Free space against what intake wants."""
    free = free_bytes(config.outbox.path)
    least = config.outbox.disk_free_min
    if free is None:
        return note("disk", "its free space cannot be read", "look at [outbox] path")
    if free < least:
        return bad(
            "disk",
            f"{format_size(free)} free, and intake refuses below {format_size(least)}",
            "make room, or lower [outbox] disk_free_min",
            EX_TEMPFAIL,
        )
    if free < least * LITTLE_SPACE_SHARE:
        told = f"{format_size(free)} free; intake refuses below {format_size(least)}"
        return note("disk", told, "make room before an outage fills it")
    return good("disk", f"{format_size(free)} free")


def agent(config: Config, path: str) -> tuple[bool, Finding]:
    """Whether an agent answers on the socket; else whether the outbox could be opened."""
    try:
        queue = AgentQueue(path)
    except NoAgent:
        return False, _outbox_file(config)
    except NotPermitted as error:
        return False, bad("agent", error.message, error.hint or "use sudo", EX_NOPERM)
    except OutboxdError as error:
        return False, bad("agent", error.message, error.hint or "see its log", EX_UNAVAILABLE)
    try:
        status = queue.status()
    except OutboxdError as error:
        return False, bad("agent", error.message, error.hint or "see its log", EX_UNAVAILABLE)
    finally:
        queue.close()
    if not status["intake"]["accepting"]:
        told = f"it answers at {path} and takes no events: {status['intake']['reason']}"
        return True, bad("agent", told, "`outboxd status` says more", EX_TEMPFAIL)
    if status["destination"]["state"] == "held":
        told = f"it answers at {path}; the destination is held: {status['destination']['reason']}"
        return True, note("agent", told, "mend that, or `outboxd release`")
    return True, good("agent", f"version {status['version']} answers at {path}")


def key_file(config: Config) -> Finding | None:
    """Who may read the key."""
    path = config.komodor.api_key_file
    if not path or os.environ.get("KOMODOR_API_KEY"):
        return None
    mode = os.stat(path).st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        told = f"anyone may read {path} (mode {stat.S_IMODE(mode):04o})"
        return note("API key file", told, f"chmod 600 {path}")
    return good("API key file", path)


def _directory(name: str, path: str, others_may_write: bool = False) -> Finding:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _to_be_made(name, path)
    except PermissionError:
        return bad(name, f"no permission to look at {path}", "use sudo", EX_NOPERM)
    except OSError as error:
        return bad(name, f"{path}: {error.strerror}", "name another path", EX_CONFIG)
    if not stat.S_ISDIR(status.st_mode):
        return bad(name, f"{path} is no directory", "move it away, or name another", EX_CONFIG)
    mode = stat.S_IMODE(status.st_mode)
    open_to_all = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
    if open_to_all and not others_may_write:
        told = f"anyone may write in {path} (mode {mode:04o})"
        return note(name, told, f"chmod o-w {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        told = f"this user may not write in {path} (mode {mode:04o})"
        hint = "use sudo, or check as the agent's user: it must be able to write there"
        return bad(name, told, hint, EX_NOPERM)
    return good(name, f"{path} (mode {mode:04o})")


def _to_be_made(name: str, path: str) -> Finding:
    """It is not there yet: the agent makes it, if it may."""
    parent = path
    while not os.path.lexists(parent) and parent != "/":
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return bad(name, f"{parent} is no directory", f"{path} is to be below it", EX_CONFIG)
    if not os.access(parent, os.W_OK | os.X_OK):
        told = f"{path} is not there, and this user may not make it in {parent}"
        return bad(name, told, "make it for the agent's user, or name another", EX_NOPERM)
    return good(name, f"{path} is not there yet; the agent makes it")


def _outbox_file(config: Config) -> Finding:
    """No agent runs: whether one could open the outbox."""
    try:
        queue = FileQueue(config)
    except NotPermitted as error:
        return bad("agent", error.message, error.hint or "use sudo", EX_NOPERM)
    except OutboxdError as error:
        return bad("agent", error.message, error.hint or "see the agent's log", error.exit_code)
    try:
        pending = queue.status()["outbox"]["pending"]
    finally:
        queue.close()
    hint = "start it with `outboxd run` or `systemctl start outboxd`"
    waiting = f"; {pending} events wait in the outbox" if pending else ""
    return note("agent", f"none is running{waiting}", hint)
