"""How the fuzz tests run: 300 examples each, 20,000 with --full, always replayable.

Each run prints its seed when it fails; OUTBOXD_FUZZ_SEED=N runs the same
examples again.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings


@pytest.fixture
def fuzz(full, request):
    """Call with a strategy and a check: runs the check on many examples."""
    number = int(os.environ.get("OUTBOXD_FUZZ_SEED") or random.randrange(1 << 32))

    def run(strategy, check):
        @seed(number)
        @settings(
            max_examples=20_000 if full else 300,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(strategy)
        def examples(example):
            check(example)

        try:
            examples()
        except BaseException:
            option = " --full" if full else ""
            print(
                f"seed {number}; replay with\n"
                f"OUTBOXD_FUZZ_SEED={number} python -m pytest{option} '{request.node.nodeid}'"
            )
            raise

    return run
