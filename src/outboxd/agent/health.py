"""Whether the agent gets on with its work, and how it stands in one line."""

from __future__ import annotations

from outboxd.delivery.sender import Sender
from outboxd.intake.admission import Admission
from outboxd.outbox.outbox import Outbox

# The patience with one piece of work: a commit on a slow disk.
STUCK_AFTER_S = 60.0


class Health:
    """Looks at what works on events: the outbox's writer and the sender."""

    def __init__(self, outbox: Outbox, sender: Sender, admission: Admission) -> None:
        self._outbox = outbox
        self._sender = sender
        self._admission = admission

    def fault(self) -> str | None:
        """Why the agent makes no progress; None while it does."""
        if self._outbox.fatal is not None:
            return self._outbox.fatal.message
        stuck_s = max(self._outbox.stuck_s(), self._sender.stuck_s())
        if stuck_s < STUCK_AFTER_S:
            return None
        return f"no progress for {round(stuck_s)} s with work in hand"

    def summary(self) -> str:
        """One line for the service manager."""
        counts, destination = self._outbox.counts, self._sender.status()
        why = f" ({destination.reason})" if destination.reason else ""
        refusal = self._admission.refusal()
        refusing = "" if refusal is None else f", takes none: {refusal.message}"
        return f"{counts.pending} events pending, destination {destination.state}{why}{refusing}"
