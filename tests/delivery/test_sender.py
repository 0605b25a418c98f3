"""The sender with the real outbox and policy; network and time are scripted."""

from __future__ import annotations

import asyncio

import pytest
from simulation.history import DAY_S, World, with_settings

from outboxd.delivery import in_flight, next_hop
from outboxd.delivery.facts import (
    AttemptMade,
    EntryExpired,
    GateChanged,
    OutageEnded,
    SettlingFailed,
    SettlingResumed,
)
from outboxd.outbox.model import EntryChange, Outage

HOUR_S = 3600.0


def told(world: World, kind: type) -> list:
    return [fact for fact in world.checks.facts if isinstance(fact, kind)]


def arrived(world: World) -> list[str]:
    return [request.name for request in world.network.requests if request.arrived]


# --- without trouble -----------------------------------------------------------


def test_an_event_for_an_idle_sender_takes_one_commit_to_its_request_and_one_to_settle():
    world = World()

    async def main() -> None:
        await world.start()
        await world.give()
        await world.until_empty(60)
        before = world.agent.writer.commits
        world.network.on_start = lambda request: requests.append(world.agent.writer.commits)
        requests: list[int] = []
        await world.give()
        await world.until_empty(60)
        assert requests == [before + 1]
        assert world.agent.writer.commits == before + 2
        world.finish()

    world.run(main())


@pytest.mark.parametrize("order", ["mixed", "fifo"])
def test_what_was_claimed_as_it_came_in_is_not_sent_once_the_operator_holds(order):
    world = World(with_settings(order=order))

    async def main() -> None:
        await world.start()
        await world.give()
        await world.until_empty(60)
        sent = len(world.network.requests)
        give = asyncio.create_task(world.give())
        world.agent.outbox.on_arrival = lambda _: world.agent.sender.wake()  # between the two
        await give
        await asyncio.sleep(0)
        await world.agent.sender.hold("", "root")
        await asyncio.sleep(60)
        assert len(world.network.requests) - sent <= 1
        await world.agent.sender.release("root")
        await world.until_empty(60)
        assert sorted(arrived(world)) == sorted(world.checks.names.values())
        world.finish()

    world.run(main())


def test_one_damaged_body_does_not_keep_the_backlog_behind_it():
    world = World()

    async def main() -> None:
        await world.start()
        await world.give()
        await world.until_empty(60)
        await world.agent.sender.hold("", "root")
        await world.give(700)
        world.engine.connection.execute("UPDATE bodies SET body = body || ' ' WHERE seq = 300")
        await world.agent.sender.release("root")
        await asyncio.sleep(600)
        assert world.engine.counts().pending == 0
        assert len(arrived(world)) == 700

    world.run(main())


# --- outages -----------------------------------------------------------------


