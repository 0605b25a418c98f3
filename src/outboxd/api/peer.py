"""Who is at the other end of the Unix socket, and what that one may do.

The kernel's word (SO_PEERCRED) decides, and nothing that the caller says. A
connection that has no such credentials may change nothing.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from typing import NamedTuple

from aiohttp.web import BaseRequest

from outboxd.serve.table import Refusal

_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """A process that is connected."""

    process_id: int
    user_id: int

    def __str__(self) -> str:
        try:
            name = pwd.getpwuid(self.user_id).pw_name
        except KeyError:
            name = str(self.user_id)
        return f"{name} (uid {self.user_id}, pid {self.process_id})"


def peer_of(request: BaseRequest) -> Peer | None:
    """The peer's credentials; None on TCP."""
    transport = request.transport
    shown = None if transport is None else transport.get_extra_info("socket")
    if shown is None or shown.family != socket.AF_UNIX:
        return None
    # A copy, because the event loop's own object may not offer getsockopt.
    with socket.socket(fileno=os.dup(shown.fileno())) as copy:
        packed = copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process_id, user_id, _ = _CREDENTIALS.unpack(packed)
    return Peer(process_id, user_id)


def require_operator(request: BaseRequest) -> Peer:
    """Root or the agent's own user; raises Refusal 403 for everyone else."""
    peer = peer_of(request)
    if peer is not None and peer.user_id in (0, os.geteuid()):
        return peer
    who = "over TCP nobody" if peer is None else f"user {peer}"
    raise Refusal(
        403,
        f"{who} may not change entries",
        None,
        f"only root and the agent's own user (uid {os.geteuid()}) may, over its Unix socket",
    )
