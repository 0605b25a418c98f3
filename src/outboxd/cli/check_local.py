"""What `check` looks at on this machine: directories, disk, socket, port, key.

With the permissions of whoever runs it; whether those are the agent's is for
`check` to see to. Nothing is changed.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator

from outboxd.cli.agent import AgentQueue
from outboxd.cli.offline import FileQueue, free_bytes
from outboxd.cli.service import SystemdUnit, unit_of
from outboxd.config.api_key import ApiKey
from outboxd.config.sections import Config
from outboxd.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_TEMPFAIL,
    ConfigError,
    NotPermitted,
    OutboxdError,
)
from outboxd.findings import Finding, bad, good, note
from outboxd.serve import sockets
from outboxd.units import format_size

LITTLE_SPACE_SHARE = 4  # free disk below so many times the minimum is worth a note


def directories(config: Config, service: SystemdUnit | None) -> Iterator[Finding]:
    """Where outbox, spool and socket lie, or would lie."""
    if not config.outbox.url:
        yield from _of_files(config, service)
    path = config.intake.socket
    yield _directory("socket", os.path.dirname(os.path.abspath(path)), service)
    try:
        sockets.check_free_of_others(path, f"[intake] socket = {path!r}")
    except ConfigError as error:
        yield bad("socket", error.message, error.hint or "choose another path", EX_CONFIG)


def _of_files(config: Config, service: SystemdUnit | None) -> Iterator[Finding]:
    outbox = config.outbox.path
    yield _directory("outbox", os.path.dirname(os.path.abspath(outbox)), service)
    for path in (outbox, f"{outbox}-wal", f"{outbox}.lock"):
        if os.path.lexists(path) and not os.path.isfile(path):
            yield bad("outbox", f"{path} is no regular file", "move it away", EX_CONFIG)
    spool = config.intake.spool
    yield _directory("spool", spool, service, is_of_spool=True)
    parts = [os.path.join(spool, name) for name in ("tmp", "new", "rejected")]
    for part in filter(os.path.lexists, parts):
        found = _directory("spool", part, service, is_of_spool=True)
        if found.hint:
            yield found
    there = [part for part in parts if os.path.isdir(part)]
    if len({os.stat(part).st_dev for part in there}) > 1:
        yield bad(
            "spool",
            f"{', '.join(there)} are on several file systems",
            "put all of [intake] spool on one: a rename moves no file between two",
            EX_CONFIG,
        )
    if unit_of(config) is not None:
        yield from _closed_to_producers(there)


def _closed_to_producers(parts: list[str]) -> Iterator[Finding]:
    """A service's spool is for the members of a group, who write and rename in it."""
    for part in parts:
        mode = stat.S_IMODE(os.stat(part).st_mode)
        if os.path.basename(part) == "rejected" or mode & 0o030 == 0o030:
            continue
        told = f"the group may not hand in: {part} has mode {mode:04o}"
        hint = "`systemd-tmpfiles --create` makes it as it should be (3730)"
        yield bad("spool", told, hint, EX_NOPERM)


def disk(config: Config) -> Finding:
    """Free space against what intake wants."""
    if config.outbox.url:
        return good("disk", "no event is kept on this host")
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


def agent(queue: AgentQueue) -> Finding:
    """How a running agent says that it is; raises OutboxdError where it says nothing."""
    status, path = queue.status(), queue.socket_path
    if not status["intake"]["accepting"]:
        told = f"it answers at {path} and takes no events: {status['intake']['reason']}"
        return bad("agent", told, "`outboxd status` says more", EX_TEMPFAIL)
    if status["destination"]["state"] == "held":
        told = f"it answers at {path}; the destination is held: {status['destination']['reason']}"
        return note("agent", told, "mend that, or `outboxd release`")
    return good("agent", f"version {status['version']} answers at {path}")


def same_configuration(queue: AgentQueue, config: Config) -> Finding:
    """Whether the agent at this socket is the one of this configuration."""
    name, told = "agent", f"{config.source or 'the built-in defaults'} is its configuration"
    status = queue.status()
    theirs = status["destination"]["endpoint"]
    if theirs == config.komodor.endpoint:
        return good(name, told)
    told = f"it runs with another configuration: it sends to {theirs}"
    return bad(name, told, "name its own with -c, or restart it with this one", EX_CONFIG)


def answers(config: Config) -> bool:
    """Whether an agent listens on the socket."""
    try:
        AgentQueue(config.intake.socket).close()
    except OutboxdError:
        return False
    return True


