"""Which seed a test draws from: decided here alone, for every test that draws.

What a landing has to pass must be the same for the same commit. So a test draws from a seed
that is made of its own name, the same in every run, process and Python; a fault that other
seeds would show is looked for with `--soak`, which draws them anew, or with OUTBOXD_SEED=N,
and never by the next one to land something.

Hypothesis would by itself mix in constants that it reads in whichever modules happen to be
loaded, examples of earlier runs, and limits on a busy machine's time: none of these is left.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants


def given() -> int | None:
    """The seed that somebody asked for."""
    text = os.environ.get("OUTBOXD_SEED")
    return int(text) if text else None


def seed_of(test: pytest.Item) -> int:
    """Of a test, with its parameters; whole and below 2 ** 32."""
    number = given()
    if number is not None:
        return number
    if test.config.getoption("--soak"):
        return random.SystemRandom().randrange(1 << 32)
    return zlib.crc32(f"{test.path.name}::{test.name}".encode())


def histories(count: int) -> Sequence[int]:
    """The seeds of so many histories, from 0 on; or the one that somebody asked for."""
    number = given()
    return range(count) if number is None else [number]


def settle_hypothesis() -> None:
    """Before any test's module is read, since settings are taken from the default there."""
    hypothesis.settings.register_profile(
        "outboxd",
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("outboxd")
    providers.HypothesisProvider._local_constants = Constants()


def seed_hypothesis(tests: Sequence[pytest.Item]) -> None:
    """Each test that is given its values by Hypothesis has its seed."""
    for test in tests:
        if isinstance(test, pytest.Function) and hypothesis.is_hypothesis_test(test.function):
            hypothesis.seed(seed_of(test))(test.function)