@pytest.mark.parametrize("backlog", [200, 800])
def test_after_three_hours_of_outage_all_is_delivered_in_time_proportional(backlog):
    world = World()

    async def main() -> None:
        await world.start()
        await world.give()
        await world.until_empty(60)
        world.network.turn("refused")
        for _ in range(backlog // 20):
            await world.give(20)
            await asyncio.sleep(3 * HOUR_S / (backlog // 20))
        asked = len(world.network.requests)
        world.network.turn("fine")
        # The next probe is due within backoff_max; then 50 ms each with up to 16 at once.
        await world.until_empty(300 + backlog * 0.02 + 10)
        assert asked < 150
        assert sorted(arrived(world)) == sorted(world.checks.names.values())
        drained_s = world.network.requests[-1].ended_s - world.network.requests[asked].began_s
        assert drained_s < backlog * 0.02
        (outage,) = told(world, OutageEnded)
        assert outage.delayed == backlog
        assert outage.ended_at - outage.began_at >= 3 * HOUR_S * 1000
        world.finish()
        assert not world.checks.spent

    world.run(main())


@pytest.mark.parametrize("has_ended", [False, True], ids=["lasts", "has ended"])
@pytest.mark.parametrize("delivered_before", [False, True])
def test_who_takes_over_in_an_outage_tells_of_it_once_from_its_begin_on(
    delivered_before, has_ended
):
    """Another process has seen it begin, two hours ago."""
    world = World()

    async def main() -> None:
        await world.start()
        if delivered_before:
            await world.give()
            await world.until_empty(60)
        began_at = world.clock.wall_ms() - round(2 * HOUR_S * 1000)
        if not has_ended:
            world.network.turn("refused")
        world.agent.sender.took_over(Outage(began_at, "503"))
        asked = len(world.network.requests)
        await world.give(20)
        assert len(world.network.requests) <= asked + 1, "one looks first"
        await asyncio.sleep(0.0 if has_ended else HOUR_S)
        world.network.turn("fine")
        await world.until_empty(400)
        (outage,) = told(world, OutageEnded)
        assert (outage.began_at, outage.reason) == (began_at, "503")
        assert world.agent.sender.outage is None
        await world.give()
        await world.until_empty(60)
        world.finish()
        assert len(told(world, OutageEnded)) == 1

    world.run(main())


def test_who_takes_over_after_an_outage_of_its_own_that_another_told_of_says_nothing():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.turn("refused")
        await world.give(3)
        await asyncio.sleep(HOUR_S)
        assert world.agent.sender.outage is not None
        world.agent.sender.took_over(None)
        world.network.turn("fine")
        await world.until_empty(400)
        assert told(world, OutageEnded) == []

    world.run(main())


def test_what_the_operator_holds_was_not_delayed_by_an_outage():
    """Neither its number nor its age is told of the outage."""
    world = World()

    async def main() -> None:
        await world.start()
        outbox = world.agent.outbox
        world.network.turn("refused")
        (held,) = await world.give()
        await outbox.change(lambda engine: engine.change(EntryChange.HOLD, held))
        await asyncio.sleep(3 * DAY_S)
        await world.give(5)
        await asyncio.sleep(HOUR_S)
        await outbox.refresh()
        world.network.turn("fine")
        await asyncio.sleep(HOUR_S)
        (outage,) = told(world, OutageEnded)
        assert outage.delayed == 5
        assert outage.ended_at - outage.oldest_at < 2 * HOUR_S * 1000
        assert world.engine.counts().pending == 1

    world.run(main())


def test_fresh_events_overtake_the_backlog():
    for read_ahead in (True, False):
        world = World(with_settings(concurrency_max=1, read_ahead=read_ahead))

        async def main(world: World = world) -> None:
            await world.start()
            world.network.turn("503")
            await world.give(400)
            await asyncio.sleep(HOUR_S)
            world.network.turn("fine")
            await world.until_empty(600, left=lambda: 380)
            before = len(arrived(world))
            await world.give(name="fresh")
            await world.until_empty(600)
            # A quarter of the requests is for the newest; some are read ahead.
            assert arrived(world).index("fresh") <= before + 16
            # And the oldest are not forgotten for it.
            assert arrived(world).index("e20") < 60

        world.run(main())


def test_in_strict_order_nothing_overtakes_what_was_not_asked_and_nothing_spins():
    world = World(with_settings(order="fifo"))

    async def main() -> None:
        await world.start()
        world.network.turn("some fail")
        await world.give(30)
        await asyncio.sleep(120)
        world.network.turn("slow")
        await world.until_empty(30 * 60)
        assert set(arrived(world)) == {f"e{n}" for n in range(30)}
        world.finish()

    world.run(main())


@pytest.mark.parametrize("weather", ["refused", "dns"])
def test_in_strict_order_an_outage_in_which_nothing_leaves_changes_no_order(weather):
    world = World(with_settings(order="fifo"))

    async def main() -> None:
        await world.start()
        world.network.turn(weather)
        await world.give(30)
        await asyncio.sleep(HOUR_S)
        world.network.turn("fine")
        await world.until_empty(600)
        assert arrived(world) == [f"e{n}" for n in range(30)]
        world.finish()

    world.run(main())


def test_a_storm_of_equal_events_in_an_outage_becomes_one_that_counts_them():
    world = World(with_settings(read_ahead=False), repeat_window_s=4 * HOUR_S)

    async def main() -> None:
        await world.start()
        world.network.turn("silence")
        ids = set()
        for _ in range(50):
            ids |= set(await world.give(200, name="disk is full"))
            await asyncio.sleep(60)
        assert len(ids) == 1
        world.network.turn("fine")
        await world.until_empty(600)
        (last,) = [request for request in world.network.requests if request.arrived]
        assert last.details["repeats"] == 9999
        assert last.details["lastOccurredAt"].endswith("Z")
        assert last.details["deliveryDelay"]

    world.run(main())


def test_a_hung_request_does_not_stall_the_others():
    world = World(with_settings(concurrency_max=4))

    async def main() -> None:
        await world.start()
        await world.give(20)
        await world.until_empty(60)
        world.network.poison["hung"] = "hang"
        await world.give(name="hung")
        await world.give(50)
        began_s = world.loop.time()
        await world.until_empty(20, left=lambda: 1)
        assert world.loop.time() - began_s < 20

    world.run(main())


# --- an event's own fault --------------------------------------------------------


def test_an_events_own_backoff_ends_by_itself():
    world = World()

    async def main() -> None:
        await world.start()
        await world.give(20)
        await world.until_empty(60)
        world.network.poison["p"] = "500"
        await world.give(name="p")
        await asyncio.sleep(0.2)
        del world.network.poison["p"]
        # Nothing else happens that would wake the sender.
        await world.until_empty(10)
        world.finish()

    world.run(main())


def test_a_poisoned_event_is_exhausted_while_others_are_delivered():
    world = World(with_settings(attempts_max=5))

    async def main() -> None:
        await world.start()
        world.network.poison["p"] = "500"
        (poisoned,) = await world.give(name="p")
        for _ in range(40):
            await world.give()
            await asyncio.sleep(30)
        entry = await world.agent.outbox.get(poisoned)
        assert (entry.state, entry.dead_reason, entry.spent) == ("dead", "exhausted", 5)
        assert [f.dead_reason for f in told(world, AttemptMade)].count("exhausted") == 1
        # The operator sends it back when its fault is mended.
        del world.network.poison["p"]
        await world.change_entry("retry", poisoned)
        await world.until_empty(60)
        assert (await world.agent.outbox.get(poisoned)).state == "delivered"

    world.run(main())


def test_an_event_that_a_defect_of_ours_keeps_from_being_sent_is_given_up_alone(monkeypatch):
    world = World(with_settings(attempts_max=3))
    stamped = next_hop.stamped

    def defective(entry, *rest):
        if b'"p"' in entry.body:
            raise ZeroDivisionError
        return stamped(entry, *rest)

    monkeypatch.setattr(next_hop, "stamped", defective)
    world.checks.exchanged = lambda exchange: None  # they know requests alone

    async def main() -> None:
        await world.start()
        (broken,) = await world.give(name="p")
        while (entry := await world.agent.outbox.get(broken)).state == "pending":
            await world.give()
            await asyncio.sleep(60)
        assert (entry.dead_reason, entry.spent) == ("exhausted", 3)
        assert "internal error (ZeroDivisionError())" in entry.last_error
        assert not entry.possible_duplicate
        await world.until_empty(60)

    world.run(main())


def test_an_answer_that_a_defect_of_ours_keeps_from_being_understood_is_in_doubt(monkeypatch):
    world = World()
    decide, defects = in_flight.decide, [ZeroDivisionError()]

    def defective(*arguments):
        if defects:
            raise defects.pop()
        return decide(*arguments)

    monkeypatch.setattr(in_flight, "decide", defective)

    async def main() -> None:
        await world.start()
        (first,) = await world.give()
        await world.give(20)
        await world.until_empty(120)
        requests = [r for r in world.network.requests if r.id == first]
        assert [r.marked for r in requests] == [False, True]
        attempts = (await world.agent.outbox.get(first)).attempts
        assert "internal error: ZeroDivisionError(): the event may have arrived" in attempts

    world.run(main())


def test_a_poisoned_event_alone_is_an_outage_and_nothing_is_spent():
    world = World(with_settings(attempts_max=3))

    async def main() -> None:
        await world.start()
        world.network.poison["p"] = "500"
        (poisoned,) = await world.give(name="p")
        await asyncio.sleep(DAY_S)
        entry = await world.agent.outbox.get(poisoned)
        assert (entry.state, entry.spent) == ("pending", 0)
        assert world.agent.sender.status().state == "backingOff"
        # On average half of five minutes each.
        assert 288 < entry.attempt_count < 1000

    world.run(main())


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_that_jumps_neither_stalls_nor_hurries_an_events_own_backoff(jump_s):
    world = World(with_settings(backoff_initial_s=200.0, concurrency_max=1))
    world.rng.random = lambda: 0.9

    async def main() -> None:
        await world.start()
        await world.give(20)
        await world.until_empty(60)
        world.network.poison["p"] = "500"
        await world.give(name="p")
        await world.give(2)
        await asyncio.sleep(2.0)
        world.clock.jump(jump_s)
        await world.give()
        await asyncio.sleep(150.0)
        assert [r.name for r in world.network.requests].count("p") == 1
        await asyncio.sleep(200.0)
        assert [r.name for r in world.network.requests].count("p") == 2

    world.run(main())


def test_more_entries_than_a_portion_that_expire_at_once_all_do():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.turn("401")
        await world.give(700, ttl_s=60.0)
        await asyncio.sleep(200)
        assert world.engine.counts().dead == 700
        assert len(told(world, EntryExpired)) == 700
        world.finish()

    world.run(main())


# --- holds -----------------------------------------------------------------------


def test_a_hold_is_told_once_and_ends_by_itself_with_a_new_key():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.good_key = "k2"
        for _ in range(50):
            await world.give()
            await asyncio.sleep(60)
        assert len(world.network.requests) <= 2 + 50 * 60 / 300
        (change,) = told(world, GateChanged)
        assert (change.before, change.after) == ("untried", "held")
        assert "key" in change.hint
        world.set_key("k2")
        await world.until_empty(10)
        assert [fact.after for fact in told(world, GateChanged)] == ["held", "ok"]
        assert not world.checks.spent
        world.finish()

    world.run(main())


def test_the_operators_hold_outlives_a_restart():
    world = World()

    async def main() -> None:
        await world.start()
        await world.hold()
        await world.give(5)
        for end in (world.stop, world.crash):
            ended = end()
            if ended is not None:
                await ended
            await world.start()
            await asyncio.sleep(DAY_S)
            status = world.agent.sender.status()
            assert (status.state, status.reason) == ("held", "held by uid 0: maintenance")
            assert status.next_probe_at is None
        assert world.network.requests == []
        await world.release()
        await world.until_empty(60)
        assert len(arrived(world)) == 5

    world.run(main())


def test_an_entry_that_was_read_ahead_and_is_then_held_is_not_sent():
    world = World(with_settings(concurrency_max=1))

    async def main() -> None:
        await world.start()
        world.network.turn("slow")
        ids = await world.give(10)
        await asyncio.sleep(60)
        waiting = [id for id in ids if id not in {r.id for r in world.network.requests}]
        assert waiting
        for id in waiting:
            await world.change_entry("hold", id)
        world.network.turn("fine")
        await asyncio.sleep(HOUR_S)
        assert world.engine.counts().held == world.engine.counts().pending == len(waiting)
        for id in waiting:
            await world.change_entry("release", id)
        await world.until_empty(60)
        world.finish()

    world.run(main())


def test_another_endpoint_is_begun_afresh():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.turn("404")
        await world.give(3)
        await asyncio.sleep(1)
        world.network.turn("fine")
        elsewhere = with_settings(endpoint="https://elsewhere.example/events")
        world.agent.sender.reconfigure(elsewhere, world.network)
        assert world.agent.sender.status().state == "untried"
        assert world.agent.sender.status().endpoint == elsewhere.komodor.endpoint
        await world.until_empty(10)

    world.run(main())


# --- stopping, and a full disk ------------------------------------------------------


def test_a_stop_lets_land_what_lands_in_time_and_marks_the_rest():
    world = World(with_settings(concurrency_max=4))

    async def main() -> None:
        await world.start()
        await world.give(40)
        await world.until_empty(60)
        world.network.turn("some slow")
        await world.give(40)
        await asyncio.sleep(0.5)
        flying = len(world.network.flying)
        assert flying >= 2
        await world.stop(8.0)
        cut_off = [r for r in world.network.requests if r.answer is None]
        landed = {r.id for r in world.network.requests if r.answer is not None}
        assert cut_off
        assert world.engine.counts().delivered == len(landed)
        world.network.turn("fine")
        await world.start()
        await world.until_empty(60)
        again = {r.id for r in world.network.requests if r.marked}
        assert again == {r.id for r in cut_off}
        world.finish()

    world.run(main())


def test_with_a_full_disk_nothing_is_sent_outcomes_are_kept_and_it_goes_on():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.turn("slow")
        await world.give(100)
        await asyncio.sleep(1)
        world.fill_disk(True)
        await asyncio.sleep(60)
        sent = len(world.network.requests)
        await asyncio.sleep(HOUR_S)
        assert len(world.network.requests) == sent
        assert len(told(world, SettlingFailed)) == 1
        world.fill_disk(False)
        world.network.turn("fine")
        await world.until_empty(60)
        assert len(told(world, SettlingResumed)) == 1
        assert len(arrived(world)) == 100
        assert not any(request.marked for request in world.network.requests)
        world.finish()

    world.run(main())


def test_a_full_disk_with_nothing_to_settle_is_told_once():
    world = World()

    async def main() -> None:
        await world.start()
        await world.agent.sender.hold("", "root")
        await world.give(10)
        await world.agent.sender.release("root")
        world.fill_disk(True)
        await asyncio.sleep(HOUR_S)
        assert len(told(world, SettlingFailed)) == 1
        assert not told(world, SettlingResumed)
        world.fill_disk(False)
        await world.until_empty(60)
        assert len(told(world, SettlingResumed)) == 1
        world.finish()

    world.run(main())


def test_a_disk_that_is_full_at_the_start_is_waited_for_and_the_crash_remembered():
    world = World()

    async def main() -> None:
        await world.start()
        world.network.turn("late answers")
        await world.give()
        await asyncio.sleep(1)
        world.crash()
        world.network.turn("fine")
        world.fill_disk(True)
        await world.start()
        await asyncio.sleep(60)
        # To stop now must not forget what was in flight at the crash.
        await world.stop(1.0)
        await world.start()
        await asyncio.sleep(60)
        world.fill_disk(False)
        await world.until_empty(60)
        assert [r.marked for r in world.network.requests] == [False, True]
        world.finish()

    world.run(main())


# --- throttling --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [5, 20])
def test_a_drain_settles_within_a_tenth_below_what_is_taken(limit):
    world = World()
    world.network.latency_s = 0.02

    async def main() -> None:
        await world.start()
        world.network.turn("limit")
        world.network.limit = limit
        await world.give(limit * 100)
        await asyncio.sleep(80)
        landings = world.checks.landings
        taken = sum(good and at_s >= 40 for at_s, _, good in landings)
        refused = sum(not good for _, _, good in landings)
        assert 0.9 * limit <= taken / 40 <= limit
        assert refused < 0.02 * len(landings)

    world.run(main())


@pytest.mark.parametrize("rate_max", [1, 10, 200])
def test_rate_max_is_kept_and_used(rate_max):
    world = World(with_settings(rate_max=rate_max), commit_s=lambda: 0.003)

    async def main() -> None:
        await world.start()
        await world.give(rate_max * 5)
        await world.until_empty(5 * 1.3 + 2)
        world.finish()

    world.run(main())
