"""To which services of the inventory a received event is correlated.

The rules are `outboxd.event.scope`'s; here the answers are kept, because most events
of a run have one of a few scopes. It never keeps more than a few hundred.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from outboxd.event.scope import Inventory, correlated
from outboxd.sandbox.validation import ReceivedEvent

SCOPES_KEPT = 256


class Correlation:
    """An inventory, and the answers it has given."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self._encoded = lru_cache(SCOPES_KEPT)(self._encode)

    def encoded(self, event: ReceivedEvent) -> bytes:
        """The correlated services as a JSON list."""
        return self._encoded(event.clusters, event.namespaces, event.services)

    def inventory_json(self) -> dict[str, Any]:
        """The inventory, each of its names once, and every service."""
        inventory = self.inventory
        return {
            "clusters": inventory.clusters,
            "namespaces": inventory.namespaces,
            "services": inventory.names,
            "all": [service.as_json() for service in inventory.services],
        }

    def _encode(
        self, clusters: tuple[str, ...], namespaces: tuple[str, ...], services: tuple[str, ...]
    ) -> bytes:
        scope = {"clusters": clusters, "namespaces": namespaces, "servicesNames": services}
        found = correlated(scope, self.inventory)
        return msgspec.json.encode([service.as_json() for service in found])
