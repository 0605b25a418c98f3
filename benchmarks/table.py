"""Rows of the result, and how they are printed and judged."""

from __future__ import annotations

import json
from statistics import median
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One figure beside its ceiling, both from the same run."""

    name: str
    value: float
    unit: str
    ceiling: float | None = None
    ceiling_name: str = ""
    at_least: float | None = None  # of value / ceiling
    at_most: float | None = None  # of value / ceiling, or of the value where there is none
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if not self.ceiling else self.value / self.ceiling

    @property
    def judged(self) -> float:
        """What the bounds are compared with."""
        return self.value if self.ratio is None else self.ratio

    def holds(self) -> bool:
        """Whether the bound is kept."""
        if self.at_least is not None and self.judged < self.at_least:
            return False
        return self.at_most is None or self.judged <= self.at_most

    def regressed(self, before: float | None) -> bool:
        """Whether the ratio is worse by half than one recorded before.

        Only ratios are compared: other machines have other absolute figures.
        """
        if before is None or self.ratio is None:
            return False
        if self.at_most is not None:
            return self.ratio > before * 2
        return self.ratio < before / 2


def cpu_row(
    name: str,
    runs_us: list[float],
    ceiling: float | None = None,
    ceiling_name: str = "",
    at_most: float | None = None,
) -> Row:
    """The CPU of an event: the median of the runs, and their minimum."""
    note = f"minimum {number(min(runs_us))}" if len(runs_us) > 1 else ""
    return Row(name, median(runs_us), "us", ceiling, ceiling_name, at_most=at_most, note=note)


def print_table(rows: list[Row], machine: dict[str, str]) -> None:
    """As Markdown, so that it can be pasted where it is needed."""
    print(f"\n{machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}, "
          f"SQLite {machine['sqlite']}\n")  # fmt: skip
    print("| row | measured | ceiling in the same run | ratio | wanted | |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        ceiling = f"{number(row.ceiling)} ({row.ceiling_name})" if row.ceiling else "-"
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        bound = ""
        if row.at_least is not None:
            bound = f"at least {row.at_least:g}"
        elif row.at_most is not None:
            bound = f"at most {row.at_most:g}"
        verdict = "" if not bound else ("kept" if row.holds() else "missed")
        note = f"; {row.note}" if row.note else ""
        print(f"| {row.name} | {number(row.value)} {row.unit}{note} | {ceiling} | {ratio} "
              f"| {bound} | {verdict} |")  # fmt: skip


def as_json(rows: list[Row], machine: dict[str, str]) -> str:
    """The same for programs."""
    told: list[dict[str, Any]] = [
        {**row._asdict(), "ratio": row.ratio, "holds": row.holds()} for row in rows
    ]
    return json.dumps({"machine": machine, "rows": told}, indent=1)


def number(value: float | None) -> str:
    """With as many digits as mean something."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
