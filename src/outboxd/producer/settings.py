"""What the producers' side needs of the configuration: the socket and the spool.

The agent refuses a configuration that is wrong; a producer must not, since the
agent may run happily with what it read before, and a job's event must not hang
on a slip somewhere else in that file. So whatever is wrong here is one warning,
and the settings are those that could be read, else the packaged or built-in
ones. It imports nothing of what the agent reads with.
"""

from __future__ import annotations

import os

from outboxd import locations
from outboxd.errors import ConfigError
from outboxd.event.jsontext import shown
from outboxd.event.komodor import EVENT_BYTES_MAX, EVENT_TYPE_MAX
from outboxd.producer import plain_toml
from outboxd.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

CONFIG_BYTES_MAX = 128 * 1024
SOCKET_NAME = "outboxd.sock"
PATH_SHOWN_MAX = 300  # characters of a path in a warning


class ProducerSettings:
    """Where events are handed in, and what is wrong with the configuration that says so."""

    __slots__ = ("event_bytes_max", "event_type_max", "socket", "spool", "warning")

    def __init__(self, socket: str, spool: str) -> None:
        self.socket = socket
        self.spool = spool
        # The agent's own limits, so that what it would refuse is told at once.
        self.event_type_max = EVENT_TYPE_MAX  # code points
        self.event_bytes_max = EVENT_BYTES_MAX
        self.warning: str | None = None


def load(path: str | None = None, environ: Mapping[str, str] = os.environ) -> ProducerSettings:
    """The settings of `path`, else $OUTBOXD_CONFIG, else the system's file, else built-in."""
    named = path or environ.get("OUTBOXD_CONFIG") or None
    source = named or locations.CONFIG_PATH
    try:
        data = _read(source)
    except FileNotFoundError:
        if named is None and not os.path.lexists(source):
            return _built_in(environ)
        return _unread(source, "there is no such file", environ)
    except OSError as error:
        return _unread(source, f"it cannot be read: {error.strerror or error}", environ)
    # Where the system's file does not say (or not legibly), the packaged agent is meant.
    settings = _packaged(environ) if source == locations.CONFIG_PATH else _built_in(environ)
    tables, fault = _tables(data[:CONFIG_BYTES_MAX])
    if len(data) > CONFIG_BYTES_MAX:
        fault = fault or f"it is larger than {CONFIG_BYTES_MAX} bytes"
    _apply(settings, tables, source, fault)
    return settings


def _read(path: str) -> bytes:
    # Not blocking: a FIFO in its place must not stop a job for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
            if len(parts) > 2 * CONFIG_BYTES_MAX // 65536:
                break
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _tables(data: bytes) -> tuple[dict[str, Any], str | None]:
    """The file's tables, and what is wrong with it as TOML."""
    text = data.decode("utf-8", "replace")
    tables, is_whole = plain_toml.read(text)
    if text.startswith("\ufeff") or ("\ufffd" in text and text.encode() != data):
        return tables, "it is not UTF-8, or starts with a byte order mark"
    if is_whole:
        return tables, None
    try:
        import tomllib
    except ImportError:  # Python 3.10, where what is not plain cannot be judged
        return tables, None
    try:
        return tomllib.loads(text), None
    except (ValueError, RecursionError) as error:
        return tables, f"it is not TOML: {shown(str(error), 200)}"


def _apply(
    settings: ProducerSettings, tables: dict[str, Any], source: str, fault: str | None
) -> None:
    """Take what is right; of several faults the first is told."""
    faults = [fault] if fault else []
    intake = _section(tables, "intake", faults)
    komodor = _section(tables, "komodor", faults)
    base = os.path.dirname(os.path.abspath(source))
    if intake.keys() >= {"socket", "spool"}:
        settings.warning = None  # of places that are not needed

    def take(section: Mapping[str, Any], name: str, convert: Callable[[Any], object]) -> None:
        if name not in section:
            return
        try:
            setattr(settings, name, convert(section[name]))
        except (TypeError, ValueError):
            faults.append(f"{name} = {shown(repr(section[name]))} is not allowed")

    take(intake, "socket", lambda value: _path(value, base))
    take(intake, "spool", lambda value: _path(value, base))
    url = _section(tables, "outbox", faults).get("url", "")
    if type(url) is str and url.startswith(("postgresql://", "postgres://")):
        if "spool" not in intake:
            settings.spool = ""  # an agent that shares its outbox with others looks into none
    elif url != "":
        faults.append(f"url = {shown(repr(url))} is not allowed")
    take(intake, "event_bytes_max", _size)
    take(komodor, "event_type_max", _count)
    faults += _unknown(tables)
    if faults:
        _warn(settings, f"{shown(source, PATH_SHOWN_MAX)}: {faults[0]}", "see `outboxd check`")


