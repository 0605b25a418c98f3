"""`outboxd scope`: whom an event would reach, seen before it is sent."""

from __future__ import annotations

import json
import sys

from outboxd.cli import render
from outboxd.errors import EX_OK
from outboxd.event.scope import Inventory, correlated
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless, harmless_json


def run(arguments: Arguments) -> int:
    """Print the services of the inventory that the scope is correlated to."""
    inventory = Inventory.load(arguments.inventory)
    scope = {
        "clusters": arguments.cluster,
        "namespaces": arguments.namespace,
        "servicesNames": arguments.service,
    }
    services = correlated(scope, inventory)
    if arguments.json:
        for service in services:
            print(harmless_json(json.dumps(service.as_json(), ensure_ascii=False)))
    elif services:
        rows = [(service.cluster, service.namespace, service.service) for service in services]
        heads = ("CLUSTER", "NAMESPACE", "SERVICE")
        for line in render.table(heads, rows, render.terminal_columns()):
            print(line)
    _explain(scope, len(services), inventory)
    return EX_OK


def _explain(scope: dict[str, list[str]], count: int, inventory: Inventory) -> None:
    """On stderr: how many of how many, and names that nothing has."""
    sys.stdout.flush()
    total = len(inventory.services)
    if not any(scope.values()):
        print(f"no scope: all {total} services of the account", file=sys.stderr)
        return
    print(f"{count} of {total} services", file=sys.stderr)
    for word, names, known in (
        ("cluster", scope["clusters"], inventory.clusters),
        ("namespace", scope["namespaces"], inventory.namespaces),
        ("service", scope["servicesNames"], inventory.names),
    ):
        for name in names:
            if name not in known:
                shown = harmless(name)
                print(f"the inventory has no {word} {shown!r}", file=sys.stderr)
