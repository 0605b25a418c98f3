"""One user's connections cost the others nothing: not intake, not memory, not time."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.alone

ATTACKS = SimpleNamespace(
    **{
        name: function
        for name, function in runpy.run_path(
            str(Path(__file__).with_name("attacks_on_the_socket.py"))
        ).items()
        if callable(function)
    }
)


@pytest.mark.parametrize("name", ["slow_heads", "slow_bodies"])
def test_whoever_holds_connections_keeps_nobody_out(attacked, name):
    with attacked() as abuse:
        report = abuse.attack(getattr(ATTACKS, name))
        print(report)
        assert report.faults() == []