def side_parts(config: Config, running: bool) -> Iterator[Finding]:
    """The page's port and the text file: they never stop an agent, and are missed all the same.

    `running`: an agent has the port, and says itself how that stands."""
    ports = {"page": (config.http.listen, "[http] listen"),
             "gateway": (config.intake.listen, "[intake] listen")}  # fmt: skip
    for name, (listen, setting) in ports.items():
        if not listen or listen.startswith("unix:") or running:
            continue
        try:
            sockets.bind_tcp(listen, setting).socket.close()
        except ConfigError as error:
            yield bad(name, error.message, error.hint or "choose another", EX_CONFIG)
    path = config.metrics.textfile
    if path:
        directory = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            told = f"[metrics] textfile: {path} is a directory"
            yield bad("textfile", told, "name a file in it", EX_CONFIG)
        elif not os.access(directory, os.W_OK | os.X_OK):
            told = f"[metrics] textfile: this user may not write in {directory}"
            hint = f"make it, and give it to the agent's user or group; {_if_read_only(directory)}"
            yield bad("textfile", told, hint, EX_NOPERM)


def secrets(config: Config) -> Iterator[Finding]:
    """What stands in the configuration and should not be read by all."""
    source = config.komodor.proxy_file or config.source
    if source is None or "@" not in config.komodor.proxy:
        return
    mode = stat.S_IMODE(os.stat(source).st_mode)
    if mode & stat.S_IROTH:
        told = f"anyone may read the proxy's password in {source} (mode {mode:04o})"
        hint = "a file that all may read is no place for it; producers warn and go on without"
        yield bad("proxy", told, f"{hint}: chmod o-r {source}, chgrp outboxd {source}", EX_NOPERM)


def sandbox(config: Config, service: SystemdUnit) -> Iterator[Finding]:
    """Whether the unit lets the agent write where the configuration wants it to."""
    for name, path in (
        ("outbox", config.outbox.path and os.path.dirname(os.path.abspath(config.outbox.path))),
        ("spool", config.intake.spool),
        ("textfile", os.path.dirname(config.metrics.textfile)),
    ):
        if path and not service.may_write(path):
            told = f"{service.unit} may not write in {path}"
            yield bad(name, told, service.drop_in(path), EX_NOPERM)


def key(config: Config, found: ApiKey) -> Finding | None:
    """Whether there is a key, where it comes from, and who else may read it."""
    problem = found.problem
    if problem is not None:
        denied = isinstance(problem.__cause__, PermissionError)
        code = EX_NOPERM if denied else EX_CONFIG
        hint = problem.hint or "name another file"
        if found.value is None:
            return bad("API key", problem.message, hint, code)
        return note("API key", f"{problem.message}; in use: {found.source}", hint)
    if found.value is None:
        hint = "set [komodor] api_key_file, or $KOMODOR_API_KEY for the agent"
        return bad("API key", "there is none", hint, EX_CONFIG)
    path = config.komodor.api_key_file
    if found.source == path:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            told = f"anyone may read {path} (mode {mode:04o})"
            return note("API key file", told, f"chmod 600 {path}")
    return good("API key from", f"{found.source}")


def _directory(
    name: str, path: str, service: SystemdUnit | None, is_of_spool: bool = False
) -> Finding:
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
    if open_to_all and not is_of_spool:
        told = f"anyone may write in {path} (mode {mode:04o})"
        return note(name, told, f"chmod o-w {path}")
    # A spool is listed, too.
    if not os.access(path, os.W_OK | os.X_OK | (os.R_OK if is_of_spool else 0)):
        if _is_read_only(path):
            told = f"{path} is read-only for the agent"
            return bad(name, told, _if_read_only(path, service), EX_NOPERM)
        verb = "read and write" if is_of_spool else "write in"
        told = f"the agent's user may not {verb} {path} ({_owner(status)}, mode {mode:04o})"
        hint = f"give it to that user: chown, or `systemd-tmpfiles --create` for {path}"
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


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _if_read_only(path: str, service: SystemdUnit | None = None) -> str:
    """What to do where a service's sandbox is in the way."""
    if service is not None:
        return service.drop_in(path)
    return f"under systemd its unit needs ReadWritePaths={path} (`systemctl edit outboxd`)"


def _owner(status: os.stat_result) -> str:
    try:
        return f"owner {pwd.getpwuid(status.st_uid).pw_name}"
    except KeyError:
        return f"owner {status.st_uid}"


def outbox_file(config: Config) -> Finding:
    """No agent runs: whether one could open the outbox."""
    try:
        queue = FileQueue(config)
    except NotPermitted as error:
        told = f"none is running, and this user cannot tell how one would do: {error.message}"
        return bad("agent", told, "`sudo outboxd check`", EX_NOPERM)
    except OutboxdError as error:
        return bad("agent", error.message, error.hint or "see the agent's log", error.exit_code)
    try:
        pending = queue.status()["outbox"]["pending"]
    finally:
        queue.close()
    hint = "start it with `outboxd run` or `systemctl start outboxd`"
    waiting = f"; {pending} events wait in the outbox" if pending else ""
    return note("agent", f"none is running{waiting}", hint)
