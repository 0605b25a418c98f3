"""The breaker's transitions: every state with every move, legal and illegal."""

from __future__ import annotations

import copy

import pytest

from outboxd.delivery.backoff import Backoff
from outboxd.delivery.breaker import Allowance, Breaker, GateState, IllegalMove
from outboxd.status import DestinationState

HOLD_PROBE_S = 300.0
T0 = 1000.0


def new() -> Breaker:
    return Breaker(Backoff(1.0, 64.0), HOLD_PROBE_S, T0)


def in_state(state: GateState):
    """A breaker in this state since T0 + 10, and a ticket that began before it."""
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    old = breaker.begin(T0)
    now_s = T0 + 10.5  # the success is forgotten: the first failure counts
    if state is GateState.UNTRIED:
        breaker.pause("maintenance", now_s)
        breaker.release(now_s)
    elif state is GateState.OPEN:
        breaker.unavailable(breaker.begin(now_s), "no connection", now_s, 0.5)
    elif state is GateState.THROTTLED:
        breaker.throttled(breaker.begin(now_s), 7.0, "429", now_s, 0.5)
    elif state is GateState.HELD:
        breaker.must_hold(breaker.begin(now_s), "401", now_s)
    elif state is GateState.PAUSED:
        breaker.pause("maintenance", now_s)
    assert breaker.state is state
    return breaker, old, now_s


LATER = T0 + 1000.0  # every wait is over
MOVES = {
    "succeeded": lambda b, t: b.succeeded(t, LATER),
    "unavailable": lambda b, t: b.unavailable(t, "down", LATER, 0.5),
    "throttled": lambda b, t: b.throttled(t, 5.0, "429", LATER, 0.5),
    "must_hold": lambda b, t: b.must_hold(t, "403", LATER),
    "abandon": lambda b, t: b.abandon(t),
}
U, C, O, T, H, P = (  # noqa: E741 - the columns of the table
    GateState.UNTRIED,
    GateState.CLOSED,
    GateState.OPEN,
    GateState.THROTTLED,
    GateState.HELD,
    GateState.PAUSED,
)
FRESH = {  # what a request that began in the state brings about
    #             U  C  O  T  H
    "succeeded": (C, C, C, C, C),
    "unavailable": (O, O, O, O, H),
    "throttled": (T, T, T, T, H),
    "must_hold": (H, H, H, H, H),
    "abandon": (U, C, O, T, H),
}
LATE = {  # what a request that began before the state brings about
    #             U  C  O  T  H  P
    "succeeded": (U, C, O, T, H, P),
    "unavailable": (U, O, O, T, H, P),
    "throttled": (T, T, T, T, H, P),
    "must_hold": (U, H, H, H, H, P),
    "abandon": (U, C, O, T, H, P),
}


@pytest.mark.parametrize("move", FRESH)
@pytest.mark.parametrize("column", range(5))
def test_a_request_that_began_in_the_state(move, column):
    state = (U, C, O, T, H)[column]
    breaker, _, _ = in_state(state)
    MOVES[move](breaker, breaker.begin(LATER))
    assert breaker.state is FRESH[move][column]


@pytest.mark.parametrize("move", LATE)
@pytest.mark.parametrize("column", range(6))
def test_a_request_that_began_before_the_state(move, column):
    state = (U, C, O, T, H, P)[column]
    breaker, old, _ = in_state(state)
    MOVES[move](breaker, old)
    assert breaker.state is LATE[move][column]


@pytest.mark.parametrize("state", GateState)
def test_how_many_may_start_at_once_and_after_the_wait(state):
    breaker, _, now_s = in_state(state)
    at_once = {U: Allowance.PROBE, C: Allowance.ALL}.get(state, Allowance.NONE)
    after = {C: Allowance.ALL, P: Allowance.NONE}.get(state, Allowance.PROBE)
    assert breaker.allowance(now_s) is at_once
    assert breaker.allowance(LATER) is after
    if after is Allowance.PROBE:
        breaker.begin(LATER)
        assert breaker.allowance(LATER) is Allowance.NONE  # one at a time
        assert breaker.next_probe_s() is None


@pytest.mark.parametrize("state", GateState)
def test_what_the_operator_sees(state):
    breaker, _, now_s = in_state(state)
    view = breaker.view()
    shown, reason, next_s = {
        U: (DestinationState.UNTRIED, None, None),
        C: (DestinationState.OK, None, None),
        O: (DestinationState.BACKING_OFF, "no connection", now_s + 0.5),
        T: (DestinationState.THROTTLED, "429", now_s + 7.0),
        H: (DestinationState.HELD, "401", now_s + HOLD_PROBE_S),
        P: (DestinationState.HELD, "maintenance", None),
    }[state]
    assert (view.state, view.reason, view.next_probe_s) == (shown, reason, next_s)
    assert view.since_s == (T0 if state is C else now_s)


