"""The configuration: found, read, checked.

A wrong or unknown key never starts the agent: the ConfigError names the key,
its value, what is allowed and the nearest known key. It never reads the API
key into the configuration, and no message shows one. What only the agent needs
is checked in `checks`, and not where commands read the file through
`load_client`. The producers' side has a reader of its own, which refuses nothing.
"""

from __future__ import annotations

import os
import tomllib

from outboxd.config.keys import KEYS, PATHS, SECTIONS, as_written, split_listen, wrong
from outboxd.errors import ConfigError
from outboxd.event.jsontext import shown
from outboxd.event.komodor import Defaults, nearest
from outboxd.locations import CONFIG_PATH, runtime_dir, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from outboxd.config.keys import Key

CONFIG_BYTES_MAX = 128 * 1024
_FAULT_CHARS = 300


class Komodor:
    """[komodor]: where events go."""

    endpoint: str
    api_key_file: str
    event_type_max: int
    proxy: str  # the content of proxy_file, where that is given
    proxy_file: str
    ca_file: str
    client_cert: str
    client_key: str
    connect_timeout_s: float
    request_timeout_s: float
    retry_after_max_s: float
    allow_plain_http: bool


class Intake:
    """[intake]: where events come in."""

    socket: str
    socket_mode: str
    socket_group: str
    read_others: bool
    spool: str
    event_bytes_max: int
    listen: str
    tls_cert: str
    tls_key: str
    client_ca: str
    tokens_file: str
    connections_max: int
    connections_per_peer: int
    allow_plain_listen: bool

    @property
    def socket_mode_bits(self) -> int:
        return int(self.socket_mode, 8)


class OutboxSection:
    """[outbox]: where they are kept, and for how long."""

    path: str  # "" where there is a url
    url: str
    password_file: str
    durability: str
    events_max: int
    disk_free_min: int
    retain_delivered_s: float
    ttl_s: float

    @property
    def place(self) -> str:
        """Where they are, for people."""
        return self.url or self.path


class Dedup:
    """[dedup]: what counts as the same event."""

    key_window_s: float
    repeat_window_s: float


class Delivery:
    """[delivery]: how they are sent."""

    concurrency_max: int
    rate_max: int
    backoff_initial_s: float
    backoff_max_s: float
    attempts_max: int
    hold_probe_s: float
    stamp: str
    late_after_s: float
    drain_timeout_s: float
    lease_s: float
    order: str
    fresh_share: float
    report_outage: bool


class Http:
    """[http]: the page and metrics over TCP."""

    listen: str

    @property
    def host_port(self) -> tuple[str, int] | None:
        """Where to listen, or None."""
        return split_listen(self.listen) if self.listen else None


class MetricsSection:
    """[metrics]: the file for node_exporter."""

    textfile: str


class Log:
    """[log]: what is written to stderr."""

    level: str
    format: str


class Config:
    """Every setting, with its default where none was given."""

    __slots__ = (
        "dedup",
        "defaults",
        "delivery",
        "http",
        "intake",
        "komodor",
        "log",
        "metrics",
        "outbox",
        "source",
        "webhooks",
    )

    def __init__(self, source: str | None = None) -> None:
        self.source = source  # the file's path; None: built-in defaults
        self.komodor = Komodor()
        self.intake = Intake()
        self.defaults = Defaults()
        self.outbox = OutboxSection()
        self.dedup = Dedup()
        self.delivery = Delivery()
        self.http = Http()
        self.metrics = MetricsSection()
        self.log = Log()
        # [webhooks.NAME]: a part of an event to the expression that finds it.
        self.webhooks: dict[str, dict[str, str]] = {}


