"""Budgets share among holders, and patience is paid for by bytes."""

from __future__ import annotations

import pytest

from outboxd.budgets import Budget, Credit, ListenerLimits, Patience


def test_no_holder_has_more_than_its_share_and_all_together_no_more_than_the_total():
    budget = Budget(total=10, share=6)
    assert budget.take("a", 6)
    assert not budget.take("a")
    assert budget.take("b", 4)
    assert not budget.take("b")
    assert (budget.used, budget.held("a"), budget.held("b")) == (10, 6, 4)


def test_what_is_refused_changes_nothing_and_what_is_given_back_is_free_again():
    budget = Budget(10, 5)
    assert not budget.take("a", 6)
    assert budget.used == 0
    assert budget.take("a", 5)
    budget.give("a", 5)
    assert budget.take("b", 5)
    assert budget.held("a") == 0


def test_giving_back_more_than_was_taken_is_a_mistake_of_ours():
    budget = Budget(10)
    budget.take("a")
    with pytest.raises(AssertionError, match="gives back"):
        budget.give("a", 2)


def test_whoever_has_its_share_makes_room_among_its_own():
    budget = Budget(10, 3)
    budget.take("a", 3)
    assert budget.displaced_by("a") == "a"


def test_a_newcomer_takes_from_whoever_has_most_and_equals_leave_each_other_alone():
    budget = Budget(10, 8)
    budget.take("greedy", 7)
    budget.take("b", 3)
    assert budget.displaced_by("new") == "greedy"
    assert budget.displaced_by("b") == "greedy"
    assert budget.displaced_by("greedy") == "greedy"
    even = Budget(2, 2)
    even.take("a")
    even.take("b")
    assert even.displaced_by("c") is None


def test_no_number_of_greedy_holders_keeps_a_newcomer_out():
    budget = Budget(100, 50)
    for holder in range(4):
        budget.take(holder, 25)
    assert budget.displaced_by("new") in range(4)


def test_a_stall_and_a_drip_both_use_the_patience_up():
    stalled = Patience(10.0, 1000)
    assert stalled.moved(9.9, 0)
    assert not stalled.moved(0.2, 0)
    dripping = Patience(10.0, 1000)
    drips = 0
    while dripping.moved(1.0, 500):
        drips += 1
    assert drips == 19


def test_patience_cannot_be_saved_up():
    patience = Patience(10.0, 1000)
    assert patience.moved(0.0, 10_000_000)
    assert not patience.moved(10.1, 0)


def test_limits_leave_descriptors_for_the_rest_of_the_process():
    limits = ListenerLimits(1024, 512).fit(1024, 0.75)
    assert limits.connections.total == 576
    assert limits.connections.share == 288
    assert ListenerLimits(1024, 512).fit(1 << 20).connections.total == 1024
    assert ListenerLimits(1024, 512).fit(32).connections.total == 16


def test_credit_is_spent_by_each_for_itself_and_comes_back_with_time():
    credit = Credit(saved_max=3, per_s=2.0)
    for _ in range(5):
        credit.spend("a", 10.0)
    assert not credit.has("a", 10.0)
    assert credit.has("b", 10.0)
    assert not credit.has("a", 10.4)
    assert credit.has("a", 10.5)  # a whole one; nothing is owed beyond what there was
    credit.spend("a", 10.5)
    assert not credit.has("a", 10.5)


def test_credit_forgets_those_who_owe_nothing():
    credit = Credit(saved_max=3, per_s=2.0)
    for number in range(5 * Credit.REMEMBERED_MAX):
        credit.spend(number, number * 0.01)
    assert len(credit._debts) <= Credit.REMEMBERED_MAX + 1
    assert credit.has(0, 100.0)
