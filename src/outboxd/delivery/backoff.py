"""How long to wait after a failure: full jitter below a doubling bound.

Pure: the random number is an argument. The bound is tenacity's exponential
strategy; its `wait_random_exponential` would draw from Python's global random
source, which nobody could replay, so the draw is made here, in the same way.
"""

from __future__ import annotations

from typing import cast

from tenacity import RetryCallState
from tenacity.wait import wait_exponential


class _Attempt:
    """All that the strategy reads of tenacity's RetryCallState."""

    __slots__ = ("attempt_number",)

    def __init__(self, attempt_number: int) -> None:
        self.attempt_number = attempt_number


class Backoff:
    """The schedule for a destination, or for an event that fails on its own."""

    def __init__(self, initial_s: float, max_s: float) -> None:
        self.initial_s = initial_s
        self.max_s = max_s
        self._bound = wait_exponential(multiplier=initial_s, max=max_s)

    def bound_s(self, failures: int) -> float:
        """The longest wait after so many failures in a row (1 is the first)."""
        if failures < 1:
            raise ValueError("a backoff follows a failure: failures counts from 1")
        # Beyond 2**64 the bound is long since `max_s`, and floats would overflow.
        state = cast(RetryCallState, _Attempt(min(failures, 64)))
        return self._bound(state)

    def delay_s(self, failures: int, random: float) -> float:
        """The wait after so many failures, `random` being drawn from [0, 1)."""
        return self.bound_s(failures) * random
