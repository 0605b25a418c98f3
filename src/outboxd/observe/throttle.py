"""How often the same line may be said before it is left out, and the count of those.

Pure: it is told the time and returns a decision. It must never forget a
count: whatever was left out is told once, with the next line of its kind that
is let through or, if none comes, when its window has ended.
"""

from __future__ import annotations

from collections.abc import Hashable


class Throttle:
    """Lets `burst` lines of a kind through in each window of `window_s` seconds."""

    def __init__(self, burst: int = 10, window_s: float = 60.0, kinds_max: int = 512) -> None:
        assert burst >= 1
        assert window_s > 0
        assert kinds_max >= 1
        self.burst = burst
        self.window_s = window_s
        self.kinds_max = kinds_max
        self._windows: dict[Hashable, _Window] = {}  # the one that ends first comes first
        self._next_end_s = float("inf")

    def admit(self, kind: Hashable, now_s: float) -> bool:
        """Whether this line may be said; one that may not is counted."""
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= self.kinds_max:
                return True  # too many kinds to remember: rather say too much
            self._windows[kind] = window = _Window(now_s + self.window_s)
            self._next_end_s = min(self._next_end_s, window.ends_s)
        window.said += 1
        if window.said <= self.burst:
            return True
        window.left_out += 1
        return False

    def ended(self, now_s: float) -> list[tuple[Hashable, int]]:
        """Close the windows that have ended; of each with lines left out, how many."""
        if now_s < self._next_end_s:
            return []
        over = [kind for kind, window in self._windows.items() if window.ends_s <= now_s]
        return self._close(over)

    def close(self) -> list[tuple[Hashable, int]]:
        """Close every window, as at the end of the program."""
        return self._close(list(self._windows))

    def _close(self, kinds: list[Hashable]) -> list[tuple[Hashable, int]]:
        closed = [(kind, self._windows.pop(kind).left_out) for kind in kinds]
        self._next_end_s = min(
            (window.ends_s for window in self._windows.values()), default=float("inf")
        )
        return [(kind, left_out) for kind, left_out in closed if left_out]


class _Window:
    """One kind's count since its first line."""

    __slots__ = ("ends_s", "left_out", "said")

    def __init__(self, ends_s: float) -> None:
        self.ends_s = ends_s
        self.said = 0
        self.left_out = 0