def _section(tables: dict[str, Any], name: str, faults: list[str]) -> dict[str, Any]:
    section = tables.get(name, {})
    if type(section) is dict:
        return section
    faults.append(f"{name} is a section, not a value")
    return {}


def _path(value: object, base: str) -> str:
    """Relative paths are the configuration file's neighbours, as for the agent."""
    if type(value) is not str or not value or "\0" in value:
        raise ValueError
    return os.path.join(base, os.path.expanduser(value))


def _size(value: object) -> int:
    size_bytes = value if type(value) is int else parse_size(str(value))
    return _count(size_bytes)


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError
    return value


def _built_in(environ: Mapping[str, str]) -> ProducerSettings:
    """Those of a person's own agent. The directories that systemd's variables name are not
    looked at: where a job runs as a service, they are that service's. For a user without a
    home (a number of a container's) no place but the packaged agent's is meant."""
    try:
        directories = locations.user_runtime_dirs(environ)
        spool = f"{locations.user_state_dir(environ)}/spool"
    except ConfigError as error:
        settings = ProducerSettings(locations.PACKAGED_SOCKET, locations.PACKAGED_SPOOL)
        _warn(settings, error.message, error.hint)
        return settings
    sockets = [f"{directory}/{SOCKET_NAME}" for directory in directories]
    return ProducerSettings(next(filter(os.path.exists, sockets), sockets[0]), spool)


def _packaged(environ: Mapping[str, str]) -> ProducerSettings:
    """The packaged agent's, unless this host has none."""
    if os.path.isdir(locations.PACKAGED_SPOOL):
        return ProducerSettings(locations.PACKAGED_SOCKET, locations.PACKAGED_SPOOL)
    return _built_in(environ)


def _unread(source: str, fault: str, environ: Mapping[str, str]) -> ProducerSettings:
    settings = _packaged(environ)
    _warn(settings, f"{shown(source, PATH_SHOWN_MAX)}: {fault}")
    return settings


def _warn(settings: ProducerSettings, fault: str, hint: str | None = None) -> None:
    """What is wrong, and where events go all the same. A file may give a place any name."""
    socket, spool = shown(settings.socket, PATH_SHOWN_MAX), shown(settings.spool, PATH_SHOWN_MAX)
    settings.warning = f"{fault}; going on with the socket {socket} and the spool {spool}"
    if hint:
        settings.warning += f"; {hint}"


def _unknown(tables: dict[str, Any]) -> list[str]:
    """What the file names that no part of outboxd knows."""
    found = []
    for name, table in tables.items():
        if name not in KNOWN:
            found.append(f'unknown section "{shown(name)}"')
            continue
        known = KNOWN[name].split()
        if known and type(table) is dict:
            found += [
                f'unknown key "{shown(key)}" in [{name}]' for key in table if key not in known
            ]
    return found


# Add a new setting here: a test compares these names with those of `outboxd.config`. What
# their values may be the agent says. An empty text: its tables are named by the user.
KNOWN = {
    "komodor": (
        "endpoint api_key_file account event_type_max proxy proxy_file ca_file client_cert "
        "client_key connect_timeout request_timeout retry_after_max allow_plain_http"
    ),
    "intake": (
        "socket socket_mode socket_group read_others spool event_bytes_max listen tls_cert tls_key "
        "client_ca tokens_file connections_max connections_per_peer allow_plain_listen"
    ),
    "defaults": "clusters namespaces services details",
    "outbox": "path url password_file durability events_max disk_free_min retain_delivered ttl",
    "dedup": "key_window repeat_window",
    "delivery": (
        "concurrency_max rate_max backoff_initial backoff_max attempts_max hold_probe "
        "stamp late_after drain_timeout lease order fresh_share report_outage"
    ),
    "http": "listen",
    "metrics": "textfile",
    "log": "level format",
    "webhooks": "",
}
