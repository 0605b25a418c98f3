"""One user neither reads, nor silences, nor poses as another, whatever it says on the socket.

Alice attacks by what she hands in, Bob by what he asks for. Each check is a
function of the house that lists what got through, so that the control, an agent
without the rule, is judged by the very same.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.neighbour import ALICE, BOB, House, drop
from support.outside import Komodor, outboxd

SECRET = "xyzzy-of-alice"  # what Bob may have guessed, and looks for
WITHIN = "plugh-of-alice"
NO_EVENTS = 12_000  # lines of a batch; more than it may have before none is looked at

EVERYBODY_READS = """
import outboxd.api.peer as peer
peer.readable = lambda request, reads_others: ()
"""
EVERYBODY_ACTS = """
import outboxd.api.peer as peer
peer.require_operator = lambda request: request.peer
"""
KEYS_OF_THE_HOST = """
import outboxd.outbox.sqlite.accepting as accepting
accepting.key_identities = lambda producer, key: ["p:" + key]
accepting.repeat_identity = lambda producer, body: "r:" + body.decode()
"""
NO_SHARES = """
import outboxd.intake.admission as admission
admission.Shares.room = lambda *_: None
"""
SOURCE_AS_SAID = """
import outboxd.intake.producer as producer
producer.user = lambda user_id: producer.AGENT
"""


# --- reading (and acting on) another's events ---------------------------------------


def of_alice(house: House) -> str:
    """The id of an event that says the secret in each of its fields."""
    return house.alice.hand_in(
        SECRET,
        {
            "eventType": SECRET,
            "scope": {
                name: [SECRET, WITHIN] for name in ("clusters", "namespaces", "servicesNames")
            },
            "details": {SECRET: WITHIN},
            "dedupKey": SECRET,
        },
    )["id"]


def readings(id: str) -> list[str]:
    """What Bob may ask for, and what he may hope that somebody has forgotten."""
    lists = (
        *("", f"?q={SECRET}", "?limit=1000", f"?key={SECRET}", f"?cluster={SECRET}"),
        *(f"?id={id}", f"?producer=uid:{ALICE}", f"?producers=uid:{ALICE}", "?state=pending"),
        *("?cursor=9223372036854775807", "?since=2000-01-01T00:00:00Z", f"?type={SECRET}"),
    )  # fmt: skip
    return [
        *(f"/v1/{path}{query}" for path in ("events", "export") for query in lists),
        *(f"/v1/events/{id}{rest}" for rest in ("", "/", "/through", "?", "%20", "/../" + id)),
        *(f"/v1/events/{id[:8]}", f"/v1/events/{id[-8:]}", f"/v1/events/{id.upper()}"),
        *(f"/v1/{path}?q={SECRET}" for path in ("facets", "histogram", "inventory")),
        *("/v1/stream", "/v1/activity", "/v1/backup", "/v1/status", "/metrics", "/v1/session"),
        *("//v1/events", "/v1/./events", "/v1/events/", "/v1/events/*", "/v1/dead-letters"),
    ]


# What a client may claim; nothing of it decides who it is.
CLAIMS: tuple[dict[str, str], ...] = (
    {},
    {"X_Forwarded_User": "root", "X_Forwarded_For": "127.0.0.1", "X_Remote_User": "uid:0"},
    {"Authorization": "Basic cm9vdDo=", "Cookie": "outboxd_page=x", "x_outboxd_key": "x"},
    {"Host": "root@localhost", "Origin": "http://localhost", "Outboxd_Producer": f"uid:{ALICE}"},
)


def read_by_bob(house: House) -> list[str]:
    """Each request whose answer tells Bob of Alice's event."""
    id, own = of_alice(house), house.bob.hand_in("bob's own")["id"]
    found = []
    for target in readings(id):
        _, text = house.bob.ask("GET", target)
        # What he has said himself may be told back to him.
        guessed = any(each in text and each not in target for each in (SECRET, id))
        if WITHIN in text or guessed:
            found.append(target)
    for claim in CLAIMS:
        if SECRET in house.bob.ask("GET", "/v1/events?limit=1000", None, **claim)[1]:
            found.append(f"/v1/events with {claim}")
    # Whether it exists is not told either.
    nowhere = "0" * len(id)
    hidden, unknown = (house.bob.ask("GET", f"/v1/events/{each}") for each in (id, nowhere))
    if (hidden[0], hidden[1].replace(id, nowhere)) != unknown:
        found.append("that it exists")
    assert own in house.bob.ask("GET", "/v1/events")[1], "his own he sees"
    assert house.agent.entry(id)["summary"] == SECRET, "the operator sees all"
    return found


