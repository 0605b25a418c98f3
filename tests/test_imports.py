"""Imports go in one direction, and the command that cron calls stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import outboxd

SOURCE = Path(outboxd.__file__).parent

# Each room, from the bottom to the top, and the rooms that it may import.
BOTTOM = {
    "budgets",
    "disk",
    "errors",
    "files",
    "findings",
    "clock",
    "logger",
    "memory",
    "text",
    "units",
    "times",
    "locations",
    "slices",
    "status",
    "producer_names",
    "event",
    "config",
}
MAY_IMPORT = {
    "outbox": BOTTOM,
    "observe": BOTTOM | {"outbox", "delivery"},  # delivery: the facts alone
    "serve": BOTTOM,
    "gateway": BOTTOM | {"outbox", "serve", "intake"},
    "intake": BOTTOM | {"outbox", "serve", "observe"},
    "spool": BOTTOM | {"outbox", "observe", "intake"},
    "delivery": BOTTOM | {"outbox"},
    "api": BOTTOM | {"outbox", "serve", "observe"},
    "web": BOTTOM | {"outbox", "serve", "api"},
    "producer": BOTTOM - {"config", "status", "clock", "logger"},
    "sandbox": BOTTOM | {"outbox", "serve", "web", "api"},
    "monitoring": BOTTOM,
    "agent": BOTTOM
    | {"outbox", "observe", "serve", "intake", "spool", "gateway", "delivery", "api", "web"},
}
# What `emit` and `exec` may load, and nothing else of outboxd: it is the installed `outboxd`.
LIGHT = sorted(
    str(path.relative_to(SOURCE))
    for room in ("errors", "locations", "text", "times", "units", "event", "producer")
    for path in [*(SOURCE / room).rglob("*.py"), SOURCE / f"{room}.py"]
    if path.exists()
)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("outboxd."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {n.name.split(".")[1] for n in node.names if n.name.startswith("outboxd.")}
    return rooms


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_what_lies_below_it(path):
    room = room_of(path)
    if room in ("cli", "__init__", "__main__"):
        return
    allowed = BOTTOM if room in BOTTOM else MAY_IMPORT[room]
    assert imported_rooms(path) - allowed - {room} == set()


def imported_files(path: Path) -> set[Path]:
    """The files of outboxd that one imports, in functions too, but not for types alone."""
    names = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        waiting += ast.iter_child_nodes(node)
    found = {SOURCE.parent / f"{str(name).replace('.', '/')}.py" for name in names}
    return {each for each in found if each.exists()}


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({path: imported_files(path) for path in FILES}).prepare()


def test_intake_and_delivery_never_meet():
    for path in FILES:
        if room_of(path) in ("intake", "spool"):
            assert "delivery" not in imported_rooms(path)
        if room_of(path) == "delivery":
            assert not {"intake", "spool"} & imported_rooms(path)


def test_an_engine_of_the_outbox_is_known_to_itself_and_to_who_opens_it():
    drivers = {"sqlite": "sqlite3", "postgresql": "psycopg"}
    for path in FILES:
        text = path.read_text().replace("sqlite3 .backup", "")
        own = next((e for e in drivers if path.is_relative_to(SOURCE / "outbox" / e)), None)
        assert own or "SELECT " not in text, path
        for engine in drivers.keys() - {own}:
            assert f"import {drivers[engine]}" not in text, path
            assert f"from {drivers[engine]}" not in text, path
            if own or room_of(path) not in ("agent", "cli"):
                assert f"outboxd.outbox.{engine}" not in text, path
            if own or room_of(path) not in ("agent", "cli"):
                assert f"outboxd.outbox.{engine}" not in text, path


def test_one_module_imports_httpx_and_an_agent_without_a_proxy_does_not_load_it():
    users = {path.name for path in FILES if "import httpx" in path.read_text()}
    assert users == {"proxied.py"}
    for module in ("outboxd.delivery.transport", "outboxd.agent.run"):
        loaded = f"import sys, {module}; print([n for n in ('httpx', 'anyio') if n in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", module


@pytest.mark.parametrize("name", LIGHT)
def test_the_producers_side_is_the_standard_library_alone(name):
    for node in ast.walk(ast.parse((SOURCE / name).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for module in names:
            top = module.split(".")[0]
            assert top in sys.stdlib_module_names or top == "outboxd", module
