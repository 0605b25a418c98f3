"""What only the agent needs checked in its configuration: URLs, files, groups.

Kept apart from `config` because of what it imports. It looks, and changes
nothing.
"""

from __future__ import annotations

import grp
import os
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from msgspec.structs import replace

from outboxd.config.addresses import is_loopback, split_listen
from outboxd.config.keys import SECTIONS, wrong
from outboxd.errors import ConfigError
from outboxd.files import read_start

if TYPE_CHECKING:
    from outboxd.config.sections import Config

SOCKET_PATH_MAX = 107
_PROXY_BYTES_MAX = 4096
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def check(config: Config) -> Config:
    """The configuration, with the proxy that proxy_file names; raises a ConfigError for
    what cannot work."""
    _check_endpoint(config)
    config = _with_proxy(config)
    _check_files(config)
    if len(os.fsencode(config.intake.socket)) > SOCKET_PATH_MAX:
        why = f"Linux takes {SOCKET_PATH_MAX} bytes for a socket's path"
        raise _wrong(config, "intake", "socket", why)
    group = config.intake.socket_group
    if group and not _has_group(group):
        raise _wrong(config, "intake", "socket_group", "there is no such group")
    if config.delivery.backoff_max_s < config.delivery.backoff_initial_s:
        shown = f"{config.delivery.backoff_max_s:g}s"
        raise _wrong(config, "delivery", "backoff_max", "backoff_initial is longer", shown)
    _check_listener(config)
    _check_database(config)
    if config.http.listen.startswith("unix:"):
        path = config.http.listen.removeprefix("unix:")
        if not path.startswith("/") or len(os.fsencode(path)) > SOCKET_PATH_MAX:
            why = f"a socket's path is absolute and has at most {SOCKET_PATH_MAX} bytes"
            raise _wrong(config, "http", "listen", why)
        if os.path.realpath(path) == os.path.realpath(config.intake.socket):
            raise _wrong(config, "http", "listen", "[intake] socket is there")
    elif config.http.listen:
        try:
            split_listen(config.http.listen)
        except ValueError:
            raise _wrong(config, "http", "listen") from None
    return config


def _check_listener(config: Config) -> None:
    """The TCP intake: never open to a network without TLS, nor to anybody without a token."""
    intake = config.intake
    if bool(intake.tls_cert) != bool(intake.tls_key):
        name = "tls_key" if intake.tls_cert else "tls_cert"
        raise _wrong(config, "intake", name, "the certificate and its key go together")
    for name in ("tls_cert", "tls_key", "client_ca", "tokens_file"):
        if getattr(intake, name) and _is_missing(getattr(intake, name)):
            raise _wrong(config, "intake", name, "there is no such file")
    if not intake.listen:
        return
    try:
        host, _ = split_listen(intake.listen)
    except ValueError:
        raise _wrong(config, "intake", "listen") from None
    if not (intake.tls_cert or is_loopback(host) or intake.allow_plain_listen):
        why = "tokens would cross the network in clear text; give tls_cert and tls_key"
        raise _wrong(config, "intake", "listen", why)
    if not (intake.tokens_file or intake.client_ca):
        why = "nobody could hand in: give tokens_file (`outboxd token new`) or client_ca"
        raise _wrong(config, "intake", "listen", why)
    if intake.client_ca and not intake.tls_cert:
        raise _wrong(config, "intake", "client_ca", "without tls_cert nobody shows a certificate")


def _check_database(config: Config) -> None:
    outbox = config.outbox
    if not outbox.url:
        if outbox.password_file:
            raise _wrong(config, "outbox", "password_file", "there is no [outbox] url")
        if config.komodor.account != SECTIONS["komodor"]["account"].kind.default:
            why = "without [outbox] url an outbox is one account's"
            raise _wrong(config, "komodor", "account", why)
        return
    if not outbox.url.startswith(("postgresql://", "postgres://")):
        raise _wrong(
            config, "outbox", "url", "it is no postgresql:// URL", _secret_free(outbox.url)
        )
    try:
        parts = urlsplit(outbox.url)
    except ValueError:
        raise _wrong(config, "outbox", "url", "it is no URL", _secret_free(outbox.url)) from None
    if parts.password or "password=" in parts.query.lower():
        why = "a configuration is for all to read: put the password into password_file"
        raise _wrong(config, "outbox", "url", why, _secret_free(outbox.url))
    if outbox.password_file and _can_be_no_file(outbox.password_file):
        raise _wrong(config, "outbox", "password_file", "there can be no such file")


