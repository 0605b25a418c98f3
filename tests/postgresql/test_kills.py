"""Gateways, and their database, are killed again and again under load."""

from __future__ import annotations

import random
import time

import pytest
from support.gateways import check


@pytest.mark.timeout(600)
def test_nothing_is_lost_when_gateways_are_killed_again_and_again(node, fleet, full):
    kills = 200 if full else 3
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    two = fleet(node.url())
    two.producers.start()
    for _ in range(kills):
        time.sleep(chance.uniform(0.005, 0.15))  # a random moment is the point of it
        gateway = chance.choice(two.gateways)
        gateway.kill()
        gateway.start()
    figures = two.finish()
    print(f"{kills} kills: {figures}")
    check(figures, kills)
    assert figures["receipts"] > kills


def test_nothing_is_lost_when_the_database_is_killed(node, fleet, only_full):
    """Its commits are on its disk, or nobody was told of them."""
    kills = 10
    two = fleet(node.url())
    two.producers.start()
    for number in range(kills):
        two.producers.await_more(20)
        time.sleep(random.uniform(0.0, 0.1))
        node.kill()
        if number % 2:
            time.sleep(0.3)  # long enough to be noticed by everybody
        node.start()
    figures = two.finish()
    print(f"{kills} kills of the database: {figures} {two.producers.refusals}")
    check(figures, kills)
    assert set(two.producers.refusals) <= {503}