def snapshot(breaker: Breaker) -> dict:
    return copy.deepcopy(vars(breaker))


ILLEGAL = {
    "begin before the wait is over": (O, lambda b, _: b.begin(T0 + 10.5)),
    "begin while throttled": (T, lambda b, _: b.begin(T0 + 10.5)),
    "begin while held": (H, lambda b, _: b.begin(T0 + 10.5)),
    "begin while paused": (P, lambda b, _: b.begin(LATER)),
    **{
        f"{name} twice": (state, lambda b, old, move=move: move(b, old))
        for name, move in MOVES.items()
        for state in GateState
    },
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_move_raises_and_changes_nothing(name):
    state, move = ILLEGAL[name]
    breaker, old, _ = in_state(state)
    breaker.abandon(old)
    before = snapshot(breaker)
    with pytest.raises(IllegalMove):
        move(breaker, old)
    assert (
        snapshot(breaker).items()
        >= {k: v for k, v in before.items() if k not in ("_backoff", "_successes_s")}.items()
    )


def test_a_second_probe_while_one_is_under_way_is_illegal():
    breaker, _, _ = in_state(O)
    breaker.begin(LATER)
    with pytest.raises(IllegalMove):
        breaker.begin(LATER)


def test_probes_follow_the_backoff_and_one_success_closes():
    breaker = new()
    now_s, waits = T0, []
    for _ in range(9):
        breaker.unavailable(breaker.begin(now_s), "down", now_s, 0.5)
        waits.append(breaker.next_probe_s() - now_s)
        now_s = breaker.next_probe_s()
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 32, 32]
    assert breaker.succeeded(breaker.begin(now_s), now_s) is True
    assert breaker.allowance(now_s) is Allowance.ALL
    later_s = now_s + 60
    breaker.unavailable(breaker.begin(later_s), "down", later_s, 0.5)
    assert breaker.next_probe_s() == later_s + 0.5


def test_a_hundred_failures_together_lengthen_the_backoff_once():
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    tickets = [breaker.begin(T0) for _ in range(100)]
    began = [breaker.unavailable(t, "down", T0 + 30, 0.5) for t in tickets]
    assert began == [True] + [False] * 99
    assert breaker.next_probe_s() == T0 + 30.5


def test_recent_successes_excuse_as_many_failures_in_a_row_but_only_a_few():
    breaker = new()
    for _ in range(50):
        breaker.succeeded(breaker.begin(T0), T0)
    for n in range(4):
        assert breaker.unavailable(breaker.begin(T0), "500", T0, 0.5) is False, n
    assert breaker.unavailable(breaker.begin(T0), "500", T0, 0.5) is True


def test_a_poisoned_event_among_good_ones_stops_nobody():
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    for _ in range(100):
        breaker.succeeded(breaker.begin(T0), T0)
        assert breaker.unavailable(breaker.begin(T0), "500", T0, 0.5) is False
    assert breaker.state is C


def test_after_a_silence_the_first_failure_counts():
    breaker = new()
    for _ in range(50):
        breaker.succeeded(breaker.begin(T0), T0)
    assert breaker.unavailable(breaker.begin(T0 + 11), "down", T0 + 11, 0.5) is True


def test_throttled_waits_as_told_and_the_longest_told_counts():
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    tickets = [breaker.begin(T0) for _ in range(3)]
    for ticket, wait_s in zip(tickets, (2.0, 9.0, 1.0), strict=True):
        breaker.throttled(ticket, wait_s, "429", T0, 0.5)
    assert breaker.next_probe_s() == T0 + 9.0


def test_throttled_without_a_time_waits_as_the_backoff_does():
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    now_s, waits = T0, []
    together = [breaker.begin(T0), breaker.begin(T0)]
    for ticket in together:
        breaker.throttled(ticket, None, "429", T0, 0.5)
    for _ in range(4):
        waits.append(breaker.next_probe_s() - now_s)
        now_s = breaker.next_probe_s()
        breaker.throttled(breaker.begin(now_s), None, "429", now_s, 0.5)
    assert waits == [0.5, 1, 2, 4]


