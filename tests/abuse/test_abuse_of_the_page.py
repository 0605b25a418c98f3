"""Whatever a page is asked, by whomever, it stops no intake and costs little memory."""

from __future__ import annotations

import runpy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.agent import GONE
from support.ports import free_address

pytestmark = pytest.mark.alone

ATTACKS = SimpleNamespace(
    **{
        name: function
        for name, function in runpy.run_path(
            str(Path(__file__).with_name("attacks_on_the_page.py"))
        ).items()
        if callable(function)
    }
)
# For all controls: as many requests at once as there are, and no end of their bytes.
ANY_NUMBER = """
import outboxd.budgets as budgets
def unlimited(self, *numbers, **named):
    self.connections = self.bytes = budgets.Budget(1 << 40)
budgets.ListenerLimits.__init__ = unlimited
budgets.ListenerLimits.fit = lambda self, *a: self
import outboxd.api.routes as routes
routes.LISTINGS_AT_ONCE = routes.LISTINGS_WAITING_MAX = 1 << 20
"""
WHOLE_PAGES = (
    ANY_NUMBER
    + """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # what it may do to this machine
import outboxd.outbox.listing as listing
import outboxd.web.outbox_source as outbox_source
listing.PAGE_BYTES_MAX = outbox_source.PAGE_BYTES_MAX = 1 << 40
"""
)
SEARCHED_AT_A_STRETCH = """
import outboxd.web.tally as tally
tally.BLOCK_ROWS = 1 << 14
from outboxd.outbox.engine import SearchLimits
from outboxd.outbox.sqlite.engine import SqliteEngine
SqliteEngine.search_limits = SearchLimits(rows_max=64, look_s=3600.0)
import outboxd.web.pace as pace
pace.IDLE_PAUSES = pace.PAUSES = pace.BUSY_PAUSES = 0.0
"""
FILTERED_AT_A_STRETCH = """
import outboxd.outbox.sqlite.listing as listing
listing.SCAN_ROWS_FIRST = listing.SCAN_ROWS = 1 << 20
"""
TOLD_APART = """
import outboxd.outbox.model as model
model.SCOPE_LISTED_MAX = 1 << 40
import outboxd.web.tally as tally
tally.Tally.__init__.__defaults__ = (1 << 40,)
import outboxd.web.groups as groups
groups.VALUE_CHARACTERS_MAX = 1 << 40
import outboxd.web.pace as pace
pace.IDLE_PAUSES = pace.PAUSES = pace.BUSY_PAUSES = 0.0
"""


@contextmanager
def paged(attacked, patch: str = ""):
    """An agent with a page, and the page's address."""
    address = free_address()
    with attacked(patch, http={"listen": address}) as abuse:
        yield abuse, address


@pytest.fixture(scope="module")
def large(attacked):
    """An agent with 50 MiB of large events."""
    with paged(attacked) as (abuse, address):
        abuse.let(ATTACKS.large_events)
        yield abuse, address


@pytest.mark.parametrize("name", ["searches", "many_streams", "unread_listings"])
def test_what_a_page_asks_stops_no_intake(large, name):
    abuse, address = large
    report = abuse.attack(getattr(ATTACKS, name), target=address)
    print(name, report)
    assert report.faults() == []


def test_listings_on_the_socket_that_nobody_reads_cost_little(large):
    report = large[0].attack(ATTACKS.unread_listings)
    print(report)
    assert report.faults() == []


@pytest.mark.parametrize("events", ["many_names", "long_names"])
def test_names_are_counted_and_looked_through_in_slices(attacked, events):
    with paged(attacked) as (abuse, address):
        abuse.let(getattr(ATTACKS, events))
        report = abuse.attack(ATTACKS.counts, target=address)
        print(events, report)
        assert report.faults() == []


@pytest.mark.parametrize(
    ("patch", "events", "name"),
    [
        (WHOLE_PAGES, "large_events", "unread_listings"),
        (SEARCHED_AT_A_STRETCH, "many_large_events", "searches"),
        (FILTERED_AT_A_STRETCH, "very_many_names", "filters"),
        (TOLD_APART, "many_names", "counts"),
    ],
    ids=["whole pages", "searched at a stretch", "filtered at a stretch", "told apart"],
)
def test_without_the_limit_the_attack_is_seen(attacked, patch, events, name):
    with paged(attacked, patch) as (abuse, address):
        abuse.let(getattr(ATTACKS, events))
        try:
            target = None if name == "unread_listings" else address
            report = abuse.attack(getattr(ATTACKS, name), target=target)
        except GONE:
            return  # it answers nobody any more
        print(report)
        assert report.faults() != []
