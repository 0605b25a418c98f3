"""A network of the test's own between namespaces, whose packets it carries itself.

Each place is a network namespace with one TUN device; a thread reads what comes out of
one and writes it into another, or lets it fall where that way is cut: as a switch that
died, of which nobody tells the ends. It needs no kernel module but tun, and touches no
interface, address or rule of the machine's own namespace.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from support.namespaces import run_in_namespace

NETWORK = "10.78.0"
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_SOURCE, _DESTINATION = 15, 19  # the last byte of either address of an IPv4 packet
_PACKET_BYTES_MAX = 65_536


class Wires:
    """Made at once; gone with `close`."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises OSError, CalledProcessError: this user or kernel cannot."""
        self._devices: dict[int, int] = {}  # file descriptors, by the address's last byte
        self._cut: set[frozenset[int]] = set()
        self.namespaces: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        try:
            for number, name in enumerate(names, 1):
                self._make(number, name)
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def _make(self, number: int, name: str) -> None:
        namespace = f"outboxd-{os.getpid()}-{name}"
        subprocess.run(["ip", "netns", "add", namespace], check=True, capture_output=True)
        self.namespaces[name] = namespace
        self.addresses[name] = f"{NETWORK}.{number}"
        self._devices[number] = self.run_in(name, _tun)
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{NETWORK}.{number}/24", "dev", "tun0"),
            ("link", "set", "tun0", "up"),
        ):
            subprocess.run(["ip", "-n", namespace, *words], check=True, capture_output=True)

    def run_in(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns in a thread of that namespace."""
        return run_in_namespace(self.namespaces[name], work)

    @contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """Nothing gets from one to the other meanwhile, either way."""
        way = frozenset(int(self.addresses[name].rpartition(".")[2]) for name in (one, other))
        self._cut.add(way)
        try:
            yield
        finally:
            self._cut.discard(way)

    def _carry(self) -> None:
        with selectors.DefaultSelector() as ready:
            for device in (*self._devices.values(), self._stop):
                ready.register(device, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fd == self._stop:
                        return
                    packet = os.read(key.fd, _PACKET_BYTES_MAX)
                    if packet[0] >> 4 != 4:
                        continue  # a neighbour discovery of IPv6
                    way = frozenset((packet[_SOURCE], packet[_DESTINATION]))
                    to = self._devices.get(packet[_DESTINATION])
                    if to is not None and way not in self._cut:
                        with suppress(BlockingIOError):
                            os.write(to, packet)

    def close(self) -> None:
        os.write(self._stopped, b"x")
        if self._thread.is_alive():
            self._thread.join(10)
        for descriptor in (*self._devices.values(), self._stop, self._stopped):
            os.close(descriptor)
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=True)


def can_make_wires() -> bool:
    """Whether this user may, on this machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
        return False
    try:
        Wires(["try"]).close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _tun() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _TUN_WITHOUT_HEADER))
    return device