def done_by_bob(house: House) -> list[str]:
    """Each request by which Bob changes what is not his to change."""
    id = of_alice(house)
    targets = [
        *(f"/v1/events/{id}/{change}" for change in ("drop", "retry")),
        *("/v1/dead-letters/drop", "/v1/dead-letters/retry", "/v1/hold", "/v1/release"),
        "/v1/session",
    ]
    bodies = ("{}", json.dumps({"id": id}), "", '{"reason": "mine"}', "x" * 20_000)
    found = []
    for claim in CLAIMS:
        for target in targets:
            for body in bodies:
                status, _ = house.bob.ask("POST", target, body, **claim)
                if status < 400:
                    found.append(f"POST {target} {body[:40]} {claim}")
    for method in ("DELETE", "PUT", "PATCH"):
        if house.bob.ask(method, f"/v1/events/{id}")[0] < 400:
            found.append(f"{method} {id}")
    return found


def test_nobody_reads_anothers_event(shared_house):
    assert read_by_bob(shared_house) == []


def test_nobody_but_an_operator_changes_anything(shared_house):
    assert done_by_bob(shared_house) == []
    assert shared_house.agent.status()["destination"]["state"] != "held"


@pytest.mark.parametrize(
    ("patch", "check"), [(EVERYBODY_READS, read_by_bob), (EVERYBODY_ACTS, done_by_bob)]
)
def test_without_the_rule_it_is_seen(controlled_house, patch, check):
    with controlled_house(patch) as house:
        assert len(check(house)) > 5


# --- silencing another's events ------------------------------------------------------


def silenced(house: House) -> list[str]:
    """Each way in which Alice made Bob's event a duplicate of hers."""
    found = []

    def expect_new(way: str, receipt: dict[str, Any]) -> None:
        if (receipt["code"], receipt.get("status")) != (201, "accepted"):
            found.append(f"{way}: {receipt}")

    def keyed(key: str) -> dict[str, Any]:
        return {"dedupKey": key}

    for number, key in enumerate(
        ("backup-2026-11-26", "3", "uid:65533\nk", "p:uid:65533", "é" * 50)
    ):
        house.alice.hand_in(f"first {number}", keyed(key))
        expect_new(f"the key {key!r}", house.bob.hand_in(f"second {number}", keyed(key)))
        expect_new(f"the key {key!r}, by root", _of_root(house, f"third {number}", keyed(key)))
    for key in ("in-header", "in-header 2"):
        house.alice.hand_in(f"by {key}", None, Idempotency_Key=key)
    expect_new("a header", house.bob.hand_in("his 1", None, Idempotency_Key="in-header"))
    both = house.bob.hand_in("his 2", keyed("in-header 2"), Idempotency_Key="in-header 2")
    expect_new("a header and a field", both)

    line = {"eventType": "t", "summary": "of a batch", "dedupKey": "in-batch"}
    house.alice.ask("POST", "/v1/events/batch", json.dumps(line) + "\n" + json.dumps(line))
    expect_new("a batch", house.bob.hand_in("his 3", keyed("in-batch")))

    drop(house.agent, "of-alice", json.dumps({**line, "dedupKey": "in-file"}).encode(), ALICE)
    house.agent.await_taken()
    expect_new("a file", house.bob.hand_in("his 4", keyed("in-file")))

    # The same words at once: two jobs of two users, each of them to be told.
    house.alice.hand_in("the very same")
    expect_new("equal events", house.bob.hand_in("the very same"))

    # And the other way about: Bob's file behind Alice's key over the socket.
    house.alice.hand_in("taken", keyed("his-file"))
    drop(house.agent, "of-bob", json.dumps({**line, "dedupKey": "his-file"}).encode(), BOB)
    house.agent.await_taken()
    _, text = house.bob.ask("GET", "/v1/events?key=his-file")
    if len(json.loads(text)["events"]) != 1:
        found.append(f"a file behind a key: {text}")
    return found


