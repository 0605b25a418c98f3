"""`outboxd check`: what is wrong, before it costs events.

Looks and changes nothing. Each line says what was looked at and how it is; a
fault has a line of what to do beneath it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from outboxd.cli import check_local, check_remote, render
from outboxd.cli.findings import BAD, GOOD, Finding, bad, exit_code, good, note
from outboxd.cli.queue import socket_path
from outboxd.config.load import Config, load, read_api_key
from outboxd.errors import EX_CONFIG, EX_NOPERM, ConfigError
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless

COLOURS = {"ok": "green", "note": "yellow", "fail": "red"}


def run(arguments: Arguments) -> int:
    """Every check in order, each told as soon as it is known."""
    coloured = render.colours()
    found: list[Finding] = []
    for finding in _findings(arguments):
        found.append(finding)
        _tell(finding, coloured)
    sys.stdout.flush()
    faults = sum(finding.level == BAD for finding in found)
    notes = sum(finding.level not in (BAD, GOOD) for finding in found)
    if faults or notes:
        print(f"\n{_count(faults, 'fault')}, {_count(notes, 'note')}")
    else:
        print("\nall is well")
    return exit_code(found)


def _findings(arguments: Arguments) -> Iterator[Finding]:
    try:
        config = load(arguments.config)
    except ConfigError as error:
        hint = error.hint or "mend it and check again"
        yield bad("configuration", error.message, hint, EX_CONFIG)
        return
    yield good("configuration", config.source or "built-in defaults: there is no file")
    yield from check_local.directories(config)
    yield check_local.disk(config)
    running, finding = check_local.agent(config, socket_path(arguments, config))
    yield finding
    key, about_key = _key(config, running)
    if about_key is not None:
        yield about_key
    yield from check_remote.endpoint(config, key)


def _key(config: Config, running: bool) -> tuple[str | None, Finding | None]:
    """The key, or what is wrong with where it should be."""
    try:
        key = read_api_key(config)
    except ConfigError as error:
        denied = isinstance(error.__cause__ or error.__context__, PermissionError)
        code = EX_NOPERM if denied else EX_CONFIG
        return None, bad("API key", error.message, error.hint or "name another file", code)
    if key is not None:
        return key, check_local.key_file(config)
    hint = "set [komodor] api_key_file, or $KOMODOR_API_KEY for the agent"
    if running:
        # systemd hands the agent a credential that nobody else sees.
        return None, note("API key", "none that this command can see; the agent may have one", hint)
    return None, bad("API key", "there is none", hint, EX_CONFIG)


def _tell(finding: Finding, coloured: bool) -> None:
    level = render.colour(f"{finding.level:<4}", COLOURS[finding.level], coloured)
    print(f"{level}  {finding.name:<14} {harmless(finding.told)}")
    if finding.hint:
        print(f"{'':<21}{harmless(finding.hint)}")
    sys.stdout.flush()


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