def test_a_new_key_is_tried_at_once_and_old_answers_do_not_hold_again():
    breaker, _, _ = in_state(H)
    probe = breaker.begin(LATER)
    assert breaker.key_changed(LATER) is True
    assert breaker.allowance(LATER) is Allowance.PROBE
    fresh = breaker.begin(LATER)
    assert breaker.must_hold(probe, "401 with the old key", LATER) is False
    assert breaker.view().reason == "401"
    assert breaker.succeeded(fresh, LATER) is True
    assert breaker.state is C


def test_a_new_key_while_all_is_well_outdates_the_answers_to_the_old_one():
    breaker, old, _ = in_state(C)
    assert breaker.key_changed(LATER) is False
    assert breaker.must_hold(old, "401", LATER) is False
    assert breaker.state is C


def test_a_new_key_does_not_end_the_operators_hold():
    breaker, _, _ = in_state(P)
    assert breaker.key_changed(LATER) is False
    assert breaker.state is P


@pytest.mark.parametrize("state", [U, O, T, H, P])
def test_a_release_ends_every_wait_and_looks_afresh_with_one_request(state):
    breaker, old, now_s = in_state(state)
    assert breaker.release(now_s) is True
    assert breaker.allowance(now_s) is Allowance.PROBE
    assert breaker.must_hold(old, "401", now_s) is False
    breaker.must_hold(breaker.begin(now_s), "401", now_s)
    assert breaker.state is H


def test_where_nothing_waits_a_release_changes_nothing():
    breaker, _, now_s = in_state(C)
    assert breaker.release(now_s) is False
    assert breaker.state is C


# --- the second opinion ---------------------------------------------------------


def in_doubt(state: GateState):
    """A breaker in which one entry alone speaks for the state, since LATER."""
    breaker, _, _ = in_state(C)
    if state is O:
        breaker.unavailable(breaker.begin(LATER), "500", LATER, 0.9, doubt=True)
    else:
        breaker.must_hold(breaker.begin(LATER), "403", LATER, doubt=True, soon_s=1.0)
    assert breaker.state is state
    return breaker


@pytest.mark.parametrize("state", [O, H])
def test_while_only_one_was_refused_another_may_be_asked_soon_or_as_it_comes_in(state):
    breaker = in_doubt(state)
    assert breaker.allowance(LATER) is Allowance.NONE
    soon_s = breaker.next_probe_s(other=True)
    assert soon_s <= LATER + 1.0
    breaker.arrived(LATER + 0.1)
    assert breaker.allowance(LATER + 0.1) is Allowance.OTHER
    assert breaker.succeeded(breaker.begin(LATER + 0.1), LATER + 0.2)
    assert breaker.state is C


def test_with_nobody_else_to_ask_a_hold_is_probed_slowly():
    breaker = in_doubt(H)
    assert breaker.next_probe_s() == LATER + HOLD_PROBE_S
    assert breaker.allowance(LATER + 2.0) is Allowance.OTHER
    assert breaker.allowance(LATER + HOLD_PROBE_S) is Allowance.PROBE


def test_a_second_refusal_begins_the_slow_probe_and_an_arrival_no_longer_counts():
    breaker = in_doubt(H)
    breaker.must_hold(breaker.begin(LATER + 1.0), "403", LATER + 1.0)
    breaker.arrived(LATER + 2.0)
    assert breaker.allowance(LATER + 2.0) is Allowance.NONE
    assert breaker.next_probe_s(other=True) == LATER + 1.0 + HOLD_PROBE_S


@pytest.mark.parametrize(
    ("move", "then"),
    [
        (lambda b, t: b.unavailable(t, "down", LATER + 1.0, 0.5), O),
        (lambda b, t: b.throttled(t, 5.0, "429", LATER + 1.0, 0.5), T),
    ],
)
def test_a_hold_in_doubt_gives_way_to_what_the_second_opinion_says(move, then):
    breaker = in_doubt(H)
    move(breaker, breaker.begin(LATER + 1.0))
    assert breaker.state is then


@pytest.mark.parametrize("doubt", [True, False])
@pytest.mark.parametrize("told_first", [True, False])
def test_told_to_wait_beside_a_hold_nobody_is_asked_before_that_is_over(told_first, doubt):
    breaker, _, _ = in_state(C)
    one, another = breaker.begin(LATER), breaker.begin(LATER)
    wait_s = HOLD_PROBE_S + 5.0
    if told_first:
        breaker.throttled(one, wait_s, "429", LATER, 0.5)
    breaker.must_hold(another, "404", LATER, doubt=doubt, soon_s=1.0)
    if not told_first:
        breaker.throttled(one, wait_s, "429", LATER, 0.5)
    breaker.arrived(LATER + 2.0)
    assert breaker.state is H
    assert breaker.next_probe_s(other=True) == LATER + wait_s
    assert breaker.view().next_probe_s == LATER + wait_s
    assert breaker.allowance(LATER + wait_s - 0.1) is Allowance.NONE
    assert breaker.allowance(LATER + wait_s) is Allowance.PROBE


