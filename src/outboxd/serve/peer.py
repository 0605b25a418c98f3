"""Who is at the other end of a connection, in the kernel's words.

SO_PEERCRED of a Unix socket, the address of a TCP peer; nothing that the
caller says.
"""

from __future__ import annotations

import asyncio
import pwd
import select
import socket
import struct
from collections.abc import Hashable
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """A process that is connected over a Unix socket."""

    process_id: int
    user_id: int

    def __str__(self) -> str:
        try:
            name = pwd.getpwuid(self.user_id).pw_name
        except KeyError:
            name = str(self.user_id)
        return f"{name} (uid {self.user_id}, pid {self.process_id})"


def credentials(descriptor: int) -> Peer:
    """The peer of a connected Unix socket; of a listening one, who made it listen."""
    # The event loop's own object does not offer getsockopt; this one only borrows.
    borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    try:
        packed = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    finally:
        borrowed.detach()
    process_id, user_id, _ = _CREDENTIALS.unpack(packed)
    return Peer(process_id, user_id)


def identify(connected: socket.socket) -> tuple[Peer | None, Hashable]:
    """The peer (None on TCP), and who is to answer for what it uses: a uid or an address.

    Raises OSError where it has gone already.
    """
    if connected.family == socket.AF_UNIX:
        packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process_id, user_id, _ = _CREDENTIALS.unpack(packed)
        return Peer(process_id, user_id), user_id
    return None, _network(connected.getpeername()[0])


def _network(address: str) -> str:
    """Who answers for what comes from an address: itself, or with IPv6 its network of 64
    bits, of which any host has all the addresses that it likes (RFC 4291, 2.5.1)."""
    if ":" not in address:
        return address
    found = IPv6Address(address.partition("%")[0])
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Network((found, 64), strict=False))


def has_hung_up(transport: asyncio.BaseTransport) -> bool:
    """Whether a peer has closed altogether, not one side alone.

    On TCP the kernel cannot tell until something was written that the peer did not want.
    """
    shown = transport.get_extra_info("socket")
    if shown is None:
        return False
    poll = select.poll()
    poll.register(shown.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def reset(transport: asyncio.Transport) -> None:
    """End a TCP connection with a RST, so that nobody takes it for an answer's end."""
    shown = transport.get_extra_info("socket")
    if shown is not None and shown.family != socket.AF_UNIX:
        borrowed = socket.socket(shown.family, socket.SOCK_STREAM, 0, shown.fileno())
        try:
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            borrowed.detach()
    transport.abort()
