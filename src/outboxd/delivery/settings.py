"""What `[delivery]` and `[komodor]` say, in the sender's units."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """See config.example.toml for what each of them does."""

    endpoint: str
    concurrency_max: int
    rate_max: int
    backoff_initial_s: float
    backoff_max_s: float
    attempts_max: int
    hold_probe_s: float
    retry_after_max_s: float
    stamp: str
    late_after_s: float
    order: str
    fresh_share: float
    read_ahead: bool  # off while repeats are counted: what is read must be fresh

    @property
    def fifo(self) -> bool:
        """Whether events go out in the strict order of their receipt."""
        return self.order == "fifo"
