"""The deliverer is stopped in the middle of whatever it does, for longer than its lease,
and comes back when another delivers: what it had not launched it must not launch.

At every place where it may wait, before and after: the places are read from the source,
so that a new one that the campaign does not come to fails it.
"""

from __future__ import annotations

import inspect
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from support import unfenced
from support.gateways import Fleet, Gateway, Producers, check
from support.receiver import OK, Receiver
from support.stop_places import Place, places

MOMENTS = ("before", "after")
# What is seen within a lease and some seconds, whatever was locked at the stop.
NOTICED_S = 60
# The weather comes round in less.
COMES_BY_S = 8.0
DRAIN_S = 1.0
# A round takes the longer the more it visits in vain, and one in which nothing is left no time.
ROUNDS_MAX = 8

# Where nothing ever waits on this engine, and why. Nothing may be stopped there.
NEVER = {
    ("outbox/outbox.py", "take_claimed", "claim"): "no claim stands by on a shared outbox",
    ("delivery/claims.py", "offered", ""): "so nothing is offered, and it returns at once",
    ("delivery/sender.py", "_launch_offered", ""): "the same, and then it launches nothing",
    ("delivery/sender.py", "_turn", "self._launch_offered()"): "the same",
    ("delivery/sender.py", "_drain", "self._launch_offered()"): "the same",
    ("outbox/outbox.py", "take_claimed", "self._set_aside"): "the same",
    ("outbox/outbox.py", "fetch", "self._set_aside"): "the server finds damage, no fetch does",
    ("outbox/outbox.py", "_set_aside", ""): "the same",
    ("outbox/outbox.py", "set_aside_damaged", ""): "the same",
    ("delivery/proxied.py", "request", "aclose()"): "a SOCKS proxy that refuses: nothing left",
}


def is_never(place: Place) -> bool:
    return any(
        (place.file, place.function) == (file, function) and text in place.text
        for file, function, text in NEVER
    )


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def turns(gateway: Gateway) -> int:
    """How often it has looked who delivers; one that has ended looks no more."""
    file = gateway.directory / "turns"
    file.unlink(missing_ok=True)
    gateway.order(f"turns {file}")
    ends_s = time.monotonic() + NOTICED_S
    while not file.exists() and not gateway.has_ended():
        assert time.monotonic() < ends_s
        time.sleep(0.005)
    return int(file.read_text()) if file.exists() else 1 << 30


def terms(gateway: Gateway) -> int:
    """How often it has become the deliverer."""
    return gateway.log_text().count('"lease.taken"')


def order_of(moment: str, place: Place) -> str:
    return f"{moment} {place.file}:{place.function}:{place.first_line}:{place.last_line}"


