"""What the sender reads of the configuration: its sections, as they are."""

from __future__ import annotations

from typing import NamedTuple

from outboxd.config.sections import Delivery, Komodor


class DeliverySettings(NamedTuple):
    """See config.example.toml for what each setting does."""

    komodor: Komodor
    delivery: Delivery
    read_ahead: bool  # off while repeats are counted: what is read must be fresh

    @property
    def fifo(self) -> bool:
        """Whether events go out in the strict order of their receipt."""
        return self.delivery.order == "fifo"
