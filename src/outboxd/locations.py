"""Where files lie when the configuration does not say.

systemd hands a service its directories in the environment; a person's own are
those of the XDG base directories. It must agree with itself across a person's
sessions: the agent may have been started at a login, where XDG_RUNTIME_DIR is
set, and its producers by cron, where it is not. Nothing here makes a directory.
"""

from __future__ import annotations

import os

from outboxd.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_PATH = "/etc/outboxd/config.toml"
CREDENTIAL = "komodor-api-key"
PASSWORD_CREDENTIAL = "outbox-password"
# Where the packaged agent is, which systemd/config.toml says too.
PACKAGED_SOCKET = "/run/outboxd/outboxd.sock"
PACKAGED_SPOOL = "/var/spool/outboxd"
# Where systemd-logind makes each user's runtime directory; pam_systemd(8).
USERS_RUNTIME = "/run/user"


def state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where the outbox and the spool are: must outlive a restart of the machine."""
    return _first(environ.get("STATE_DIRECTORY")) or user_state_dir(environ)


def runtime_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where the socket is."""
    return _first(environ.get("RUNTIME_DIRECTORY")) or user_runtime_dirs(environ)[0]


def user_state_dir(environ: Mapping[str, str] = os.environ) -> str:
    """A person's own, whatever service this is run in."""
    base = _absolute(environ.get("XDG_STATE_HOME"))
    base = base or os.path.join(_home(environ), ".local", "state")
    return os.path.join(base, "outboxd")


def user_runtime_dirs(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where the socket of a person's own agent may be, the likeliest first."""
    found = []
    base = _absolute(environ.get("XDG_RUNTIME_DIR"))
    if base:
        found.append(os.path.join(base, "outboxd"))
    logind = f"{USERS_RUNTIME}/{os.getuid()}"
    if logind != base and _is_own_directory(logind):
        found.append(os.path.join(logind, "outboxd"))
    found.append(user_state_dir(environ))
    return found


def credential_path(
    environ: Mapping[str, str] = os.environ, credential: str = CREDENTIAL
) -> str | None:
    """Where systemd's LoadCredential puts the API key, or another credential; None
    outside of such a service."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return os.path.join(directory, credential) if directory else None


def _first(directories: str | None) -> str | None:
    """systemd joins several directories with colons; the first one is ours."""
    return directories.split(":", 1)[0] if directories else None


def _absolute(directory: str | None) -> str | None:
    """The XDG specification has a relative one ignored: it would mean another
    place in each program's working directory."""
    return directory if directory and os.path.isabs(directory) else None


def _is_own_directory(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.getuid()
    except OSError:
        return False


def _home(environ: Mapping[str, str]) -> str:
    """A cron daemon sets HOME; what has none (a bare container) gets the current user's."""
    home = _absolute(environ.get("HOME"))
    if home is not None:
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise ConfigError(
            f"user {os.getuid()} has no home directory to keep events in",
            "set $HOME, or name a configuration with -c or $OUTBOXD_CONFIG",
        ) from None
