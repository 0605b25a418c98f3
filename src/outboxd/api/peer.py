"""What the process at the other end of the Unix socket may do.

The kernel's word decides, and nothing that the caller says. A connection that
has no such credentials may change nothing.
"""

from __future__ import annotations

import os

from outboxd.serve.answers import Refusal
from outboxd.serve.peer import Peer
from outboxd.serve.request import Request


def require_operator(request: Request) -> Peer:
    """Root or the agent's own user; raises Refusal 403 for everyone else."""
    peer = request.peer
    if peer is not None and peer.user_id in (0, os.geteuid()):
        return peer
    who = "over TCP nobody" if peer is None else f"user {peer}"
    raise Refusal(
        403,
        f"{who} may not change entries",
        None,
        f"only root and the agent's own user (uid {os.geteuid()}) may, over its Unix socket",
    )