def load(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The checked configuration: `path`, else $OUTBOXD_CONFIG, else the system's, else built-in."""
    from outboxd.config.checks import check

    config = load_client(path, environ)
    check(config)
    return config


def load_client(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The same without the checks that only the agent needs (URLs, groups, files)."""
    source = find(path, environ)
    config = Config(source)
    tables = _read(source) if source else {}
    config.webhooks = _webhooks(tables.pop("webhooks", {}), source)
    for section in tables:
        if section not in SECTIONS:
            raise _unknown(source, f"[{shown(section)}]", section, tuple(SECTIONS), "section")
    for section, known in SECTIONS.items():
        table = tables.get(section, {})
        if type(table) is not dict:
            raise ConfigError(
                f"{source}: {section} is a section, not a value", f"write [{section}] on its line"
            )
        for name in table:
            if name not in known:
                raise _unknown(source, f"[{section}] {shown(name)}", name, tuple(known), "key")
    for key in KEYS:
        given = tables.get(key.section, {})
        value = _value(key, given, source, environ)
        setattr(getattr(config, key.section), key.attribute, value)
    if config.outbox.url:
        _without_files(config, tables)
    return config


# What does not go with [outbox] url, and what to do instead.
_NOT_WITH_URL = (
    ("outbox", "path", "the outbox is in one place: take path out, or url"),
    (
        "intake",
        "spool",
        "take it out: gateways that share an outbox have no spool. Hosts keep their own agent"
        " with its spool; what still lies in this one is sent by starting without url",
    ),
)


def _without_files(config: Config, tables: Mapping[str, Any]) -> None:
    for section, name, hint in _NOT_WITH_URL:
        if name in tables.get(section, {}):
            label = SECTIONS[section][name].label
            raise ConfigError(f"{config.source}: {label} does not go with [outbox] url", hint)
    config.outbox.path = config.intake.spool = ""


def _webhooks(tables: object, source: str | None) -> dict[str, dict[str, str]]:
    """Checked as far as TOML goes; what the expressions say is for the gateway to check."""
    allowed = 'a table [webhooks.NAME] of texts, such as summary = "title"'
    if type(tables) is not dict:
        raise ConfigError(f"{source}: webhooks is a section of tables", f"allowed is {allowed}")
    for name, table in tables.items():
        label = f"{source}: [webhooks.{shown(name)}]"
        if not _is_webhook_name(name):
            raise ConfigError(f"{label}: no name for a webhook", "use letters, digits, - and _")
        if type(table) is not dict:
            raise ConfigError(f"{label} is no table", f"allowed is {allowed}")
        for part, expression in table.items():
            if type(expression) is not str:
                written = as_written(expression)
                raise ConfigError(
                    f"{label} {shown(part)} = {written} is not allowed", f"allowed is {allowed}"
                )
    return tables


def _is_webhook_name(name: str) -> bool:
    return 0 < len(name) <= 64 and name.isascii() and name.replace("-", "_").isidentifier()


def find(path: str | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Which file holds the configuration; None for the built-in defaults."""
    if path is not None:
        return path
    named = environ.get("OUTBOXD_CONFIG")
    if named:
        return named
    return CONFIG_PATH if os.path.lexists(CONFIG_PATH) else None


def _value(
    key: Key, given: Mapping[str, Any], source: str | None, environ: Mapping[str, str]
) -> object:
    if key.name not in given:
        return _default_path(key, environ) if key.default is None else key.convert(key.default)
    try:
        value = key.convert(given[key.name])
    except ValueError:
        raise wrong(key, source, given[key.name]) from None
    if key.label in PATHS and value:
        # Relative paths are the configuration file's neighbours, wherever the agent was started.
        base = os.path.dirname(os.path.abspath(source)) if source else ""
        return os.path.join(base, os.path.expanduser(str(value)))
    return value


def _default_path(key: Key, environ: Mapping[str, str]) -> str:
    if key.name == "socket":
        return os.path.join(runtime_dir(environ), "outboxd.sock")
    return os.path.join(state_dir(environ), "spool" if key.name == "spool" else "outbox.db")


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        hint = "name another with -c or $OUTBOXD_CONFIG, or none for the built-in defaults"
        raise ConfigError(f"{path}: there is no such configuration file", hint) from None
    except OSError as error:
        hint = "it must be readable; the API key belongs in a file of its own"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint) from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes", "is it the right file?")
    return parse(data, path)


def parse(data: bytes, path: str) -> dict[str, Any]:
    """The tables of a configuration text."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path}: byte 0x{data[error.start]:02x} on line {line} is not UTF-8"
        raise ConfigError(message, "save the file in UTF-8") from None
    if text.startswith("\ufeff"):
        raise ConfigError(f"{path}: starts with a byte order mark", "save it without a BOM")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep", "the configuration is two levels") from None
    except ValueError as error:
        # tomllib's message ends with line and column, but where the text ends too early.
        lines = text.rstrip("\n").split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}, the end"
        fault = str(error).replace("at end of document", end)
        if len(fault) > _FAULT_CHARS:  # the place stands at its end
            fault = f"{fault[: _FAULT_CHARS // 2]} ... {fault[-_FAULT_CHARS // 2 :]}"
        raise ConfigError(f"{path}: not TOML: {fault}", "see config.example.toml") from None


def _unknown(
    source: str | None, label: str, name: str, known: tuple[str, ...], what: str
) -> ConfigError:
    # The right key under the wrong section is a common slip.
    homes = [section for section, keys in SECTIONS.items() if name in keys]
    if homes and what == "key":
        return ConfigError(f"{source}: unknown key {label}", f"it belongs to [{homes[0]}]")
    meant = nearest(name, known)
    hint = f'did you mean "{meant}"? ' if meant else ""
    return ConfigError(f"{source}: unknown {what} {label}", f"{hint}known are {', '.join(known)}")
