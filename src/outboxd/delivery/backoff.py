"""How long to wait after a failure: full jitter below a doubling bound.

    delay = random * min(max, initial * 2 ** (failures - 1)),  0 <= random < 1

Full jitter, because many hosts fail at the same moment and must not come back
in step (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
Pure: the random number is an argument.
"""

from __future__ import annotations

# Beyond this the bound is long since `max_s`, and floats would overflow.
_DOUBLINGS_MAX = 63


class Backoff:
    """The schedule for a destination, or for an event that fails on its own."""

    def __init__(self, initial_s: float, max_s: float) -> None:
        self.initial_s = initial_s
        self.max_s = max_s

    def bound_s(self, failures: int) -> float:
        """The longest wait after so many failures in a row (1 is the first)."""
        if failures < 1:
            raise ValueError("a backoff follows a failure: failures counts from 1")
        return min(self.max_s, self.initial_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))

    def delay_s(self, failures: int, random: float) -> float:
        """The wait after so many failures, `random` being drawn from [0, 1)."""
        return self.bound_s(failures) * random
