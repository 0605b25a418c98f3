"""What the agent can say of itself when `outboxd check` asks it.

What its user sees of files, network and key is looked at by a child, which runs
the same checks as the command does: as the agent's user, within its unit's
sandbox, with its environment and its credential. To that it adds what it alone
knows: the configuration in force, and what of its parts does not work now.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence

import msgspec

from outboxd.clock import Clock
from outboxd.config.changes import changed, needs_restart
from outboxd.config.load import load
from outboxd.config.sections import Config
from outboxd.errors import EX_CONFIG, EX_UNAVAILABLE, ConfigError
from outboxd.findings import Finding, bad, good

CHILD_S = 60.0  # names, connection and answer each have a timeout of their own


class Examination:
    """One look at a time; `findings` is what it found."""

    def __init__(
        self,
        clock: Clock,
        config_path: str | None,
        config: Callable[[], Config],
        of_parts: Callable[[], list[Finding]],
    ) -> None:
        self._clock = clock
        self._config_path = config_path
        self._config = config
        self._of_parts = of_parts
        self._looking = asyncio.Lock()
        self._found: list[Finding] = []
        self._began_s = float("-inf")

    async def findings(self, max_age_s: float = 0.0) -> Sequence[Finding]:
        """Everything, seen after this was called, or at most so long before; many who ask
        at once share a look."""
        asked_s = self._clock.monotonic_s() - max_age_s
        async with self._looking:
            if self._began_s <= asked_s:
                self._began_s = self._clock.monotonic_s()
                seen = await _seen_by_a_child(self._config_path)
                self._found = [self._configuration(), *self._of_parts(), *seen]
            return self._found

    def _configuration(self) -> Finding:
        """Whether what is in force is what stands in the file."""
        running = self._config()
        name, source = "agent's file", running.source or "built-in defaults"
        try:
            names = changed(running, load(self._config_path))
        except ConfigError as error:
            hint = f"{error.hint or 'mend it'}; the one before is in force until the agent stops"
            return bad(name, error.message, hint, EX_CONFIG)
        if not names:
            return good(name, f"{source} is what the agent runs with")
        verb = "restart" if needs_restart(names) else "reload"
        told = f"{source} was changed and is not in force: {', '.join(names)}"
        return bad(name, told, f"`systemctl {verb} outboxd` (or outboxd@NAME)", EX_CONFIG)


async def _seen_by_a_child(config_path: str | None) -> list[Finding]:
    named = [] if config_path is None else ["-c", config_path]
    environ = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "outboxd", "check", "--here", "--json", *named),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
        )
    except OSError as error:  # no process to be had, or the installation was taken away
        hint = "is it being upgraded, or is the host out of processes? try again"
        told = f"the agent's own look could not begin: {error.strerror or error}"
        return [bad("check", told, hint, EX_UNAVAILABLE)]
    try:
        async with asyncio.timeout(CHILD_S):
            out, errors = await child.communicate()
        return findings_of(out)
    except TimeoutError:
        told = f"took longer than {CHILD_S:.0f} s"
        return [bad("check", told, "is the network stuck? try again", EX_UNAVAILABLE)]
    except msgspec.DecodeError:
        told = errors.decode("utf-8", "replace").strip()[-300:] or "it said nothing"
        hint = "the installation may be damaged: install outboxd again"
        return [bad("check", f"the agent's own look failed: {told}", hint, EX_UNAVAILABLE)]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


class _Shape(msgspec.Struct, rename="camel"):
    level: str
    name: str
    told: str
    hint: str | None
    exit_code: int


def findings_of(lines: bytes) -> list[Finding]:
    """Findings as `check --json` prints them, one a line; raises msgspec.DecodeError."""
    shapes = [msgspec.json.decode(line, type=_Shape) for line in lines.splitlines()]
    if not shapes:
        raise msgspec.DecodeError("nothing was found")
    return [Finding(s.level, s.name, s.told, s.hint, s.exit_code) for s in shapes]
