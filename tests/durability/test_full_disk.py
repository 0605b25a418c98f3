"""The disk is full: before the start, while running, for the outbox, for the spool.

Intake refuses and says so, spool files stay where they are, delivery goes on as
long as outcomes can be written and stops when they cannot, and everything goes
on by itself when there is room. Real file systems, filled to the last block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import smalldisk
from support.agent import AgentProcess
from support.receiver import OK, Receiver
from support.smalldisk import SmallDisk
from support.waiting import wait_until

from outboxd.producer.spool import NotStored, put

IN_FLIGHT_MAX = 16
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver().start()
    yield receiver
    receiver.stop()


def event(summary: str) -> bytes:
    return json.dumps({"eventType": "disk", "summary": summary}).encode()


def post(agent: AgentProcess, summary: str) -> tuple[int, object]:
    return agent.request("POST", "/mgmt/v1/events", event(summary))


def agent_on(
    tmp_path: Path, disk: SmallDisk, receiver: Receiver, *, outbox: bool = True, spool: bool = True
) -> AgentProcess:
    """An agent with outbox, spool or both on the small disk."""
    agent = AgentProcess(
        tmp_path,
        receiver.endpoint,
        # More than the ballast, which is for outcomes: what it leaves is room for nothing else.
        extra={"outbox": {"disk_free_min": "8MiB"}},
        prefix=disk.prefix,
        outbox=disk.inside / "outbox.db" if outbox else None,
        spool=disk.inside / "spool" if spool else None,
    )
    # From here we look at them through the other name.
    if outbox:
        agent.outbox = disk.outside / "outbox.db"
    if spool:
        agent.spool = disk.outside / "spool"
    return agent


def ballast(agent: AgentProcess) -> Path:
    return Path(f"{agent.outbox}.ballast")


def check_all(receiver: Receiver, promised: list[str]) -> None:
    assert [s for s in promised if not receiver.arrivals[s]] == []
    twice = [marks for marks in receiver.arrivals.values() if len(marks) > 1]
    assert sum(len(marks) - 1 for marks in twice) <= IN_FLIGHT_MAX
    assert all(all(marks[1:]) for marks in twice)


def test_full_before_the_first_start_means_try_again(tmp_path, need, receiver):
    disk = smalldisk.make(tmp_path, "tmpfs", need)
    try:
        disk.fill()
        agent = agent_on(tmp_path, disk, receiver)
        agent.start(ready=False)
        assert agent.wait() == 75
        disk.empty()
        agent.start()
        assert post(agent, "one")[0] == 201
        agent.await_empty()
        assert agent.stop() == 0
        check_all(receiver, ["one"])
    finally:
        disk.close()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4-4k", "ext4-1k"])
def test_full_while_running_refuses_delivers_stops_and_goes_on(
    tmp_path, need, receiver, full, kind
):
    if kind == "ext4-1k" and not full:
        pytest.skip("only among the full figures")
    disk = smalldisk.make(tmp_path, kind, need)
    receiver.behave = lambda body: UNAVAILABLE
    try:
        agent = agent_on(tmp_path, disk, receiver)
        agent.start()
        promised = [f"before {number}" for number in range(100)]
        assert {post(agent, summary)[0] for summary in promised} == {201}
        wait_until(lambda: ballast(agent).exists(), "ballast is laid")
        waiting = prepare_spool(agent)
        disk.fill()
        refusal = refused(agent)
        assert set(refusal) >= {"error", "field", "hint"}
        for name in waiting:
            os.rename(agent.spool / "tmp" / name, agent.spool / "new" / name)
        # Failing probes are outcomes too: they take the ballast, and we that room.
        wait_until(lambda: not ballast(agent).exists(), "the ballast is used")
        wait_until(lambda: stopped(disk, agent), "delivery stops")
        requests = receiver.requests
        receiver.behave = lambda body: OK
        # Nothing more is sent while outcomes cannot be written.
        assert agent.status()["intake"]["accepting"] is False
        assert receiver.requests - requests <= IN_FLIGHT_MAX
        assert sorted(os.listdir(agent.spool / "new")) == waiting
        disk.empty()
        agent.await_empty()
        wait_until(lambda: post(agent, "after")[0] == 201, "it accepts again")
        agent.await_empty()
        assert agent.stop() == 0
        check_all(receiver, [*promised, *waiting, "after"])
        # Ballast is laid again, at the latest by the next start.
        agent.start()
        wait_until(lambda: ballast(agent).exists(), "ballast is laid again")
        assert agent.stop() == 0
    finally:
        disk.close()


def prepare_spool(agent: AgentProcess) -> list[str]:
    """Files ready to be renamed: on a full disk none could be written."""
    for name in ("file 1", "file 2"):
        (agent.spool / "tmp" / name).write_bytes(event(name))
    return ["file 1", "file 2"]


def refused(agent: AgentProcess) -> dict:
    """The refusal, as soon as the agent has noticed."""
    answers: list[tuple[int, object]] = []

    def is_refused() -> bool:
        answers.append(post(agent, f"odd {len(answers)}"))
        return answers[-1][0] == 507

    wait_until(is_refused, "intake refuses")
    assert isinstance(answers[-1][1], dict)
    return answers[-1][1]


def stopped(disk: SmallDisk, agent: AgentProcess) -> bool:
    disk.fill()
    return "settling" in agent.log_text()


def test_full_before_a_start_delivers_what_waits_and_takes_nothing(tmp_path, need, receiver):
    disk = smalldisk.make(tmp_path, "tmpfs", need)
    receiver.behave = lambda body: UNAVAILABLE
    try:
        agent = agent_on(tmp_path, disk, receiver)
        agent.start()
        promised = [f"before {number}" for number in range(50)]
        assert {post(agent, summary)[0] for summary in promised} == {201}
        wait_until(lambda: ballast(agent).exists(), "ballast is laid")
        waiting = prepare_spool(agent)
        agent.kill()
        disk.fill()
        for name in waiting:
            os.rename(agent.spool / "tmp" / name, agent.spool / "new" / name)
        receiver.behave = lambda body: OK
        agent.start()
        refused(agent)
        wait_until(lambda: agent.status()["outbox"]["pending"] == 0, "all is delivered")
        assert sorted(os.listdir(agent.spool / "new")) == waiting
        disk.empty()
        agent.await_empty()
        assert agent.stop() == 0
        check_all(receiver, [*promised, *waiting])
    finally:
        disk.close()


def test_full_for_the_outbox_only_leaves_files_in_the_spool(tmp_path, need, receiver):
    disk = smalldisk.make(tmp_path, "tmpfs", need)
    try:
        agent = agent_on(tmp_path, disk, receiver, spool=False)
        agent.start()
        disk.fill()
        refused(agent)
        name = put(str(agent.spool), event("spooled"))
        wait_until(lambda: "spool.waiting" in agent.log_text(), "the spool waits")
        assert os.listdir(agent.spool / "new") == [name]
        disk.empty()
        agent.await_empty()
        assert agent.stop() == 0
        check_all(receiver, ["spooled"])
    finally:
        disk.close()


def test_full_for_the_spool_only_harms_nobody_else(tmp_path, need, receiver):
    disk = smalldisk.make(tmp_path, "tmpfs", need)
    try:
        agent = agent_on(tmp_path, disk, receiver, outbox=False)
        agent.start()
        bad = agent.spool / "tmp" / "bad"
        bad.write_bytes(b"no event")
        prepare_spool(agent)
        disk.fill()
        with pytest.raises(NotStored):
            put(str(agent.spool), event("no room"))
        os.rename(bad, agent.spool / "new" / "bad")
        for name in ("file 1", "file 2"):
            os.rename(agent.spool / "tmp" / name, agent.spool / "new" / name)
        assert post(agent, "by the socket")[0] == 201
        wait_until(lambda: receiver.arrivals["file 2"], "what lies in the spool is taken")
        disk.empty()
        wait_until(lambda: not os.listdir(agent.spool / "new"), "the bad file is put aside")
        assert "bad.error" in os.listdir(agent.spool / "rejected")
        agent.await_empty()
        assert agent.stop() == 0
        check_all(receiver, ["by the socket", "file 1", "file 2"])
    finally:
        disk.close()


def test_the_backlogs_watermarks_refuse_with_a_time_to_come_back(tmp_path, receiver):
    receiver.behave = lambda body: UNAVAILABLE
    agent = AgentProcess(tmp_path, receiver.endpoint, extra={"outbox": {"events_max": 50}})
    agent.start()
    promised = [f"event {number}" for number in range(50)]
    assert {post(agent, summary)[0] for summary in promised} == {201}
    status, headers = answer_with_headers(agent, event("too much"))
    assert status == 503
    assert 1 <= int(headers["Retry-After"]) <= 300
    name = put(str(agent.spool), event("spooled"))
    wait_until(lambda: "spool.waiting" in agent.log_text(), "the spool waits")
    assert os.listdir(agent.spool / "new") == [name]
    receiver.behave = lambda body: OK
    agent.await_empty()
    assert post(agent, "after")[0] == 201
    agent.await_empty()
    assert agent.stop() == 0
    check_all(receiver, [*promised, "spooled", "after"])


def answer_with_headers(agent: AgentProcess, body: bytes) -> tuple[int, dict[str, str]]:
    from support.agent import UnixConnection

    connection = UnixConnection(str(agent.socket))
    try:
        connection.request("POST", "/mgmt/v1/events", body)
        response = connection.getresponse()
        response.read()
        return response.status, dict(response.getheaders())
    finally:
        connection.close()
