"""Every place at which delivery may wait: read from its source, so that a new one is there.

A place is an await (or `async for`, `async with`) in a function that the coroutines of
delivery may come to. Calls are followed by their names, which finds too many rather than
too few.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import outboxd

SOURCE = Path(outboxd.__file__).parent
FILES = [
    *sorted((SOURCE / "delivery").glob("*.py")),
    SOURCE / "agent/election.py",
    SOURCE / "outbox/outbox.py",
]
# The coroutines themselves: what `gateway_hooks` can stop.
ROOTS = (
    ("delivery/sender.py", "run"),
    ("delivery/in_flight.py", "_send"),
    ("agent/election.py", "run"),
)


class Place(NamedTuple):
    """One of them."""

    file: str
    function: str
    first_line: int
    last_line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.function}: {self.text[:60]}"

    def holds(self, frame: str) -> bool:
        """Whether a coroutine whose frame is "file:function:line" waits here."""
        file, function, line = frame.rsplit(":", 2)
        return (file, function) == (self.file, self.function) and (
            self.first_line <= int(line) <= self.last_line
        )


def places() -> list[Place]:
    """All of them, by file and line."""
    functions: dict[str, list[tuple[str, ast.AsyncFunctionDef]]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef):
                file = str(path.relative_to(SOURCE))
                functions.setdefault(node.name, []).append((file, node))
    todo = [each for file, name in ROOTS for each in functions[name] if each[0] == file]
    reached: set[tuple[str, int]] = set()
    found: set[Place] = set()
    while todo:
        file, function = todo.pop()
        if (file, function.lineno) in reached:
            continue
        reached.add((file, function.lineno))
        for node in ast.walk(function):
            if isinstance(node, ast.Await):
                found.add(_place(file, function, node, node))
                todo += [each for name in _called(node) for each in functions.get(name, [])]
            elif isinstance(node, ast.AsyncFor):
                found.add(_place(file, function, node.iter, node.iter))
            elif isinstance(node, ast.AsyncWith):
                # Those of time limits wait for nothing themselves.
                waits = [i for i in node.items if "asyncio.timeout" not in ast.unparse(i)]
                found |= {_place(file, function, i.context_expr, i.context_expr) for i in waits}
    return sorted(found)


def _place(file: str, function: ast.AsyncFunctionDef, node: ast.expr, end: ast.expr) -> Place:
    text = " ".join(ast.unparse(node).split())
    return Place(file, function.name, node.lineno, end.end_lineno or node.lineno, text)


def _called(node: ast.AST) -> set[str]:
    names = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            called = each.func
            names.add(called.attr if isinstance(called, ast.Attribute) else ast.unparse(called))
    return names
