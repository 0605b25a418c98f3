"""Deliberately wrong: a lease that is renewed whoever holds it, for the controls of the fence.

It is patched over `LeaseRow._renew`, in a simulation and, by its source, in real gateways.
"""

from __future__ import annotations

from typing import Any


def renew(self: Any, more: str, values: tuple[object, ...]) -> None:
    """The row is changed without a look at its holder."""
    asked_at_s = self._clock.since_boot_s()
    ((turn,),) = self._link.connection.execute(
        f"UPDATE deliverers SET {more} turn = turn + 1,"
        " lease_ends_at = clock_timestamp() + %s * interval '1 second'"
        " WHERE destination = %s RETURNING turn",
        (*values, self.length_s, self._destination),
    )
    self.lease = self.lease.renewed(turn, asked_at_s)