class Campaign:
    """Stops one gateway after the other, and remembers where."""

    def __init__(self, fleet: Fleet) -> None:
        self.two = fleet
        self.places = places()
        self.stops = 0
        self.ends = 0  # of gateways that were killed, or told to end
        self._weather = fleet.receiver
        self._steady = False  # it is left as it is
        self._turning = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._change_weather)

    # --- what Komodor does ---

    @contextmanager
    def weather(self) -> Iterator[None]:
        """All that leads delivery into its branches, one after the other."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            self.turn()

    def turn(self, behave: Callable[[bytes], bytes | None] = lambda body: OK, s: float = 0) -> None:
        self._weather.behave, self._weather.latency_s = behave, s

    def _change_weather(self) -> None:
        unwell = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        fine = (lambda body: OK, 0.0, 1.0)
        slow, away = (lambda body: OK, 0.05, 0.6), (lambda body: unwell, 0.0, 0.2)
        cut = (lambda body: None, 0.0, 0.2)
        while not self._ended.is_set():
            for behave, latency_s, lasts_s in (fine, slow, away, fine, cut):
                with self._turning:
                    if not self._steady:
                        self.turn(behave, latency_s)
                self._ended.wait(lasts_s)

    @contextmanager
    def steady(self, behave: Callable[[bytes], bytes | None], s: float = 0) -> Iterator[None]:
        with self._turning:
            self._steady = True
            self.turn(behave, s)
        try:
            yield
        finally:
            with self._turning:
                self._steady = False
                self.turn()

    # --- where it has been ---

    def covered(self) -> dict[str, set[Place]]:
        """By moment: all that waited at a stop, the innermost and those around it."""
        found: dict[str, set[Place]] = {moment: set() for moment in MOMENTS}
        for gateway in self.two.gateways:
            if gateway.stops.exists():
                for line in gateway.stops.read_text().splitlines():
                    moment, *frames = line.split()
                    found[moment] |= {p for p in self.places for f in frames if p.holds(f)}
        return found

    def missing(self) -> list[tuple[str, Place]]:
        """Innermost first, because a stop there is one at those around it, too."""
        covered = self.covered()
        rank = ("outbox", "delivery/co", "delivery/tr", "delivery/cl", "delivery/ex")
        left = [(m, p) for p in self.places for m in MOMENTS if p not in covered[m]]
        left = [(m, p) for m, p in left if not is_never(p)]
        return sorted(left, key=lambda at: not at[1].file.startswith(rank))

    # --- one stop ---

    def stop(self, moment: str, place: Place) -> list[str] | None:
        """Stop whoever comes by there; what it launched afterwards without the lease. None:
        nobody came by."""
        order = order_of(moment, place)
        if place.function == "_drain" or "self._drain()" in place.text:
            return self._at_the_end(order, place)
        if place.function == "_recover" or "self._recover()" in place.text:
            return self._at_the_start(order, place)
        if "_hand_in_late" in (place.function, *place.text.split("(")[0].split(".")):
            return self._too_late(order)
        if "self._take" in place.text:
            return self._at_the_election(order)
        return self._at_work(order)

    def stop_anywhere(self, chance: random.Random) -> list[str]:
        gateway = self.two.deliverer()
        time.sleep(chance.uniform(0.0, 0.1))
        gateway.stop_self()
        return self._judged(gateway)

    def _at_work(self, order: str) -> list[str] | None:
        gateway = self.two.deliverer()
        return self._judged(gateway) if self._comes_by(gateway, order) else None

    def _at_the_election(self, order: str) -> list[str] | None:
        """The other one is to take over."""
        deliverer = self.two.deliverer()
        (gateway,) = (each for each in self.two.gateways if each is not deliverer)
        deliverer.stop_self()
        came_by = self._comes_by(gateway, order)
        deliverer.resume()
        return self._judged(gateway) if came_by else None

    def _at_the_start(self, order: str, place: Place) -> list[str] | None:
        gateway = self.two.deliverer()
        gateway.kill()
        self.ends += 1
        failing = "recover_sending" if "_wait" in place.text else None
        gateway.hook(stop=order.split(), fails_at_first=failing)
        gateway.start(ready=False)
        came_by = gateway.await_stopped(COMES_BY_S)
        gateway.hook()
        if not came_by:
            self._call_off(gateway)
        return self._judged(gateway) if came_by else None

    def _at_the_end(self, order: str, place: Place) -> list[str] | None:
        """It is told to stop with requests under way; some never end."""
        never_ends = "wait(tasks)" in place.text
        with self.steady(lambda body: b"" if never_ends else OK, 0.3):
            gateway = self.two.deliverer()
            self.two.producers.await_more(20)
            gateway.order(f"stop {order}")
            self.ends += 1
            gateway.signal(signal.SIGTERM)
            came_by = gateway.await_stopped(COMES_BY_S)
        launched = self._judged(gateway) if came_by else None
        ends_s = time.monotonic() + NOTICED_S
        while not gateway.has_ended():  # it may come by there later
            assert time.monotonic() < ends_s, self.two.logs()
            gateway.resume()
            time.sleep(0.05)
        gateway.wait()
        gateway.start()
        return launched

    def _too_late(self, order: str) -> list[str] | None:
        """Answers come when another delivers already."""
        with self.steady(lambda body: OK, 0.3):
            gateway = self.two.deliverer()
            self.two.producers.await_more(20)
            gateway.order(f"stop {order}")
            gateway.stop_self()
            self.two.deliverer(other_than=gateway)
            gateway.resume()
            came_by = gateway.await_stopped(COMES_BY_S)
        if not came_by:
            self._call_off(gateway)
        return self._judged(gateway) if came_by else None

    def _comes_by(self, gateway: Gateway, order: str) -> bool:
        gateway.order(f"stop {order}")
        if gateway.await_stopped(COMES_BY_S):
            return True
        self._call_off(gateway)
        return False

    def _call_off(self, gateway: Gateway) -> None:
        """No stop any more, and where it comes by just now it goes on."""
        gateway.order("stop at nothing")
        heard = gateway.directory / "heard"
        heard.unlink(missing_ok=True)
        gateway.order(f"turns {heard}")
        ends_s = time.monotonic() + NOTICED_S
        while (not heard.exists() or gateway.is_stopped()) and not gateway.has_ended():
            assert time.monotonic() < ends_s, self.two.logs()
            gateway.resume()
            time.sleep(0.02)

    def _judged(self, gateway: Gateway) -> list[str]:
        """Another takes over, it goes on: what it launches then without the lease."""
        terms_before = terms(gateway)
        self.two.deliverer(other_than=gateway)
        resumed_s = boot_s()
        gateway.resume()
        self.stops += 1
        turned, ends_s = turns(gateway), time.monotonic() + NOTICED_S
        while turns(gateway) < turned + 3 and not gateway.launched_since(resumed_s):
            if gateway.has_ended():
                break
            assert time.monotonic() < ends_s, self.two.logs()
            time.sleep(0.05)
        launched = gateway.launched_since(resumed_s)
        # In a term of its own, where the other one has lost it again meanwhile, it may.
        return [] if terms(gateway) > terms_before else launched

    def visit(self, wanted: Sequence[tuple[str, Place]]) -> None:
        for moment, place in wanted:
            if place not in self.covered()[moment]:
                launched = self.stop(moment, place)
                assert not launched, f"launched {launched} after a stop {moment} {place}"


OTHER_WAYS = ("delivery/proxied.py",)


def goes_another_way(place: Place) -> bool:
    """To Komodor by a proxy, or to a gateway that says that it is one."""
    return (
        place.file in OTHER_WAYS
        or "self._proxied(" in place.text
        or "way.request(" in place.text
        or (place.function == "_send" and "self._body(" in place.text)
    )


def test_what_never_waits_is_there():
    """An explanation of what is gone explains nothing."""
    for file, function, text in NEVER:
        assert any(
            (each.file, each.function) == (file, function) and text in each.text
            for each in places()
        ), (file, function, text)


@pytest.mark.timeout(900)
def test_a_deliverer_stopped_at_any_await_launches_nothing_afterwards(node, fleet, full, seed):
    drain = {"drain_timeout": f"{DRAIN_S:g}s"}
    two = fleet(node.url(), delivery=drain, host="localhost")  # a name that is looked up
    campaign = Campaign(two)
    if full:  # over minutes of which much is an outage
        two.producers = Producers(two.gateways, pause_s=0.03)
    two.producers.start()
    two.producers.await_more(100)
    if not full:
        recorded = next(p for p in campaign.places if "self._outbox.exchange(" in p.text)
        while not campaign.stops:  # another may deliver by the time that one is told
            launched = campaign.stop("after", recorded)
            assert not launched
    else:
        with campaign.weather():
            for _ in range(ROUNDS_MAX):  # what nobody came by comes again
                left = [at for at in campaign.missing() if not goes_another_way(at[1])]
                campaign.visit(left)
            # Between the check and the launch of one request there is no await, but there
            # are instructions: a stop at a random one of them may lie in between.
            chance = random.Random(seed)
            while campaign.stops < 60:
                assert len(campaign.stop_anywhere(chance)) <= 1
    figures = two.finish()
    left = [at for at in campaign.missing() if not goes_another_way(at[1])]
    print(f"{campaign.stops} stops, never came by {[f'{m} {p}' for m, p in left]}: {figures}")
    check(figures, campaign.ends)
    stopped = set.union(*campaign.covered().values())
    assert not [place for place in stopped if is_never(place)], "they wait all the same"
    if full:
        assert not left


def test_the_same_by_a_proxy_and_towards_a_gateway(node, fleet, only_full):
    """Requests that leave by other ways wait elsewhere. Who sends is told by the first
    answer that the other end is a gateway, and sends the same once more, as a hop."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    told = b"Outboxd-Gateway: 1; dedup=604800; type=60; bytes=262144\r\nContent-Length: 0\r\n\r\n"
    as_gateway = {True: b"HTTP/1.1 201 Created\r\n" + told, False: b"HTTP/1.1 425 No\r\n" + told}
    two = fleet(
        node.url(),
        receiver=Receiver(lambda body: as_gateway[b'"hop"' in body], listening),
        host="komodor.example",
        komodor={"proxy": f"http://127.0.0.1:{port}", "allow_plain_http": True},
    )
    campaign = Campaign(two)
    two.producers.start()
    two.producers.await_more(20)

    def left() -> list[tuple[str, Place]]:
        return [at for at in campaign.missing() if goes_another_way(at[1])]

    for moment, place in left():
        if place.function == "_send":  # at the first request of a term
            gateway, other = two.gateways
            other.kill()
            gateway.kill()
            gateway.hook(stop=order_of(moment, place).split())
            gateway.start(ready=False)
            assert gateway.await_stopped(NOTICED_S), two.logs()
            gateway.hook()
            other.start()
            assert not campaign._judged(gateway)
    for _ in range(ROUNDS_MAX):
        campaign.visit(left())
    two.producers.stop()
    print(f"{campaign.stops} stops, never came by {[f'{m} {p}' for m, p in left()]}")
    assert not left()


NO_CHECK = """
def fault():
    from outboxd.delivery.sender import Sender
    from outboxd.agent.election import Election
    # Deliberately wrong: whoever was the deliverer launches what it has recorded.
    Election.may_launch = lambda self: self._is_deliverer
"""
NO_FENCE = f"""
from typing import Any

{inspect.getsource(unfenced.renew)}
def fault():
    from outboxd.outbox.postgresql.lease_row import LeaseRow

    LeaseRow._renew = renew
"""


@pytest.mark.parametrize(
    ("fault", "site"),
    [(NO_CHECK, "self._outbox.exchange("), (NO_FENCE, "self._outbox.fetch(")],
    ids=["check", "fence"],
)
def test_a_gateway_without_its_check_or_its_fence_is_caught(node, fleet, only_full, fault, site):
    """The controls: the same stops must find both."""
    two = fleet(node.url(), hooks=fault)
    two.producers.start()
    two.producers.await_more(100)
    campaign = Campaign(two)
    place = next(each for each in campaign.places if site in each.text)
    for _ in range(10):
        if campaign.stop("after", place):
            return
    raise AssertionError("ten stops did not find it")
