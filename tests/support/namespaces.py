"""Network namespaces for a gateway and its hosts: a small network of the test's own.

The hosts hang on a bridge of the gateway's namespace and reach nothing but it. No
interface, address or rule of the machine's own namespace is touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CLONE_NEWNET = 0x40000000  # linux/sched.h
NETWORK = "10.77.0"


def can_make_namespaces() -> bool:
    """Whether this user may, on this machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"outboxd-{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return False
    words = ["ip", "-n", name, "link", "add", "b", "type", "bridge"]
    can = subprocess.run(words, capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], check=True)
    return can


class Namespaces:
    """Made at once; gone with `close`."""

    gateway_address = f"{NETWORK}.1"

    def __init__(self, host_count: int) -> None:
        stem = f"outboxd-{os.getpid()}"
        self.gateway = f"{stem}-gateway"
        self.hosts = [f"{stem}-{number}" for number in range(host_count)]
        self._made: list[str] = []
        for name in (self.gateway, *self.hosts):
            _ip("netns", "add", name)
            self._made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        _batch(
            self.gateway,
            "link add bridge type bridge",
            f"addr add {self.gateway_address}/24 dev bridge",
            "link set bridge up",
        )
        for number, name in enumerate(self.hosts):
            _batch(
                self.gateway,
                f"link add host{number} type veth peer name eth0 netns {name}",
                f"link set host{number} master bridge up",
            )
            _batch(name, f"addr add {NETWORK}.{number + 2}/24 dev eth0", "link set eth0 up")

    @contextmanager
    def pulled(self, number: int) -> Iterator[None]:
        """A host's cable is out meanwhile."""
        _batch(self.gateway, f"link set host{number} down")
        try:
            yield
        finally:
            _batch(self.gateway, f"link set host{number} up")

    def run_in(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns in a thread of that namespace."""
        return run_in_namespace(name, work)

    def close(self) -> None:
        for name in self._made:
            _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _batch(namespace: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input=text, check=True)


def run_in_namespace(name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns in a thread of that namespace; a socket that it makes stays there."""
    found: list[Any] = []

    def enter() -> None:
        with open(f"/run/netns/{name}") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        found.append(work())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return found[0]
