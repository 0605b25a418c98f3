"""`outboxd check`: what is wrong, before it costs events.

It speaks for the agent and not for whoever calls it: a running agent is asked,
and looks as its own user; with none running root has that user look. Looks and
changes nothing. Each line says what was looked at and how it is; a fault has a
line of what to do beneath it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from outboxd.agent.examination import findings_of
from outboxd.cli import check_database, check_gateway, check_local, check_remote, render
from outboxd.cli.agent import AgentQueue, AgentUnreachable
from outboxd.cli.queue import socket_path
from outboxd.cli.service import SystemdUnit, agent_user, credentials_for, service_of
from outboxd.config.api_key import read_api_key
from outboxd.config.load import load
from outboxd.config.sections import Config
from outboxd.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_UNAVAILABLE,
    ConfigError,
    NotPermitted,
    OutboxdError,
    UnknownId,
)
from outboxd.findings import BAD, GOOD, NOTE, Finding, bad, exit_code, good, note
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless, harmless_json

COLOURS = {"ok": "green", "note": "yellow", "fail": "red"}
CHILD_S = 90.0


def run(arguments: Arguments) -> int:
    """Every check in order, each told as soon as it is known."""
    coloured = render.colours()
    found: list[Finding] = []
    for finding in _seen_here(arguments) if arguments.here else _findings(arguments):
        found.append(finding)
        if arguments.json:
            print(harmless_json(msgspec.json.encode(finding.shape()).decode()))
        else:
            _tell(finding, coloured)
        sys.stdout.flush()
    if not arguments.json:
        _sum_up(found)
    return exit_code(found)


def _findings(arguments: Arguments) -> Iterator[Finding]:
    """For the agent: by the agent, else by its user, else as far as this one sees."""
    try:
        config = load(arguments.config)
    except ConfigError as error:
        yield _wrong(error)
        return
    yield good("configuration", config.source or "built-in defaults: there is no file")
    try:
        queue = AgentQueue(socket_path(arguments, config))
    except AgentUnreachable:
        yield from _without_agent(config, arguments)
        return
    except OutboxdError as error:
        code = EX_NOPERM if isinstance(error, NotPermitted) else EX_UNAVAILABLE
        yield bad("agent", error.message, error.hint or "see its log", code)
        return
    try:
        yield check_local.agent(queue)
        yield check_local.same_configuration(queue, config)
        yield from queue.check()
    except UnknownId:
        told = "it is of an older version, which cannot say what it sees: this user looks"
        yield note("agent", told, "restart it: `systemctl restart outboxd`")
        yield from _look(config, True, None, _is_the_agents(config, None))
    except OutboxdError as error:
        yield bad("agent", error.message, error.hint or "see its log", EX_UNAVAILABLE)
    finally:
        queue.close()


def _without_agent(config: Config, arguments: Arguments) -> Iterator[Finding]:
    service = service_of(config)
    user = agent_user(config, service)
    yield check_local.outbox_file(config)
    if service is not None:
        yield from check_local.sandbox(config, service)
    if os.geteuid() == 0 and user.pw_uid != 0:
        yield good("user", f"looked at as {user.pw_name}, whom the agent runs as")
        yield from _as_user(user, service, arguments)
    else:
        yield from _look(config, False, service, user.pw_uid == os.geteuid())


def _as_user(
    user: pwd.struct_passwd, service: SystemdUnit | None, arguments: Arguments
) -> Iterator[Finding]:
    """The same look, in a child without root's rights."""
    named = [] if arguments.config is None else ["-c", os.path.abspath(arguments.config)]
    command = [sys.executable, "-P", "-m", "outboxd", "check", "--here", "--json", *named]
    with credentials_for(service, user) as credentials:
        try:
            done = subprocess.run(
                command,
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
                env={**os.environ, "HOME": user.pw_dir, **credentials},
                cwd="/",
                capture_output=True,
                timeout=CHILD_S,
                check=False,
            )
            found = findings_of(done.stdout)
        except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
            told = f"{user.pw_name}, whom the agent runs as, cannot run this program: {error}"
            hint = "install outboxd again; its files must be readable by all"
            yield bad("user", told, hint, EX_NOPERM)
            return
    yield from found


def _seen_here(arguments: Arguments) -> Iterator[Finding]:
    """What this user sees, whoever asks for it; no agent is asked."""
    try:
        config = load(arguments.config)
    except ConfigError as error:
        yield _wrong(error)
        return
    yield from _look(config, check_local.answers(config), service_of(config), True)


def _look(
    config: Config, running: bool, service: SystemdUnit | None, as_the_agent: bool
) -> Iterator[Finding]:
    """Files, key and network; `as_the_agent`: whether this user's permissions are what counts."""
    local = [*check_local.directories(config, service), check_local.disk(config)]
    local += check_local.side_parts(config, running)
    local += check_local.secrets(config)
    local += check_gateway.of_listener(config)
    local += check_database.database(config)
    for finding in local:
        yield finding if as_the_agent else _of_a_stranger(finding)
    key = read_api_key(config)
    about_key = check_local.key(config, key)
    if about_key is not None:
        yield about_key if as_the_agent else _of_a_stranger(about_key)
    yield from check_remote.endpoint(config, key.value)


def _of_a_stranger(finding: Finding) -> Finding:
    """What another user may not do is no fault of the agent's."""
    if finding.exit_code != EX_NOPERM and not (finding.name == "API key" and finding.level == BAD):
        return finding
    hint = "only the agent's user can tell: `sudo outboxd check`"
    return finding._replace(level=NOTE, hint=hint, exit_code=0)


def _is_the_agents(config: Config, service: SystemdUnit | None) -> bool:
    return agent_user(config, service).pw_uid == os.geteuid()


def _wrong(error: ConfigError) -> Finding:
    return bad("configuration", error.message, error.hint or "mend it and check again", EX_CONFIG)


def _sum_up(found: list[Finding]) -> None:
    faults = sum(finding.level == BAD for finding in found)
    notes = sum(finding.level not in (BAD, GOOD) for finding in found)
    if faults or notes:
        print(f"\n{_count(faults, 'fault')}, {_count(notes, 'note')}")
    else:
        print("\nall is well")


def _tell(finding: Finding, coloured: bool) -> None:
    level = render.colour(f"{finding.level:<4}", COLOURS[finding.level], coloured)
    print(f"{level}  {finding.name:<14} {harmless(finding.told)}")
    if finding.hint:
        print(f"{'':<21}{harmless(finding.hint)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
