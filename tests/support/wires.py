"""A network of the test's own between namespaces, whose packets it carries itself.

Each place is a network namespace with one TUN device; a thread reads what comes out of
one and writes it into another, or lets it fall where there is no way or that way is cut:
as behind a switch that died, of which nobody tells the ends. It needs no kernel module
but tun, and touches no interface, address or rule of the machine's own namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from support.waiting import PATIENCE_S

NETWORK = "10.78.0"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_SOURCE, _DESTINATION = 15, 19  # the last byte of either address of an IPv4 packet
_PACKET_BYTES_MAX = 65_536


class Wires:
    """Made at once; gone with `close`."""

    def __init__(self, names: Sequence[str], ways: Iterable[tuple[str, str]] | None = None) -> None:
        """`ways`: the pairs that reach each other; None: all do.

        Raises OSError, CalledProcessError: this user or kernel cannot.
        """
        self._devices: dict[int, int] = {}  # file descriptors, by the address's last byte
        self._cut: list[frozenset[int]] = []
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
        self._ways = None if ways is None else {self._way(*pair) for pair in ways}
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
        """What `work` returns in a thread of that namespace; a socket that it makes stays there."""

        def enter() -> Any:
            with open(f"/run/netns/{self.namespaces[name]}") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    @contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """Nothing gets from one to the other meanwhile, either way."""
        way = self._way(one, other)
        self._cut.append(way)
        try:
            yield
        finally:
            self._cut.remove(way)

    def _way(self, one: str, other: str) -> frozenset[int]:
        return frozenset(int(self.addresses[name].rpartition(".")[2]) for name in (one, other))

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
                    known = self._ways is None or way in self._ways
                    if to is not None and known and way not in self._cut:
                        with suppress(BlockingIOError):
                            os.write(to, packet)

    def close(self) -> None:
        os.write(self._stopped, b"x")
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)
        for descriptor in (*self._devices.values(), self._stop, self._stopped):
            os.close(descriptor)
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=True)


def needed_wires(names: Sequence[str], ways: Iterable[tuple[str, str]] | None = None) -> Wires:
    """Such a network; skips where this user or machine cannot, and fails where all tests
    must run."""
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise OSError("it takes root, and ip (Debian package iproute2)")
        return Wires(names, ways)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"no network namespaces with tun devices here: {error}"
        if os.environ.get("OUTBOXD_TEST_ALL") == "1" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)


def _tun() -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _TUN_WITHOUT_HEADER))
    return device
