"""Counters and histograms that cost the hot path a fraction of a microsecond.

prometheus_client's own take a lock and about 1 and 2.7 microseconds a call;
several of them on the way of each event would be felt. Here a count is an
integer in a list, and prometheus_client's families are made of it when
somebody looks. Each cell is written by one thread alone (the event loop's or
the writer's), so no lock is needed; reading one between two additions shows
at worst the older value.

Label values are those given at the start, each there with 0 from the start;
a value that is not among them is counted as `other` rather than refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import inf

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

OTHER = "other"


class Counter:
    """A count without labels."""

    __slots__ = ("help", "name", "value")

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self.value = 0

    def family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.help, value=self.value)


class LabelledCounter:
    """A count for each value of one label."""

    __slots__ = ("_counts", "help", "label", "name")

    def __init__(self, name: str, help: str, label: str, values: Iterable[str]) -> None:
        self.name = name
        self.help = help
        self.label = label
        self._counts = dict.fromkeys(values, 0)

    def add(self, value: str, count: int) -> None:
        counts = self._counts
        if value not in counts:
            value = OTHER
            counts.setdefault(OTHER, 0)
        counts[value] += count

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self.name, self.help, labels=[self.label])
        for value, count in list(self._counts.items()):
            family.add_metric([value], count)
        return family


class NamedCounter:
    """A count for each of a bounded number of names, and of a reason where there are some.

    Names that come once there are `names_max` of them are counted as `other`, so that
    nobody's configuration makes series without end.
    """

    __slots__ = ("_counts", "_labels", "_names_max", "_reasons", "help", "name")

    def __init__(
        self,
        name: str,
        help: str,
        label: str,
        reasons: Sequence[str] = (),
        names_max: int = 100,
    ) -> None:
        self.name = name
        self.help = help
        self._labels = [label, "reason"] if reasons else [label]
        self._reasons = (*reasons, OTHER) if reasons else ("",)
        self._names_max = names_max
        self._counts: dict[str, dict[str, int]] = {}
        self._of(OTHER)

    def know(self, names: Iterable[str]) -> None:
        """These are there from now on, with 0."""
        for name in names:
            self._of(name)

    def add(self, name: str, count: int, reason: str = "") -> None:
        counts = self._of(name)
        counts[reason if reason in counts else OTHER] += count

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self.name, self.help, labels=self._labels)
        for name, counts in list(self._counts.items()):
            for reason, count in counts.items():
                family.add_metric([name, reason][: len(self._labels)], count)
        return family

    def _of(self, name: str) -> dict[str, int]:
        counts = self._counts.get(name)
        if counts is None:
            if len(self._counts) > self._names_max:
                return self._counts[OTHER]
            self._counts[name] = counts = dict.fromkeys(self._reasons, 0)
        return counts


class Histogram:
    """How observations spread over buckets."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self._bounds = [float(bound) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*self._bounds, inf], self._counts, strict=True):
            total += count
            buckets.append((repr(bound) if bound < inf else "+Inf", total))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=self._sum)
