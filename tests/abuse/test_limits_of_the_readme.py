"""The README's table of limits names each limit as it is, and the metric that counts it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.outside import Agent

from outboxd import budgets
from outboxd.api import routes
from outboxd.config.load import load
from outboxd.delivery import exchange
from outboxd.gateway import routes as gateway_routes
from outboxd.intake import intake
from outboxd.observe.metrics import LIMITS_MET, OTHER
from outboxd.outbox import listing, model
from outboxd.serve import connection, reader
from outboxd.spool import prune, rejects
from outboxd.web import groups, outbox_source, stream, tally

SOURCE = Path(__file__).parents[2] / "src" / "outboxd"
README = (Path(__file__).parents[2] / "README.md").read_text()
LIMITS_METRIC = "outboxd_http_limits_met_total"
MIB = budgets.MIB


def rows() -> dict[str, list[str]]:
    """The table: what is limited, and the limit, what is beyond it and its metric."""
    table = README[README.index("| what | limit | beyond it | metric |") :].partition("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {what: rest for what, *rest in lines}


ROWS = rows()


def named_metrics(cell: str) -> list[tuple[str, str]]:
    """The metrics that a cell names, each with a label's value or ""."""
    if cell == "the same":
        return []
    words = re.findall("`([a-z_]+)`", cell)
    if not words[0].endswith(("_total", "_bytes")):
        return [(LIMITS_METRIC, word) for word in words]
    metric = words[0] if words[0].startswith("process_") else f"outboxd_{words[0]}"
    return [(metric, word) for word in words[1:]] or [(metric, "")]


def missing_metrics(cells: dict[str, str], shown: str) -> list[str]:
    """Each row whose metric is none of the agent's."""
    found = []
    for what, cell in cells.items():
        if not cell.strip():
            found.append(f"{what}: no metric")
            continue
        for metric, label in named_metrics(cell):
            series = f'{metric}{{[a-z]+="{label}"}} ' if label else metric
            if not re.search(f"^{series}", shown, re.MULTILINE):
                found.append(f"{what}: {metric} {label}")
    return found


def test_each_limit_has_a_metric_that_a_real_agent_shows(tmp_path):
    agent = Agent(tmp_path, "http://127.0.0.1:9/")
    agent.start()
    try:
        shown = agent.metrics()
    finally:
        agent.kill()
    cells = {what: rest[2] for what, rest in ROWS.items() if "gateway_events" not in rest[2]}
    assert missing_metrics(cells, shown) == []
    named = {label for cell in cells.values() for metric, label in named_metrics(cell) if label} - {
        "rejected",
        "pruned",
    }
    assert named == set(LIMITS_MET) - {OTHER}
    # A row without a metric, and one with a metric that there is not, are seen.
    wrong = {"a": "", "b": "`events_nowhere_total`", "c": "`nowhere`", "d": "`idle`"}
    assert [each[0] for each in missing_metrics(wrong, shown)] == ["a", "b", "c"]


def uncounted(limits: Iterable[str]) -> list[str]:
    """Each limit that nothing in the code tells the metrics of."""
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    told = r"limit(?:ed|_met)\(\"{0}\"|limit_met, \"{0}\"|limit=\"{0}\""
    return [limit for limit in limits if not re.search(told.format(limit), source)]


def test_each_limit_is_counted_where_it_is_met():
    assert uncounted(set(LIMITS_MET) - {OTHER}) == []
    assert uncounted(["idle", "nowhere"]) == ["nowhere"]


_SOCKET, _PAGE = budgets.socket_limits(), budgets.page_limits()
_KOMODOR = load("/dev/null").intake
_GATEWAY = budgets.gateway_limits(_KOMODOR.connections_max, _KOMODOR.connections_per_peer)
_CREDIT = budgets.abandoned_connections()

# What the code has, and how the table writes it.
LIMITS: dict[str, list[Any]] = {
    "connections to the socket": [_SOCKET.connections.total, _SOCKET.connections.share],
    "connections to the page": [_PAGE.connections.total, _PAGE.connections.share],
    "connections to a gateway": [_GATEWAY.connections.total, _GATEWAY.connections.share],
    "connections that are left before an answer": [_CREDIT.saved_max, _CREDIT.per_s],
    "bytes of requests and answers on their way": [
        *(_SOCKET.bytes.total // MIB, _SOCKET.bytes.share // MIB),
        *(_GATEWAY.bytes.total // MIB, _GATEWAY.bytes.share // MIB),
        connection.FREE_BYTES // 1024,
    ],
    "a head; headers": [*(reader.HEAD_BYTES_MAX // 1024, connection.STALL_S, reader.HEADERS_MAX)],
    "a body": [connection.STALL_S, connection.DRIP_BYTES_PER_S // 1024],
    "pipelined requests that wait": [connection.PIPELINE_MAX],
    "an idle connection": [connection.KEEPALIVE_S],
    "a page of a listing": [1000, listing.PAGE_BYTES_MAX // MIB, outbox_source.PAGE_S],
    "listings at once": [routes.LISTINGS_AT_ONCE, routes.LISTINGS_WAITING_MAX],
    "pages that listen at once": [stream.LISTENERS_MAX],
    "what is told apart for the page's filters": [
        *(tally.GROUPS_BYTES_MAX // MIB, groups.VALUE_CHARACTERS_MAX, model.SCOPE_LISTED_MAX)
    ],
    "an event": [_KOMODOR.event_bytes_max // 1024],
    "a webhook's payload": [gateway_routes.VALUES_MAX],
    "faults of a batch": [intake.EXPLAINED_MAX, intake.FAULTS_MAX],
    "bad lines of a spool file": [rejects.FAULTS_TOLD_MAX, rejects.FAULTS_MAX],
    "what is refused in the spool": [
        *(rejects.FILE_KEPT_BYTES_MAX // MIB, prune.REJECTED_BYTES_MAX // MIB)
    ],
    "an endpoint's answer": [
        *(exchange.ANSWER_BYTES_MAX // 1024, exchange.BEFORE_STATUS_BYTES_MAX // 1024),
        *(exchange.INTERIM_MAX, exchange.REST_S),
    ],
}


@pytest.mark.parametrize("what", LIMITS)
def test_the_table_has_each_limit_as_it_is(what):
    said = re.findall(r"\d[\d,.]*\d|\d", ROWS[what][0])
    assert [f"{number:,g}" for number in LIMITS[what] if f"{number:,g}" not in said] == []


def test_each_budget_stands_in_the_table():
    made = {name for name in vars(budgets) if name.endswith(("_limits", "_connections"))}
    assert made == {
        *("socket_limits", "page_limits", "gateway_limits", "abandoned_connections"),
        "sandbox_limits",  # of a tool for trying things out
    }
