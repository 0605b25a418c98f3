"""What the page needs of the program that it looks into.

Types alone. The agent and the sandbox each have a source; the page, the routes
and the stream know nothing else of either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, Protocol

from outboxd.outbox.model import EntryFilter

Kind = Literal["agent", "sandbox"]
Json = dict[str, Any]


class TimelineSource(Protocol):
    """One timeline to look at. Every answer is ready to be encoded as JSON."""

    @property
    def kind(self) -> Kind:
        """Which of the two pages this is."""
        ...

    async def facets(self, where: EntryFilter) -> Json:
        """How many events each value of each filter would leave, see `tally.Facets`."""
        ...

    async def histogram(
        self, where: EntryFilter, since: int | None, until: int | None, buckets: int
    ) -> Json:
        """Events over time by severity, at most `buckets` of them."""
        ...

    async def activity(self) -> Json | None:
        """Backlog, rate and destination of the last hour; None where there is none."""
        ...

    async def inventory(self) -> Json | None:
        """The clusters, namespaces and services there are; None where unknown."""
        ...

    async def status(self) -> Mapping[str, Any]:
        """What the head of the page shows; small, asked often."""
        ...

    def changes(self) -> AsyncIterator[str]:
        """A new revision each time something changed, from the present one on."""
        ...
