"""How the fuzz tests run, and how a finding is run again.

Hypothesis draws structured inputs; each of them is checked as it is and then
in mutants of it (tokens cut out, doubled, swapped, replaced by nasty ones),
which costs a hundredth of drawing another. 300 inputs a test, 20,000 with
--full. They are the same ones in each run, from the seed of the test's own name:
`--soak` draws others, and OUTBOXD_SEED=N, which a failing test prints, those again.
"""

from __future__ import annotations

import random
import re

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

TOKEN = re.compile(rb'[\w.+-]+|\s+|"[^"\n]*"|.', re.DOTALL)


@pytest.fixture
def fuzz(full, seed):
    """Call with a strategy and a check, and for mutants a list of nasty tokens."""

    def run(strategy, check, nasty: list[bytes] | None = None):
        mutant_count = 0 if nasty is None else 9 if full else 2
        input_count = (20_000 if full else 300) if nasty else (3000 if full else 100)

        @hypothesis.seed(seed)
        @settings(
            max_examples=input_count // (1 + mutant_count),
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy, st.integers(0, 1 << 32))
        def examples(example, mutation):
            check(example)
            chance = random.Random(mutation)
            for _ in range(mutant_count):
                mutant = mutated(example, chance, nasty)
                try:
                    check(mutant)
                except BaseException as error:
                    error.add_note(f"with the mutant {mutant[:2000]!r}")
                    raise

        examples()

    return run


def mutated(data: bytes, chance: random.Random, nasty: list[bytes]) -> bytes:
    """One to three changes to the data's tokens or bytes."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        tokens = TOKEN.findall(data[:20_000])
        at, other = chance.randrange(len(tokens) + 1), chance.randrange(len(tokens) + 1)
        change = chance.randrange(7)
        if change == 0 and data:
            position = chance.randrange(len(data))
            flipped = data[position] ^ (1 << chance.randrange(8))
            data = data[:position] + bytes([flipped]) + data[position + 1 :]
            continue
        if change == 1:
            tokens[min(at, other) : max(at, other)] = []
        elif change == 2:
            tokens[at:at] = tokens[min(at, other) : max(at, other)]
        elif change == 3 and at < len(tokens) and other < len(tokens):
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 4:
            tokens[at : at + 1] = [chance.choice(nasty)]
        elif change == 5:
            tokens[at:at] = [chance.choice(nasty)]
        elif at < len(tokens):
            tokens[at] *= chance.choice((2, 101, 1000, 5000))
        data = b"".join(tokens)
    return data
