"""The README names what the code has, and nothing that it has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from outboxd.cli.table import COMMANDS
from outboxd.observe.metrics import Metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_named(name):
    assert re.search(rf"outboxd {name}\b|`{name}`|/ {name}\b", README)


def test_every_command_of_the_readme_exists():
    known = set(COMMANDS)
    named = re.findall(r"^\s*(?:\$ )?(?:\.venv/bin/)?outboxd ([a-z-]+)", README, re.MULTILINE)
    assert set(named) <= known


@pytest.mark.parametrize("family", Metrics().families(), ids=lambda family: family.name)
def test_every_metric_is_named(family):
    assert f"`{family.name}" in README


@pytest.mark.parametrize(
    "path", sorted({*re.findall(r"^(src|systemd|tests|benchmarks)/", README, re.MULTILINE)})
)
def test_the_tree_is_there(path):
    assert (ROOT / path).is_dir()
