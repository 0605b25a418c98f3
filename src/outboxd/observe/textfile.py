"""The metrics as a file, for node_exporter on hosts that nobody can scrape.

Written aside and renamed, so that a reader never sees half of it. It is not
synced: after a power cut the agent writes it afresh. It must leave out the
process's own metrics, because node_exporter has metrics of the same names
about itself and then drops every text file; and it must not write over another
agent's file, nor repeat its series: node_exporter refuses all files for one pair.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from outboxd.errors import EX_NOPERM, OutboxdError
from outboxd.files import check_replaceable, read_start
from outboxd.observe.metrics import Metrics

SUFFIX = ".prom"  # node_exporter reads no other files


OTHER_FRESH_S = 120.0  # of another agent that writes every few seconds; older is left over


def write_textfile(path: str, metrics: Metrics, outbox: str, now_s: float) -> None:
    """Write the metrics, each with labels that tell this agent's series from those of
    others on the host: `agent`, the file's name without its suffix, and `outbox`, the
    path that no two agents share. `now_s`: seconds since 1970.

    Raises OutboxdError; the next write may work.
    """
    mark = f"# outboxd, with the outbox {outbox}\n".encode()
    _look_for_another(path, mark, now_s)
    agent = os.path.basename(path).removesuffix(SUFFIX)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Labelled(metrics, {"agent": agent, "outbox": outbox}))
    try:
        _publish(path, mark + generate_latest(registry))
    except OSError as error:
        directory = os.path.dirname(path)
        hint = f"[metrics] textfile must lie where the agent's user may write: ls -ld {directory}"
        if error.errno == errno.EROFS:
            hint = (
                "the service's unit does not let it write there: `systemctl edit outboxd` (or"
                f" outboxd@NAME), [Service] ReadWritePaths={directory}, then restart it"
            )
        failure = OutboxdError(
            f"the metrics could not be written to {path}: {error.strerror or error}", hint
        )
        failure.exit_code = EX_NOPERM
        raise failure from error


def _look_for_another(path: str, mark: bytes, now_s: float) -> None:
    try:
        first = read_start(path, 8192).partition(b"\n")[0] + b"\n"
        age_s = now_s - os.stat(path).st_mtime
    except OSError:
        return  # there is none; what else is wrong the writing will tell
    if first.startswith(b"# outboxd, ") and first != mark and age_s < OTHER_FRESH_S:
        theirs = first.decode("utf-8", "replace").strip("# \n")
        raise OutboxdError(
            f"[metrics] textfile = {path} is written by another agent: {theirs}",
            "give each agent a file of its own, such as outboxd-NAME.prom",
        )


class _Labelled(Collector):
    """The agent's metrics with more labels."""

    def __init__(self, metrics: Metrics, labels: dict[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for family in self._metrics.families():
            family.samples = [
                sample._replace(labels={**sample.labels, **self._labels})
                for sample in family.samples
            ]
            yield family


def _publish(path: str, content: bytes) -> None:
    check_replaceable(path)
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
