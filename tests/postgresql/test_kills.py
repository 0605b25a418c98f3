"""Gateways, and their database, are killed again and again under load."""

from __future__ import annotations

import random
import time

import pytest
from support.gateways import check


@pytest.mark.timeout(600)
def test_nothing_is_lost_when_gateways_are_killed_again_and_again(node, fleet, full, seed):
    kills = 200 if full else 3
    chance = random.Random(seed)
    two = fleet(node.url())
    two.producers.start()
    for _ in range(kills):
        time.sleep(chance.uniform(0.005, 0.15))  # a random moment is the point of it
        gateway = chance.choice(two.gateways)
        gateway.kill()
        gateway.start()
    two.producers.await_more(kills)
    figures = two.finish()
    print(f"{kills} kills: {figures}")
    check(figures, kills)


def test_nothing_is_lost_when_the_database_is_killed(node, fleet, only_full, seed):
    """Its commits are on its disk, or nobody was told of them."""
    kills = 10
    chance = random.Random(seed)
    two = fleet(node.url())
    two.producers.start()
    for number in range(kills):
        two.producers.await_more(20)
        time.sleep(chance.uniform(0.0, 0.1))
        node.kill()
        if number % 2:
            time.sleep(0.3)  # long enough to be noticed by everybody
        node.start()
    figures = two.finish()
    print(f"{kills} kills of the database: {figures} {two.producers.refusals}")
    check(figures, kills)
    assert set(two.producers.refusals) <= {503}
