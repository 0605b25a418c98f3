"""Evidence: an event's own fault is told from the destination's."""

from __future__ import annotations

from outboxd.delivery.evidence import BRAKE_AFTER, REMEMBERED_MAX, Evidence


def refuse(evidence: Evidence, seq: int, *, holds: bool = False, told: bool = False):
    said = evidence.refused(seq, holds=holds)
    evidence.rests(seq, 7.0 + seq, told=told)
    return said


def blamed(evidence: Evidence, seq: int, other: int = 99) -> None:
    """This entry is to blame from now on."""
    refuse(evidence, seq)
    assert evidence.delivered(other) == (seq, ((seq, 7.0 + seq),))


def test_one_refusal_blames_nobody():
    evidence = Evidence()
    said = refuse(evidence, 1)
    assert (said.own_fault, said.spent) == (False, False)
    assert evidence.asks_another
    assert evidence.refused_before() == [1]


def test_one_that_is_refused_while_another_passes_is_to_blame_and_it_costs_nothing_yet():
    evidence = Evidence()
    refuse(evidence, 1)
    assert evidence.delivered(2) == (1, ((1, 8.0),))
    said = refuse(evidence, 1)
    assert (said.own_fault, said.spent, said.is_news) == (True, True, True)
    assert evidence.set_aside() == [1]


def test_one_that_passes_at_last_is_not_to_blame():
    evidence = Evidence()
    refuse(evidence, 1)
    assert evidence.delivered(1) == (None, ())
    assert evidence.refused_before() == []
    assert not refuse(evidence, 1).own_fault


def test_an_attempt_is_spent_each_time_others_pass_and_at_no_other():
    evidence = Evidence()
    blamed(evidence, 1)
    spent = []
    for other in (None, 3, None, 4, 5):
        spent.append(refuse(evidence, 1).spent)
        if other:
            evidence.delivered(other)
    assert spent == [True, False, True, False, True]


def test_a_delivery_blames_only_the_first_of_many():
    evidence = Evidence()
    for seq in range(16):
        refuse(evidence, seq)
    assert not evidence.only_one
    assert evidence.delivered(99) == (0, ((0, 7.0),))
    assert [refuse(evidence, seq).spent for seq in range(16)] == [True] + [False] * 15


def test_whoever_was_told_to_wait_waits_whether_blamed_or_not():
    evidence = Evidence()
    blamed(evidence, 1)
    refuse(evidence, 2, holds=True)
    refuse(evidence, 3, told=True)
    refuse(evidence, 4)
    refuse(evidence, 1)  # blamed before: it waits for its own backoff
    assert evidence.delivered(99) == (2, ((2, 9.0), (3, 10.0), (1, 8.0)))
    # What was told last counts: the third was not told again, and is not to blame.
    refuse(evidence, 4)
    refuse(evidence, 3)
    assert evidence.delivered(99) == (4, ((4, 11.0),))


def test_of_several_bad_entries_each_gets_its_turn():
    evidence = Evidence()
    spent = dict.fromkeys(range(3), 0)
    for other in range(10, 40):
        for seq in sorted(spent, key=lambda seq: spent[seq]):
            spent[seq] += refuse(evidence, seq).spent
        evidence.delivered(other)
    assert all(count >= 8 for count in spent.values())


def test_once_another_was_refused_too_a_blamed_one_says_something_of_the_destination():
    evidence = Evidence()
    blamed(evidence, 1)
    refuse(evidence, 2)
    assert not refuse(evidence, 1).own_fault


def test_only_answers_of_the_class_hold_count_for_a_hold():
    evidence = Evidence()
    refuse(evidence, 1, holds=True)
    refuse(evidence, 2)
    assert evidence.only_one_holds
    refuse(evidence, 3, holds=True)
    assert not evidence.only_one_holds


def test_those_refused_longest_ago_stand_first():
    evidence = Evidence()
    for seq in (1, 2, 3, 1):
        refuse(evidence, seq)
    assert evidence.refused_before() == [2, 3, 1]


def test_in_strict_order_one_that_had_no_answer_is_asked_once_more_and_one_held_is_not():
    evidence = Evidence(in_order=True)
    refuse(evidence, 1)
    assert evidence.refused_before() == []
    assert not evidence.asks_another
    refuse(evidence, 1)
    assert evidence.refused_before() == [1]
    assert evidence.asks_another
    refuse(evidence, 2, holds=True)
    assert evidence.refused_before() == [1, 2]


def test_in_strict_order_another_is_asked_at_once_where_one_was_blamed_lately():
    evidence = Evidence(in_order=True)
    evidence.refused(1, holds=False, asks_another=True)
    assert evidence.refused_before() == [1]
    assert evidence.asks_another


def test_ten_rejected_in_a_row_pull_the_brake_and_are_pending_again():
    evidence = Evidence()
    for seq in range(BRAKE_AFTER - 1):
        assert evidence.rejected(seq, 400) == (True, False, ())
    last = evidence.rejected(BRAKE_AFTER - 1, 400)
    assert last == (False, True, tuple(range(BRAKE_AFTER - 1)))
    # From then on nobody dies, whatever is answered.
    assert evidence.rejected(50, 422) == (False, False, ())
    evidence.delivered(60)
    assert [evidence.rejected(seq, 400).final for seq in (0, 9, 50)] == [True] * 3


def test_a_release_does_not_let_go_of_the_brake():
    evidence = Evidence()
    for seq in range(BRAKE_AFTER):
        evidence.rejected(seq, 400)
    evidence.forget()
    assert evidence.refused_before() == list(range(BRAKE_AFTER))
    assert not evidence.rejected(0, 400).final


def test_a_delivery_between_or_as_many_different_answers_is_no_wall():
    evidence = Evidence()
    for seq in range(3 * BRAKE_AFTER):
        assert evidence.rejected(seq, 400).final
        if seq % (BRAKE_AFTER - 1) == 0:
            evidence.delivered(1000 + seq)
    evidence = Evidence()
    assert all(evidence.rejected(status, status).final for status in range(410, 430))


def test_only_so_many_are_remembered():
    evidence = Evidence()
    for seq in range(REMEMBERED_MAX + 5):
        refuse(evidence, seq)
    assert evidence.refused_before()[0] == 5
