"""What the process at the other end of the Unix socket may do.

The kernel's word decides, and nothing that the caller says. A connection that
has no such credentials may change nothing.
"""

from __future__ import annotations

import os

from outboxd.serve.answers import Refusal
from outboxd.serve.peer import Peer
from outboxd.serve.request import Request


def is_operator(peer: Peer | None) -> bool:
    """Whether it is root or the agent's own user."""
    return peer is not None and peer.user_id in (0, os.geteuid())


def readable(request: Request, reads_others: bool) -> tuple[str, ...]:
    """Whose entries a request may see, by their producers; () for everybody's.

    A user of the socket who is no operator sees its own, unless `reads_others`. On
    TCP nobody can be told apart: what that listener shows is its own matter.
    """
    if reads_others or request.peer is None or is_operator(request.peer):
        return ()
    return (f"uid:{request.peer.user_id}",)


def require_operator(request: Request) -> Peer:
    """Root or the agent's own user; raises Refusal 403 for everyone else."""
    peer = request.peer
    if peer is not None and is_operator(peer):
        return peer
    who = "over TCP nobody" if peer is None else f"user {peer}"
    raise Refusal(
        403,
        f"{who} may not change entries",
        None,
        f"only root and the agent's own user (uid {os.geteuid()}) may, over its Unix socket",
    )
