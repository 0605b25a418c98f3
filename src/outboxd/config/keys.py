"""The keys that may stand in a configuration file, as `sections` defines the settings.

It opens no file; `wrong` has the words for a value that is not allowed.
"""

from __future__ import annotations

from typing import NamedTuple, get_type_hints

from outboxd.config.kinds import Kind
from outboxd.config.sections import SECTION_TYPES
from outboxd.errors import ConfigError
from outboxd.event.jsontext import shown


class Key(NamedTuple):
    """One setting, and where it is found."""

    section: str
    attribute: str  # of its section's Struct
    kind: Kind

    @property
    def name(self) -> str:
        """As it is written."""
        return self.attribute.removesuffix(self.kind.unit)

    @property
    def label(self) -> str:
        return f"[{self.section}] {self.name}"


def _keys_of(section: str) -> dict[str, Key]:
    hints = get_type_hints(SECTION_TYPES[section], include_extras=True)
    keys = [Key(section, attribute, hint.__metadata__[0]) for attribute, hint in hints.items()]
    return {key.name: key for key in keys}


SECTIONS: dict[str, dict[str, Key]] = {section: _keys_of(section) for section in SECTION_TYPES}
KEYS: tuple[Key, ...] = tuple(key for keys in SECTIONS.values() for key in keys.values())


def wrong(key: Key, source: str | None, value: object, why: str | None = None) -> ConfigError:
    """The error of one key: its name, its value, what is allowed."""
    written = as_written(value)
    place = f"{source}: " if source else ""
    reason = f": {why}" if why else ""
    return ConfigError(
        f"{place}{key.label} = {written} is not allowed{reason}", f"allowed is {key.kind.allowed}"
    )


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