def _of_root(house: House, summary: str, event: dict[str, Any]) -> dict[str, Any]:
    status, receipt = house.agent.post({"eventType": "root", "summary": summary, **event})
    return {**receipt, "code": status}


def test_nobody_makes_anothers_event_a_duplicate(shared_house):
    assert silenced(shared_house) == []


def test_without_keys_by_producer_it_is_seen(controlled_house):
    with controlled_house(KEYS_OF_THE_HOST) as house:
        assert len(silenced(house)) > 5


# --- posing as another ---------------------------------------------------------------

REPORT = {"eventType": "outboxd", "summary": "outboxd: 214 events delayed up to 2h 13m"}


def posed_as(house: House) -> list[str]:
    """Each event of Alice's that the outbox takes for somebody else's."""
    fields: tuple[dict[str, Any], ...] = (
        {},
        {"source": "agent"},
        {"producer": "agent"},
        {"producer": f"uid:{BOB}", "hop": {"host": "x", "ageMs": 1, "attempts": 0}},
        {"details": {"source": "agent", "producer": f"uid:{BOB}", "host": "another"}},
    )
    found = []
    for field in fields:
        for claim in (*CLAIMS, {"Outboxd_Hop": "host=x; age=1", "User_Agent": "outboxd"}):
            receipt = house.alice.hand_in("", {**REPORT, **field}, **claim)
            if receipt["code"] != 201:
                continue  # an unknown field is refused
            entry = house.agent.entry(receipt["id"])
            if (entry["source"], entry["producer"]) != ("socket", f"uid:{ALICE}") or entry["hop"]:
                found.append(f"{field} {claim}: {entry['source']} of {entry['producer']}")
    return found


def test_nobody_hands_in_as_somebody_else(shared_house):
    assert posed_as(shared_house) == []


def test_without_the_kernels_word_it_is_seen(controlled_house):
    with controlled_house(SOURCE_AS_SAID) as house:
        assert posed_as(house) != []


# --- filling the outbox ----------------------------------------------------------------

EVENTS_MAX = 200
CROWDED = {"outbox": {"events_max": EVENTS_MAX, "disk_free_min": "1MiB"}}


def kept_out(house: House) -> list[str]:
    """Alice fills the outbox by every door at once; what of Bob's is refused then."""
    house.alice.ask("POST", "/v1/events/batch", _lines("batch", 2 * EVENTS_MAX))
    for number in range(3):
        drop(house.agent, f"flood-{number}", _lines(f"file {number}", EVENTS_MAX).encode())
    for number in range(20):
        house.alice.hand_in(f"one more {number}")
    found = [f"of {ALICE}: taken beyond its share"] * (house.alice.hand_in("more")["code"] == 201)
    for number in range(10):
        told = house.bob.hand_in(f"bob's {number}")
        if told["code"] != 201:
            found.append(f"bob: {told['error']}")
    status, told = house.agent.post({"eventType": "root", "summary": "of root"})
    if status != 201:
        found.append(f"root: {told}")
    # His file is taken while hers wait.
    drop(house.agent, "of-bob", json.dumps({"eventType": "t", "summary": "his"}).encode(), BOB)
    try:
        house.agent.until(
            lambda: None if (house.agent.spool / "new" / "of-bob").exists() else True,
            lambda: "the file waits",
        )
    except AssertionError as error:
        found.append(str(error))
    return found


