"""What a monitoring system needs beside the metrics: alert rules and a dashboard.

They are files of this package, so that `outboxd monitoring` prints those that
fit the agent of the same version. Nothing here reads a metric or a network.
"""

from __future__ import annotations

from importlib.resources import files

NAMES = {"rules": "rules.yml", "dashboard": "dashboard.json"}


def read(name: str) -> str:
    """The text of `rules` (Prometheus) or `dashboard` (Grafana)."""
    return files(__name__).joinpath(NAMES[name]).read_text(encoding="utf-8")