def _secret_free(url: str) -> str:
    """What may be shown of a URL that could hold a password."""
    return "…" + url.rpartition("@")[2].partition("?")[0]


def _check_endpoint(config: Config) -> None:
    endpoint = config.komodor.endpoint
    parts = _split(endpoint)
    if parts is None or parts.scheme not in ("https", "http"):
        raise _wrong(config, "komodor", "endpoint", "it is no https URL")
    if parts.username is not None or parts.fragment:
        why = "credentials and fragments have no place in it"
        raise _wrong(config, "komodor", "endpoint", why, _without_credentials(parts))
    if not parts.path:
        raise _wrong(config, "komodor", "endpoint", "its path is missing, such as /mgmt/v1/events")
    allowed = config.komodor.allow_plain_http or is_loopback(parts.hostname or "")
    if parts.scheme == "http" and not allowed:
        why = "the key would cross the network in clear text, unless allow_plain_http = true"
        raise _wrong(config, "komodor", "endpoint", why)


def _with_proxy(config: Config) -> Config:
    if config.komodor.proxy_file:
        komodor = replace(config.komodor, proxy=_proxy_from_file(config))
        config = replace(config, komodor=komodor)
    if not config.komodor.proxy:
        return config
    parts = _split(config.komodor.proxy)
    if parts is None or parts.scheme not in PROXY_SCHEMES:
        shown = config.komodor.proxy.rpartition("@")[2]
        raise _wrong(config, "komodor", "proxy", "it is the URL of no proxy", shown)
    return config


def _proxy_from_file(config: Config) -> str:
    """The URL in the file: it may hold a password, and the configuration is for all to read."""
    path = config.komodor.proxy_file
    if config.komodor.proxy:
        raise _wrong(config, "komodor", "proxy_file", "proxy is given as well")
    try:
        url = read_start(path, _PROXY_BYTES_MAX + 1).decode().strip()
    except OSError as error:
        raise _wrong(config, "komodor", "proxy_file", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _wrong(config, "komodor", "proxy_file", "it is not UTF-8") from None
    if not url or len(url) > _PROXY_BYTES_MAX:
        raise _wrong(config, "komodor", "proxy_file", "there is no URL in it")
    return url


def _check_files(config: Config) -> None:
    komodor = config.komodor
    if komodor.client_key and not komodor.client_cert:
        raise _wrong(config, "komodor", "client_key", "client_cert is missing beside it")
    for name in ("ca_file", "client_cert", "client_key"):
        path = getattr(komodor, name)
        if path and _is_missing(path):
            raise _wrong(config, "komodor", name, "there is no such file")
    # The key may be put in its place later, or be replaced just now: that keeps no
    # agent from taking events. Where none can ever be does.
    if komodor.api_key_file and _can_be_no_file(komodor.api_key_file):
        raise _wrong(config, "komodor", "api_key_file", "there can be no such file")


def _is_missing(path: str) -> bool:
    """What this user may not look at is not called missing: only the agent's own can tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return os.path.isdir(path)


def _can_be_no_file(path: str) -> bool:
    """A directory, or below something that is none."""
    try:
        os.stat(path)
    except NotADirectoryError:
        return True
    except OSError:
        return False
    return os.path.isdir(path)


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _split(url: str) -> SplitResult | None:
    """The parts of a URL that has a host, or None."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # a ValueError if it is none
    except ValueError:
        return None
    return parts if parts.hostname else None


def _without_credentials(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host).geturl()


def _wrong(
    config: Config,
    section: str,
    name: str,
    why: str | None = None,
    shown: str | None = None,
) -> ConfigError:
    key = SECTIONS[section][name]
    value = shown if shown is not None else getattr(getattr(config, section), key.attribute)
    return wrong(key, config.source, value, why)
