"""Ports for what a test starts only later, and that nobody else takes meanwhile.

A port that the kernel chose is free again as soon as the socket that asked for it is
closed, and whoever asks next may get it before the program listens that was told of it.
So these are ports that the kernel gives to nobody by itself, and no two tests get the
same one, in whichever process they run.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_FIRST, _END = 10_000, 65_536


def free_port(address: str = "127.0.0.1") -> int:
    """A port at which nothing listens; this process has it until it ends."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = map(int, given)
    ports = [port for port in range(_FIRST, _END) if not low <= port <= high]
    ports = ports or list(range(_FIRST, _END))
    random.SystemRandom().shuffle(ports)
    return next(port for port in ports if _is_ours(port) and _is_free(address, port))


def free_address() -> str:
    """Such a port, as settings name it."""
    return f"127.0.0.1:{free_port()}"


def _is_ours(port: int) -> bool:
    """Whether nobody has it yet: an abstract name, which goes with the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        try:
            name.bind(f"\0outboxd-test-port-{port}")
        except OSError:
            return False
        name.detach()  # held until the process ends
        return True


def _is_free(address: str, port: int) -> bool:
    try:
        socket.create_server((address, port)).close()
    except OSError:
        return False
    return True
