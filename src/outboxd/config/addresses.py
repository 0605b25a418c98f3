"""The addresses that stand in a configuration, read. Pure: nothing is looked up."""

from __future__ import annotations

import ipaddress


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8098" or "[::1]:8098"; ValueError for anything else."""
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(listen)
    if not (host and colon and port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(listen)
    if int(port) > 65_535 or not host.isascii() or not host.isprintable() or " " in host:
        raise ValueError(listen)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a URL's host can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
