"""The metrics as a file, for node_exporter on hosts that nobody can scrape.

Written aside and renamed, so that a reader never sees half of it. It is not
synced: after a power cut the agent writes it afresh. It must leave out the
process's own metrics, because node_exporter has metrics of the same names
about itself and then drops every text file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from outboxd.errors import OutboxdError
from outboxd.observe.metrics import Metrics

SUFFIX = ".prom"  # node_exporter reads no other files


def write_textfile(path: str, metrics: Metrics) -> None:
    """Write the metrics, each with the label `agent` that tells this file's from
    those of other agents on the host: its name without the suffix.

    Raises OutboxdError; the next write may work.
    """
    agent = os.path.basename(path).removesuffix(SUFFIX)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Labelled(metrics, agent))
    try:
        _publish(path, generate_latest(registry))
    except OSError as error:
        raise OutboxdError(
            f"the metrics could not be written to {path}: {error.strerror or error}",
            "[metrics] textfile must lie in a directory that the agent may write to",
        ) from error


class _Labelled(Collector):
    """The agent's metrics with one more label."""

    def __init__(self, metrics: Metrics, agent: str) -> None:
        self._metrics = metrics
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        for family in self._metrics.families():
            family.samples = [
                sample._replace(labels={**sample.labels, "agent": self._agent})
                for sample in family.samples
            ]
            yield family


def _publish(path: str, content: bytes) -> None:
    directory, name = os.path.split(path)
    # The dot, and the lack of the suffix, keep it from readers.
    aside = os.path.join(directory, f".{name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)  # of a run that was killed in between
    descriptor = os.open(
        aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: node_exporter is another user
        os.rename(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
