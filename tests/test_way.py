"""How many files one event passes: a newcomer reads these to know what happens to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

ROOT = Path(__file__).parent.parent
FILES_MAX = {"receipt": 20, "settlement": 30}

# Two rooms that only pass on, where an event comes in.
MORE_LAYERS = """
import sys
from benchmarks import way
from outboxd.intake.intake import Intake

for name in ("relay.py", "second_relay.py"):
    passing = "lambda intake, *args, take=Intake.take: take(intake, *args)"
    Intake.take = eval(compile(passing, way.SOURCE + name, "eval"), {"Intake": Intake})
sys.argv = ["way", "--json"]
way.main()
"""


def traced(*args: str) -> dict[str, list[str]]:
    """The files of each way."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=2 * PATIENCE_S,
    )
    return json.loads(done.stdout)


def too_long(ways: dict[str, list[str]]) -> list[str]:
    return [name for name, files in ways.items() if len(files) > FILES_MAX[name]]


def test_an_event_passes_few_files_to_its_receipt_and_its_settlement():
    ways = traced("-m", "benchmarks.way", "--json")
    assert ways.keys() == FILES_MAX.keys()
    assert "outbox/writer.py" in ways["receipt"]
    assert "delivery/transport.py" in ways["settlement"]
    assert too_long(ways) == [], ways


@pytest.mark.long
def test_control_more_layers_are_counted():
    ways = traced("-c", MORE_LAYERS)
    assert {"relay.py", "second_relay.py"} <= set(ways["receipt"])
    assert "settlement" in too_long(ways)
