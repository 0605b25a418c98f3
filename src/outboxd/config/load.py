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
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from outboxd.config.keys import SECTIONS, Key, as_written, wrong
from outboxd.config.sections import SECTION_TYPES, Config
from outboxd.errors import ConfigError
from outboxd.event.jsontext import shown
from outboxd.event.komodor import nearest
from outboxd.locations import CONFIG_PATH, runtime_dir, state_dir

CONFIG_BYTES_MAX = 128 * 1024
_FAULT_CHARS = 300


def load(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The checked configuration: `path`, else $OUTBOXD_CONFIG, else the system's, else built-in."""
    from outboxd.config.checks import check

    return check(load_client(path, environ))


def load_client(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The same without the checks that only the agent needs (URLs, groups, files)."""
    source = find(path, environ)
    tables = _read(source) if source else {}
    webhooks = _webhooks(tables.pop("webhooks", {}), source)
    _check_names(tables, source)
    sections: dict[str, Any] = {
        section: section_type(
            **{
                key.attribute: _value(key, tables.get(section, {}), source, environ)
                for key in SECTIONS[section].values()
            }
        )
        for section, section_type in SECTION_TYPES.items()
    }
    config = Config(source=source, webhooks=webhooks, **sections)
    return _without_files(config, tables) if config.outbox.url else config


# Of a [webhooks.NAME] table, the one value that is no expression and no header's name.
_SECRET_FILE = "signature_secret_file"

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


def _without_files(config: Config, tables: Mapping[str, Any]) -> Config:
    for section, name, hint in _NOT_WITH_URL:
        if name in tables.get(section, {}):
            label = SECTIONS[section][name].label
            raise ConfigError(f"{config.source}: {label} does not go with [outbox] url", hint)
    return replace(
        config,
        outbox=replace(config.outbox, path=""),
        intake=replace(config.intake, spool=""),
    )


def _check_names(tables: Mapping[str, Any], source: str | None) -> None:
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
        if secret := table.get(_SECRET_FILE):
            table[_SECRET_FILE] = _neighbour(secret, source)
    return tables


def _is_webhook_name(name: str) -> bool:
    letters = f"_{name.replace('-', '_')}"  # a name may begin with a digit, too
    return 0 < len(name) <= 64 and name.isascii() and letters.isidentifier()


def _neighbour(path: str, source: str | None) -> str:
    """Relative paths are the configuration file's neighbours, wherever the agent was started."""
    base = os.path.dirname(os.path.abspath(source)) if source else ""
    return os.path.join(base, os.path.expanduser(path))


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
        default = key.kind.default
        return _default_path(key, environ) if default is None else key.kind.convert(default)
    try:
        value = key.kind.convert(given[key.name])
    except ValueError:
        raise wrong(key, source, given[key.name]) from None
    if key.kind.is_path and value:
        return _neighbour(str(value), source)
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
