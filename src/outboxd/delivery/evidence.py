"""Whose fault a refusal is: the event's own, or the destination's.

Pure. One answer cannot tell, two can: so every refusal is first taken as the
destination's, and another entry is asked (the second opinion). What comes of
that one says which it was:

    refused, and nothing delivered since        the destination is in trouble
    refused, then another entry is delivered    the entry is to blame
    blamed, and refused again                   its own fault: nobody else waits
    ten rejected, and nothing delivered since   the destination refuses everything

In strict order another event would overtake: there an entry that was throttled
or had no answer is itself asked once more, before another is; unless one was
blamed lately, since such a destination has something against single events.

Each delivery blames at most one entry, the first that was refused since the
delivery before; and at most one attempt is spent a delivery. So an outage costs
at most one attempt of one entry, however long it is and however many were in
flight, and of many bad entries each gets its turn. To be blamed spends nothing.
Blamed or not, an entry that was told how long to wait waits so long by itself.
It never decides how long anybody waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

# So many rejected in a row, none delivered between, are no longer the events'
# fault: a proxy or a wrong endpoint refuses everything.
BRAKE_AFTER = 10
# Entries of which refusals are remembered; those refused longest ago are
# forgotten first, which errs on the entry's side.
REMEMBERED_MAX = 4096


class RefusalEvidence(NamedTuple):
    """What a refusal says."""

    own_fault: bool  # of the entry itself: it was blamed before, and others pass
    spent: bool  # it costs an attempt
    holds: int  # attempts spent on answers of the class hold, this one included
    is_news: bool  # the first refusal that is its own fault
    own_refusals: int  # how often it was refused by its own fault, this time included
    others_passed: bool  # whether any was delivered since it was refused last


class Rejected(NamedTuple):
    """What a rejection says."""

    final: bool  # the entry is a dead letter; else it stays pending
    braked: bool  # it was the one at which the brake was pulled
    revived: tuple[int, ...]  # dead letters (seqs) that are pending again by it


class Delivered(NamedTuple):
    """What a delivery says of others."""

    blamed: int | None  # the entry (seq) that is to blame for its refusal
    # Entries that wait by themselves, each with the end of its wait (monotonic).
    resting: tuple[tuple[int, float], ...]


_SAYS_NOTHING = Delivered(None, ())


class _Record:
    """What is remembered of an entry that was refused and not delivered since."""

    __slots__ = (
        *("at_delivery", "blamed", "holds", "is_known"),
        *("is_passed_over", "own_refusals", "refusals", "rests_until_s", "was_told"),
    )

    def __init__(self) -> None:
        self.at_delivery = -1  # how many deliveries there were at the last refusal
        self.refusals = 0
        self.own_refusals = 0
        self.is_passed_over = True  # by probes, while there are others
        self.blamed = False
        self.is_known = False  # whether its being set aside was told
        self.holds = 0
        self.rests_until_s = 0.0
        self.was_told = False  # to wait so long, in the last answer


class Evidence:
    """Remembers who was refused, and what was delivered in between."""

    def __init__(self, *, in_order: bool = False) -> None:
        self.in_order = in_order
        self._deliveries = 0
        # Those refused since the last delivery, beside entries already blamed,
        # in their order; and whether by an answer of the class hold.
        self._suspects: OrderedDict[int, bool] = OrderedDict()
        self._spent = False  # an attempt, since the last delivery
        # All that were refused and not delivered, the one refused longest ago first.
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._rejected: dict[int, int | None] = {}  # since the last delivery, with the status
        self._revived: OrderedDict[int, int] = OrderedDict()  # seq: deliveries until then
        self.refuses_everything = False

    # --- what it says ---

    @property
    def only_one(self) -> bool:
        """Whether no more than one entry speaks against the destination."""
        return len(self._suspects) <= 1

    @property
    def asks_another(self) -> bool:
        """Whether only one does, and another entry may be asked about that."""
        return self.only_one and bool(self._suspects.keys() & set(self.refused_before()))

    @property
    def only_one_holds(self) -> bool:
        """The same of answers of the class hold."""
        return sum(self._suspects.values()) <= 1 and not self.refuses_everything

    def refused_before(self) -> list[int]:
        """The entries that were refused and not delivered since, longest ago first;
        without those that are to be asked once more before another."""
        return [seq for seq, record in self._records.items() if record.is_passed_over]

    def set_aside(self) -> list[int]:
        """The entries that wait by themselves because they are to blame."""
        return [seq for seq, record in self._records.items() if record.is_known]

    def is_to_blame(self, seq: int) -> bool:
        """Whether the entry was refused while another passed."""
        record = self._records.get(seq)
        return record is not None and record.blamed

    # --- what happens ---

    def refused(self, seq: int, *, holds: bool, asks_another: bool = False) -> RefusalEvidence:
        """An entry was refused, perhaps by an answer of the class hold. With
        `asks_another` it is not itself asked once more, in strict order either."""
        record = self._records.pop(seq, None) or _Record()
        self._records[seq] = record
        if len(self._records) > REMEMBERED_MAX:
            self._records.popitem(last=False)
        others_passed = 0 <= record.at_delivery < self._deliveries
        record.at_delivery = self._deliveries
        record.refusals += 1
        again = self.in_order and not holds and not asks_another and record.refusals == 1
        record.is_passed_over = not again
        own_fault = record.blamed and not self._suspects
        if not own_fault:
            self._suspects[seq] = self._suspects.get(seq, False) or holds
        record.own_refusals += own_fault
        spent = own_fault and others_passed and not self._spent
        self._spent |= spent
        record.holds += spent and holds
        is_news = own_fault and not record.is_known
        record.is_known |= own_fault
        return RefusalEvidence(
            own_fault, spent, record.holds, is_news, record.own_refusals, others_passed
        )

    def rests(self, seq: int, until_s: float, *, told: bool) -> None:
        """Until when an entry waits by itself: if it turns out to be to blame, or if
        that is what it was told."""
        record = self._records[seq]
        record.rests_until_s, record.was_told = until_s, told

    def delivered(self, seq: int) -> Delivered:
        """An entry was delivered that had been sent after those that were refused."""
        self._deliveries += 1
        self._spent = False
        self._rejected.clear()
        self.refuses_everything = False
        self._records.pop(seq, None)
        if not self._suspects:
            return _SAYS_NOTHING  # the usual case
        first = next(iter(self._suspects))
        blamed = None if first == seq or first not in self._records else first
        if blamed is not None:
            self._records[blamed].blamed = True
        suspects = [(each, self._records.get(each)) for each in self._suspects]
        self._suspects.clear()
        return Delivered(
            blamed,
            tuple(
                (each, record.rests_until_s)
                for each, record in suspects
                if record is not None and (record.blamed or record.was_told)
            ),
        )

    def rejected(self, seq: int, status: int | None) -> Rejected:
        """The destination says that the event itself is wrong."""
        if self.refuses_everything:
            self._remember_revived(seq)
            return Rejected(False, False, ())
        if self._revived.pop(seq, self._deliveries) < self._deliveries:
            self._records.pop(seq, None)
            return Rejected(True, False, ())  # others were delivered since: it is the event
        self._rejected[seq] = status
        row = len(self._rejected)
        # As many different answers as events are so many judgements, and no wall.
        if row < BRAKE_AFTER or len(set(self._rejected.values())) == row:
            self._records.pop(seq, None)
            return Rejected(True, False, ())
        revived = tuple(each for each in self._rejected if each != seq)
        for each in self._rejected:
            self._remember_revived(each)
        self._rejected.clear()
        self.refuses_everything = True
        return Rejected(False, True, revived)

    def forget(self, *, order: bool = False) -> None:
        """What was said of entries is void: another key, or the operator's release.

        Their order as probes stays, unless that is void as well, and the brake stays
        until something is delivered.
        """
        self._suspects.clear()
        known = () if order else tuple(self._records)
        self._records = OrderedDict((seq, _Record()) for seq in known)

    def gone(self, seq: int) -> None:
        """The entry does not wait any more: given up, expired, or dropped."""
        self._records.pop(seq, None)

    def _remember_revived(self, seq: int) -> None:
        self._revived[seq] = self._deliveries
        if len(self._revived) > REMEMBERED_MAX:
            self._revived.popitem(last=False)
        # It goes round with those that were refused.
        self._records.pop(seq, None)
        self._records[seq] = _Record()