def _lines(name: str, count: int) -> str:
    every = (json.dumps({"eventType": "flood", "summary": f"{name} {n}"}) for n in range(count))
    return "\n".join(every)


def test_nobody_fills_the_outbox_for_all(make_house):
    with make_house(**CROWDED) as house:
        assert kept_out(house) == []


def test_the_operator_sees_which_user_was_refused_and_why(make_house):
    with make_house(**CROWDED) as house:
        house.alice.ask("POST", "/v1/events/batch", _lines("batch", EVENTS_MAX))
        house.alice.hand_in("one more")
        house.bob.ask("POST", "/v1/release", "{}")
        house.bob.ask("POST", "/v1/events/batch", "{\n" * NO_EVENTS)
        drop(house.agent, "no-json", b"{", BOB)
        status = house.agent.until(
            lambda: (
                told
                if f'"count": {NO_EVENTS + 1}' in json.dumps(told := house.agent.status())
                else None
            ),
            lambda: "the file waits",
        )
        refused = {
            (user["producer"], one["reason"]): (one["count"], one["told"])
            for user in status["refusedUsers"]
            for one in user["refused"]
        }
        assert refused.keys() == {
            (f"uid:{ALICE}", "full"),
            (f"uid:{BOB}", "no_right"),
            (f"uid:{BOB}", "invalid"),
        }
        count, told = refused[f"uid:{ALICE}", "full"]
        assert count == EVENTS_MAX // 2 + 1
        assert f"uid:{ALICE} has {EVENTS_MAX // 2} events waiting" in told
        assert "may not change entries" in refused[f"uid:{BOB}", "no_right"][1]
        counted = house.agent.request("GET", "/metrics")[1].decode()
        lines = [json.loads(line) for line in house.agent.log_text().splitlines()]
        for (producer, reason), (count, _) in refused.items():
            uid = producer.removeprefix("uid:")
            name = f'outboxd_user_refusals_total{{reason="{reason}",uid="{uid}"}}'
            assert f"{name} {float(count)}\n" in counted
            assert any(
                (line["event"], line.get("producer"), line.get("reason"))
                == ("user.refused", producer, reason)
                for line in lines
            )
        count = refused[f"uid:{ALICE}", "full"][0]
        screen = outboxd("status", "-c", str(house.agent.config)).stdout.decode()
        assert f"uid:{ALICE}): {count} refused (full), " in screen
        seen_by_bob = json.loads(house.bob.ask("GET", "/v1/status")[1])
        assert {one["told"] for user in seen_by_bob["refusedUsers"] for one in user["refused"]} == {
            None
        }


def test_without_shares_it_is_seen(controlled_house):
    with controlled_house(NO_SHARES, **CROWDED) as house:
        assert len(kept_out(house)) > 10


# --- making the agent work, and ask its destination ---------------------------------------

# So long that a machine which takes its time over four requests does not matter.
SHARED_FOR_LONG = """
import outboxd.api.operation as operation
assert operation.MEMBERS_LOOK_S > 0
operation.MEMBERS_LOOK_S = 3600.0
"""
ALWAYS_ANEW = """
import outboxd.api.operation as operation
operation.MEMBERS_LOOK_S = 0.0
"""


def looks_for_alice(make_house, patch: str) -> int:
    """How often Komodor was asked about the key, as Alice asked four times."""
    komodor = Komodor()
    try:
        with make_house(komodor.url, patch) as house:
            for _ in range(4):
                assert house.alice.ask("GET", "/v1/check")[0] == 200
            asked = len(komodor.arrivals)
            assert house.agent.request("GET", "/v1/check")[0] == 200  # an operator's is new
            assert len(komodor.arrivals) == asked + 1
            return asked
    finally:
        komodor.stop()


def test_a_member_has_the_agent_look_around_no_more_than_now_and_then(only_full, make_house):
    assert looks_for_alice(make_house, SHARED_FOR_LONG) == 1


def test_without_sharing_a_look_it_is_seen(only_full, make_house):
    assert looks_for_alice(make_house, ALWAYS_ANEW) == 4