@pytest.mark.parametrize("doubt", [True, False])
def test_told_to_wait_while_a_probe_of_the_hold_is_under_way_its_good_answer_ends_no_wait(doubt):
    breaker, _, _ = in_state(C)
    one, another = breaker.begin(LATER), breaker.begin(LATER)
    breaker.must_hold(another, "302", LATER, doubt=doubt)
    asked_s = LATER if doubt else LATER + HOLD_PROBE_S
    probe = breaker.begin(asked_s)
    breaker.throttled(one, 5.0, "429", asked_s + 0.1, 0.5)
    assert breaker.is_late(probe)
    assert breaker.succeeded(probe, asked_s + 0.2) is False
    assert breaker.state is H
    assert breaker.next_probe_s() == breaker.view().next_probe_s == asked_s + 5.1
    assert breaker.allowance(asked_s + 5.0) is Allowance.NONE
    assert breaker.allowance(asked_s + 5.1) is Allowance.PROBE
    assert breaker.succeeded(breaker.begin(asked_s + 5.1), asked_s + 5.2)
    assert breaker.state is C


def test_of_two_probes_the_good_answer_ends_no_wait_that_the_other_was_told():
    breaker, _, now_s = in_state(T)
    now_s += 10.0
    hangs, beside = breaker.begin(now_s, 5.0), breaker.begin(now_s + 5.0, 5.0)
    breaker.throttled(hangs, 60.0, "429", now_s + 6.0, 0.5)
    assert breaker.succeeded(beside, now_s + 7.0) is False
    assert breaker.next_probe_s() == now_s + 66.0
    assert breaker.allowance(now_s + 65.0) is Allowance.NONE


def test_a_new_key_ends_the_wait_that_was_told_before_it():
    breaker, _, _ = in_state(C)
    one, another = breaker.begin(LATER), breaker.begin(LATER)
    breaker.must_hold(one, "401", LATER)
    breaker.throttled(another, 60.0, "429", LATER, 0.5)
    assert breaker.key_changed(LATER + 1.0)
    assert breaker.allowance(LATER + 1.0) is Allowance.PROBE


def test_a_good_answer_from_before_the_hold_is_a_reason_to_ask_at_once():
    breaker, _, _ = in_state(C)
    first, second = breaker.begin(LATER), breaker.begin(LATER)
    breaker.must_hold(first, "403", LATER, doubt=True, soon_s=1.0)
    assert breaker.succeeded(second, LATER + 0.1) is False
    assert breaker.allowance(LATER + 0.1) is Allowance.OTHER


# --- requests that hang -----------------------------------------------------------


@pytest.mark.parametrize("state", [U, O, T, H])
def test_a_probe_that_hangs_is_not_the_only_one_for_long(state):
    breaker, _, _ = in_state(state)
    breaker.begin(LATER, 5.0)
    assert breaker.allowance(LATER + 4.9, 5.0) is Allowance.NONE
    assert breaker.next_probe_s(5.0) == LATER + 5.0
    breaker.begin(LATER + 5.0, 5.0)
    assert breaker.allowance(LATER + 9.9, 5.0) is Allowance.NONE
    # In trouble two at a time are enough; before the first answer nobody knows.
    third = Allowance.PROBE if state is U else Allowance.NONE
    assert breaker.allowance(LATER + 10.0, 5.0) is third


def test_a_held_destination_is_probed_slowly_whatever_the_probe_says():
    breaker, _, now_s = in_state(H)
    now_s += HOLD_PROBE_S
    breaker.unavailable(breaker.begin(now_s), "down", now_s, 0.5)
    assert breaker.next_probe_s() == now_s + HOLD_PROBE_S
    now_s += HOLD_PROBE_S
    breaker.throttled(breaker.begin(now_s), 900.0, "429", now_s, 0.5)
    assert breaker.next_probe_s() == now_s + 900.0


def test_a_hold_begins_once_however_many_answers_say_so():
    breaker = new()
    breaker.succeeded(breaker.begin(T0), T0)
    tickets = [breaker.begin(T0) for _ in range(5)]
    assert [breaker.must_hold(t, "401", T0) for t in tickets] == [True] + [False] * 4


def test_the_operators_hold_may_be_given_a_new_reason():
    breaker, _, now_s = in_state(P)
    breaker.pause("still", LATER)
    assert breaker.view().reason == "still"
    assert breaker.view().since_s == now_s
