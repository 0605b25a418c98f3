"""Which proxy stands between this host and the endpoint, if any.

Pure: it reads what it is given, opens nothing, and knows no HTTP library.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from outboxd.config.addresses import is_loopback
from outboxd.config.checks import PROXY_SCHEMES
from outboxd.errors import ConfigError

DEFAULT_PORTS = {"http": 80, "https": 443}
_SECRET_CHARS_MIN = 4  # a shorter one stands in any text by chance


def proxy_for(
    endpoint: str, configured: str, environ: Mapping[str, str] = os.environ
) -> str | None:
    """The proxy's URL: the setting, else what the usual environment variables say.

    Raises:
        ConfigError: it is none that can be used, or the key would go to a proxy
            in clear text that the configuration does not name.
    """
    if configured:
        return _checked(configured, "[komodor] proxy")
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    name, proxy = _from_environment(parts.scheme, environ)
    if not proxy or is_loopback(host) or bypassed(parts, _variable("no_proxy", environ)[1]):
        return None
    proxy = _checked(proxy if "://" in proxy else f"http://{proxy}", f"${name}")
    if parts.scheme == "http":
        raise ConfigError(
            f"the API key would go in clear text to the proxy that ${name} names",
            f"name it as [komodor] proxy if it may see the key, or set NO_PROXY={host} "
            "to do without, or give [komodor] endpoint an https URL",
        )
    return proxy


def credentials_of(proxy: SplitResult) -> list[str]:
    """What the proxy is told and nobody else is to read: the password, and how it is sent
    with the user's name (RFC 7617). One too short to be found is left out."""
    password = unquote(proxy.password or "")
    if len(password) < _SECRET_CHARS_MIN:
        return []
    pair = f"{unquote(proxy.username or '')}:{password}"
    return [password, base64.b64encode(pair.encode()).decode()]


def bypassed(endpoint: SplitResult, no_proxy: str) -> bool:
    """Whether NO_PROXY names the endpoint: by `*`, its name or a domain above it (with
    or without a dot before), its address or a network, each with a port or without."""
    host = (endpoint.hostname or "").rstrip(".")
    port = endpoint.port or DEFAULT_PORTS.get(endpoint.scheme)
    return any(
        (wanted_port is None or wanted_port == port) and _names(wanted, host)
        for wanted, wanted_port in _entries(no_proxy)
    )


def _entries(no_proxy: str) -> Iterator[tuple[str, int | None]]:
    for entry in no_proxy.replace(",", " ").lower().split():
        bracketed, _, port = entry.rpartition("]:")
        if bracketed:  # [::1]:443
            yield bracketed.removeprefix("["), _port(port)
        elif entry.count(":") == 1:
            host, _, port = entry.partition(":")
            yield host, _port(port)
        else:
            yield entry.strip("[]"), None


def _port(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1  # that no endpoint has


def _names(wanted: str, host: str) -> bool:
    if wanted == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domain = wanted.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
    try:
        network = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and network.version == 4:
        return address.ipv4_mapped is not None and address.ipv4_mapped in network
    return address in network


def _from_environment(scheme: str, environ: Mapping[str, str]) -> tuple[str, str]:
    for name in (f"{scheme}_proxy", "all_proxy"):
        found = _variable(name, environ)
        if found[1]:
            return found
    return "", ""


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Its name as it is written and its value; lower case wins, an empty one too."""
    written = name if name in environ else name.upper()
    return written, environ.get(written, "").strip()


def _checked(proxy: str, where: str) -> str:
    try:
        parts = urlsplit(proxy)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if usable and parts.scheme in PROXY_SCHEMES and proxy.isascii() and proxy.isprintable():
        return proxy
    raise ConfigError(
        f"{where} is no proxy that can be used: {proxy.rpartition('@')[2]!r}",
        'it must be like "http://user:password@proxy.example:3128" or '
        f'"socks5://proxy.example:1080"; known are {", ".join(PROXY_SCHEMES)}',
    )
