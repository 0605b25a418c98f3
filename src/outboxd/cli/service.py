"""The systemd service that a configuration belongs to: who it runs as, what it may write.

Asked of systemctl; None where there is no such service. Nothing is changed.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import NamedTuple

from outboxd.config.sections import Config
from outboxd.locations import CONFIG_PATH, CREDENTIAL

SYSTEMCTL_S = 10.0
_PROPERTIES = (
    *("LoadState", "User", "LoadCredential", "ProtectSystem"),
    *("ReadWritePaths", "StateDirectory", "RuntimeDirectory"),
)


class SystemdUnit(NamedTuple):
    """A unit that systemd knows."""

    unit: str
    user: str
    credential: str | None  # the file that it hands to the agent as its key
    writable: tuple[str, ...] | None  # below these; None: everywhere

    def may_write(self, path: str) -> bool:
        """Whether its sandbox lets the agent write at this path."""
        if self.writable is None:
            return True
        path = os.path.realpath(path)
        return any(path == root or path.startswith(f"{root}/") for root in self.writable)

    def drop_in(self, path: str) -> str:
        """What an administrator does to let it write there."""
        return (
            f"`systemctl edit {self.unit}`, write [Service] and ReadWritePaths={path}, restart it"
        )


def unit_of(config: Config) -> str | None:
    """The unit whose configuration this is, by its path."""
    if config.source is None:
        return None
    directory, name = os.path.split(os.path.realpath(config.source))
    if directory != os.path.dirname(CONFIG_PATH) or not name.endswith(".toml"):
        return None
    account = name.removesuffix(".toml")
    return "outboxd.service" if account == "config" else f"outboxd@{account}.service"


def service_of(config: Config) -> SystemdUnit | None:
    """That unit, as systemd has it."""
    unit = unit_of(config)
    if unit is None or not os.path.isdir("/run/systemd/system"):
        return None
    command = ["systemctl", "show", unit, *(f"--property={name}" for name in _PROPERTIES)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if found.get("LoadState") != "loaded":
        return None
    return SystemdUnit(unit, found.get("User") or "root", _credential(found), _writable(found))


def agent_user(config: Config, service: SystemdUnit | None) -> pwd.struct_passwd:
    """Whom the agent runs as: the service's user, else the owner of what the outbox lies in."""
    if service is not None:
        try:
            return pwd.getpwnam(service.user)
        except KeyError:
            pass
    path = os.path.abspath(config.outbox.path or config.intake.socket)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        return pwd.getpwuid(os.stat(path).st_uid)
    except KeyError:
        return pwd.getpwuid(os.geteuid())


@contextmanager
def credentials_for(
    service: SystemdUnit | None, user: pwd.struct_passwd
) -> Iterator[dict[str, str]]:
    """The environment in which this user finds the service's credential, as under systemd."""
    if service is None or service.credential is None or not os.path.exists(service.credential):
        yield {}
        return
    with TemporaryDirectory(prefix="outboxd-check-") as directory:
        os.chown(directory, user.pw_uid, user.pw_gid)
        path = os.path.join(directory, CREDENTIAL)
        with open(service.credential, "rb") as source, open(path, "wb") as target:
            os.fchmod(target.fileno(), 0o400)
            target.write(source.read())
        os.chown(path, user.pw_uid, user.pw_gid)
        yield {"CREDENTIALS_DIRECTORY": directory}


def _credential(found: dict[str, str]) -> str | None:
    for each in found.get("LoadCredential", "").split():
        name, _, path = each.partition(":")
        if name == CREDENTIAL and path:
            return path
    return None


def _writable(found: dict[str, str]) -> tuple[str, ...] | None:
    if found.get("ProtectSystem") != "strict":
        return None
    paths = [path.lstrip("-+") for path in found.get("ReadWritePaths", "").split()]
    paths += [f"/var/lib/{name}" for name in found.get("StateDirectory", "").split()]
    paths += [f"/run/{name}" for name in found.get("RuntimeDirectory", "").split()]
    return tuple(paths)
