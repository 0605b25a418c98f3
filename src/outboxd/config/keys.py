"""Every key of the configuration: its kind, its default, and what is allowed.

One table, from which loading, messages, the example file's test and the
README's test all read. It only describes and converts; it opens no file.
"""

from __future__ import annotations

from outboxd.errors import ConfigError
from outboxd.event.jsontext import shown
from outboxd.units import (
    DURATION_ALLOWED,
    DURATION_MAX_S,
    SIZE_ALLOWED,
    parse_duration,
    parse_size,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

EVENT_BYTES_MAX = 16 << 20


class Key:
    """One setting. `convert` gives the value that the program uses, or raises ValueError."""

    __slots__ = ("allowed", "attribute", "convert", "default", "name", "section")

    def __init__(
        self,
        section: str,
        name: str,
        default: object,
        allowed: str,
        convert: Callable[[object], object],
        attribute: str | None = None,
    ) -> None:
        self.section = section
        self.name = name
        self.default = default  # as one would write it; None: depends on the environment
        self.allowed = allowed
        self.convert = convert
        self.attribute = attribute or name

    @property
    def label(self) -> str:
        return f"[{self.section}] {self.name}"


def _text(section: str, name: str, default: str, allowed: str) -> Key:
    return Key(section, name, default, allowed, _as_text)


def _path(section: str, name: str) -> Key:
    """A path that is always needed; its default depends on the environment."""
    return Key(section, name, None, "the path of a file or directory", _as_path)


def _optional_path(section: str, name: str, what: str) -> Key:
    return Key(section, name, "", f'the path of {what}, or "" for none', _as_optional_path)


def _whole(section: str, name: str, default: int, least: int, most: int, note: str = "") -> Key:
    allowed = f"a whole number from {least} to {most}{note}"
    return Key(section, name, default, allowed, lambda value: _as_whole(value, least, most))


def _duration(section: str, name: str, default: str, least_s: float = 0.0, note: str = "") -> Key:
    above = "" if least_s == 0 else f", at least {least_s:g} s"

    def convert(value: object) -> float:
        if type(value) is not str:
            raise ValueError
        duration_s = parse_duration(value)
        if not least_s <= duration_s <= DURATION_MAX_S:
            raise ValueError
        return duration_s

    allowed = f"{DURATION_ALLOWED}{above}{note}, in quotes"
    return Key(section, name, default, allowed, convert, f"{name}_s")


def _size(section: str, name: str, default: str, least: int, most: int) -> Key:
    def convert(value: object) -> int:
        size_bytes = value if type(value) is int else parse_size(_as_text(value))
        if not least <= size_bytes <= most:
            raise ValueError
        return size_bytes

    allowed = f"{SIZE_ALLOWED}, from {least} to {most} bytes"
    return Key(section, name, default, allowed, convert)


def _choice(section: str, name: str, default: str, *words: str) -> Key:
    def convert(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    allowed = "one of " + ", ".join(f'"{word}"' for word in words)
    return Key(section, name, default, allowed, convert)


def _switch(section: str, name: str, default: bool) -> Key:
    return Key(section, name, default, "true or false", _as_switch)


def _names(section: str, name: str) -> Key:
    return Key(section, name, [], 'a list of names, such as ["production"]', _as_names)


def _as_text(value: object) -> str:
    if type(value) is not str or "\0" in value:
        raise ValueError
    return value


def _as_path(value: object) -> str:
    if value == "":
        raise ValueError
    return _as_text(value)


def _as_optional_path(value: object) -> str:
    return _as_text(value)


def _as_whole(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError
    return value


def _as_share(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= float(str(value)) <= 1:
        raise ValueError
    return float(str(value))


def _as_switch(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _as_mode(value: object) -> str:
    text = _as_text(value)
    if not (3 <= len(text) <= 4 and text.strip("01234567") == "" and int(text, 8) <= 0o777):
        raise ValueError
    return text


def _as_names(value: object) -> list[str]:
    if type(value) is not list or not all(_as_text(name) for name in value):
        raise ValueError
    return list(value)


def _as_details(value: object) -> dict[str, object]:
    if type(value) is not dict:
        raise ValueError
    for name, detail in value.items():
        _as_text(name)
        if type(detail) not in (bool, int):
            _as_text(detail)
    return dict(value)


_NO_LIMIT = ", 0 for no limit"
_OFF = ', "0s" for none'

KEYS: tuple[Key, ...] = (
    _text(
        "komodor",
        "endpoint",
        "https://api.komodor.com/mgmt/v1/events",
        "a whole URL with its path: https, or http to a loopback address",
    ),
    _optional_path("komodor", "api_key_file", "a file with the API key alone in it"),
    _whole("komodor", "event_type_max", 60, 1, 10_000),
    _text("komodor", "proxy", "", 'the http://, https:// or socks5:// URL of a proxy, or ""'),
    _optional_path("komodor", "proxy_file", "a file with the proxy's URL alone in it"),
    _optional_path("komodor", "ca_file", "a PEM file with the authorities to trust"),
    _optional_path("komodor", "client_cert", "a PEM file with the client's certificate"),
    _optional_path("komodor", "client_key", "a PEM file with the client certificate's key"),
    _duration("komodor", "connect_timeout", "10s", 0.01),
    _duration("komodor", "request_timeout", "30s", 0.01),
    _duration("komodor", "retry_after_max", "1h", 1),
    _switch("komodor", "allow_plain_http", False),
    _path("intake", "socket"),
    Key(
        "intake",
        "socket_mode",
        "0660",
        'octal digits in quotes, such as "0660", up to "0777"',
        _as_mode,
    ),
    _text("intake", "socket_group", "", 'the name of a group of this system, or "" for none'),
    _switch("intake", "read_others", False),
    _path("intake", "spool"),
    _size("intake", "event_bytes_max", "256KiB", 64, EVENT_BYTES_MAX),
    _text("intake", "listen", "", 'host:port, such as "0.0.0.0:8443", or "" for none'),
    _optional_path("intake", "tls_cert", "a PEM file with the listener's certificate"),
    _optional_path("intake", "tls_key", "a PEM file with the certificate's key"),
    _optional_path("intake", "client_ca", "a PEM file with the authority of clients"),
    _optional_path("intake", "tokens_file", "the file that `outboxd token new` writes"),
    _whole("intake", "connections_max", 2000, 1, 1_000_000),
    _whole("intake", "connections_per_peer", 50, 1, 1_000_000),
    _switch("intake", "allow_plain_listen", False),
    _names("defaults", "clusters"),
    _names("defaults", "namespaces"),
    _names("defaults", "services"),
    Key(
        "defaults",
        "details",
        {},
        'a table of texts, whole numbers, true and false, such as { team = "shop" }',
        _as_details,
    ),
    _path("outbox", "path"),
    _text("outbox", "url", "", 'the postgresql:// URL of a database without a password, or ""'),
    _optional_path("outbox", "password_file", "a file with the database's password alone in it"),
    _choice("outbox", "durability", "replicated", "replicated", "local"),
    _whole("outbox", "events_max", 1_000_000, 0, 1_000_000_000, _NO_LIMIT),
    _size("outbox", "disk_free_min", "64MiB", 0, 1 << 50),
    _duration("outbox", "retain_delivered", "7d"),
    _duration("outbox", "ttl", "0s", note=_OFF),
    _duration("dedup", "key_window", "7d", note=_OFF),
    _duration("dedup", "repeat_window", "0s", note=_OFF),
    _whole("delivery", "concurrency_max", 64, 0, 4096, _NO_LIMIT),
    _whole("delivery", "rate_max", 0, 0, 1_000_000, _NO_LIMIT),
    _duration("delivery", "backoff_initial", "1s", 0.001),
    _duration("delivery", "backoff_max", "5m", 0.001),
    _whole("delivery", "attempts_max", 20, 0, 1_000_000, _NO_LIMIT),
    _duration("delivery", "hold_probe", "5m", 0.01),
    _choice("delivery", "stamp", "late", "late", "always", "never"),
    _duration("delivery", "late_after", "60s"),
    _duration("delivery", "drain_timeout", "10s"),
    _duration("delivery", "lease", "15s", 1),
    _choice("delivery", "order", "mixed", "mixed", "fifo"),
    Key("delivery", "fresh_share", 0.25, "a number from 0 to 1", _as_share),
    _switch("delivery", "report_outage", True),
    _text(
        "http",
        "listen",
        "",
        'host:port, such as "127.0.0.1:8098", or "unix:" and a path, or "" for none',
    ),
    _optional_path("metrics", "textfile", "the file to write (node_exporter reads *.prom)"),
    _choice("log", "level", "info", "debug", "info", "warning", "error"),
    _choice("log", "format", "auto", "auto", "json", "console"),
)

SECTIONS: dict[str, dict[str, Key]] = {}
for _key in KEYS:
    SECTIONS.setdefault(_key.section, {})[_key.name] = _key

PATHS = frozenset(
    f"[{section}] {name}"
    for section, name in (
        ("komodor", "api_key_file"),
        ("komodor", "proxy_file"),
        ("komodor", "ca_file"),
        ("komodor", "client_cert"),
        ("komodor", "client_key"),
        ("intake", "socket"),
        ("intake", "spool"),
        ("intake", "tls_cert"),
        ("intake", "tls_key"),
        ("intake", "client_ca"),
        ("intake", "tokens_file"),
        ("outbox", "path"),
        ("outbox", "password_file"),
        ("metrics", "textfile"),
    )
)


def wrong(key: Key, source: str | None, value: object, why: str | None = None) -> ConfigError:
    """The error of one key: its name, its value, what is allowed."""
    written = as_written(value)
    place = f"{source}: " if source else ""
    reason = f": {why}" if why else ""
    return ConfigError(
        f"{place}{key.label} = {written} is not allowed{reason}", f"allowed is {key.allowed}"
    )


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8098" or "[::1]:8098"; ValueError for anything else."""
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(listen)
    if not (host and colon and port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(listen)
    if int(port) > 65_535 or not host.isascii() or not host.isprintable() or " " in host:
        raise ValueError(listen)
    return host, int(port)


def as_written(value: object) -> str:
    """A value as TOML writes it, short and harmless enough for a message."""
    try:
        text = _in_toml(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return shown(text, 200)


def _in_toml(value: object, depth: int = 0) -> str:
    if depth > 3:
        return "…"
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is str:
        return f'"{value}"'
    if type(value) is list:
        return "[" + ", ".join(_in_toml(each, depth + 1) for each in value[:50]) + "]"
    if type(value) is dict:
        members = [f"{name} = {_in_toml(each, depth + 1)}" for name, each in value.items()]
        return "{ " + ", ".join(members) + " }" if members else "{}"
    return str(value)
