"""What a test draws is the same wherever it runs, or a gate would open by chance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from support import seeds


def drawn() -> str:
    """What one seed gives, in a short form."""
    values: list[object] = []

    @hypothesis.seed(4)
    @hypothesis.settings(max_examples=100)
    @hypothesis.given(st.lists(st.text() | st.integers()), st.sets(st.sampled_from(["a", "b"])))
    def collect(texts: list[object], names: set[str]) -> None:
        values.append((texts, sorted(names)))

    collect()
    assert len(values) == 100
    return ascii(values)


@pytest.fixture(scope="module")
def elsewhere() -> str:
    """The same in a process that has loaded next to nothing, and orders sets in its own way."""
    here = Path(__file__)
    script = "import test_seeds; test_seeds.seeds.settle_hypothesis(); print(test_seeds.drawn())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(here.parent), "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_seed_draws_the_same_in_every_process(elsewhere):
    assert drawn() == elsewhere


def test_what_is_loaded_would_change_it(elsewhere, monkeypatch):
    """The control: Hypothesis has read one constant in one module."""
    seen = Constants(strings={"this one"})
    monkeypatch.setattr(providers.HypothesisProvider, "_local_constants", seen)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", {})
    assert drawn() != elsewhere


@pytest.mark.parametrize("one", ["a"])
def test_a_seed_is_made_of_the_tests_name(request, monkeypatch, one):
    monkeypatch.delenv("OUTBOXD_SEED", raising=False)
    monkeypatch.setattr(request.config.option, "soak", False)
    assert seeds.seed_of(request.node) == 2525935589
    monkeypatch.setattr(request.config.option, "soak", True)
    assert seeds.seed_of(request.node) != seeds.seed_of(request.node)
    monkeypatch.setenv("OUTBOXD_SEED", "0")
    assert seeds.seed_of(request.node) == 0
