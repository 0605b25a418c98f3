"""The producer's side: hand in an event from a Python program or a cron job.

Standard library alone, and light: it must never import what the agent needs,
and never make its caller wait long.
"""

from __future__ import annotations

from outboxd.producer.hand_in import Stored, emit

__all__ = ["Stored", "emit"]
