"""The queue tools over the agent's socket."""

from __future__ import annotations

import json
import os
import pty
import pwd
import re
import subprocess
import sys
import tempfile
import termios
import threading

import pytest
from support.waiting import PATIENCE_S

from outboxd.cli import agent
from outboxd.cli.agent import AgentQueue
from outboxd.outbox.sqlite.opening import open_offline

UNKNOWN = "01900000-0000-7000-8000-000000000000"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def calm(world):
    """Each test begins with a healthy destination."""
    world.faults(**dict.fromkeys(("outage", "status", "failRate", "latencyMs")))
    world.settle()
    yield
    world.run("release")


def test_an_agent_without_a_page_has_no_link_to_it(world):
    done = world.run("page", "--no-open")
    assert done.code == 78, done
    assert "[http] listen" in done.err


def test_an_event_is_seen_by_every_command(world):
    id = world.add("seen by all", scope={"clusters": ["prod"]}, details={"host": "a", "n": 1.50})
    assert world.run("wait", id).code == 0
    entry = world.run("events", "show", id, "--json").json
    assert (entry["state"], entry["attempts"][0]["status"]) == ("delivered", 201)
    shown = world.run("events", "show", id[:18])
    assert shown.code == 0
    for part in ("seen by all", id, "delivered", "cluster=prod", "host: a", "201"):
        assert part in shown.out
    listed = world.run("events")
    assert id in listed.out
    assert listed.out.splitlines()[0].split()[:3] == ["ID", "RECEIVED", "STATE"]


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("status", "--check"),
        ("events",),
        ("dead-letters", "list"),
        ("dead-letters", "export"),
        ("hold",),
        ("release",),
        ("check",),
    ],
    ids=" ".join,
)
def test_each_command_runs_in_an_interpreter_of_its_own(world, words):
    done = world.run(*words, fresh=True)
    assert done.code == 0 or "dead letter" in done.out, done  # those are other tests'


def test_filters_leave_what_they_name_and_json_is_an_entry_a_line(world):
    first = world.add("filtered one", severity="error", scope={"namespaces": ["shop"]})
    second = world.add("filtered two", scope={"servicesNames": ["cart"]})
    for words, ids in (
        (("--q", "FILTERED"), [second, first]),
        (("--q", "filtered", "--severity", "error"), [first]),
        (("--namespace", "shop"), [first]),
        (("--service", "cart", "--service", "other"), [second]),
        (("--q", "filtered", "--since", "1h"), [second, first]),
        (("--q", "filtered", "--until", "1h"), []),
        (("--type", "none"), []),
        (("--q", "filtered", "--limit", "1"), [second]),
    ):
        done = world.run("events", *words, "--json")
        assert done.code == 0
        assert [entry["id"] for entry in done.lines] == ids, words


def test_a_list_goes_on_where_it_ended(world):
    for number in range(3):
        world.add(f"paged {number}")
    first = world.run("events", "--q", "paged", "--limit", "2", "--json")
    cursor = re.search(r"--cursor (\S+),", first.err)[1]
    rest = world.run("events", "--q", "paged", "--cursor", cursor, "--json")
    assert [entry["summary"] for entry in first.lines + rest.lines] == [
        "paged 2",
        "paged 1",
        "paged 0",
    ]


def test_details_with_line_breaks_stay_on_one_line_and_numbers_keep_their_text(world):
    body = b'{"eventType":"t","summary":"spread","details":{\n"n":\n1.50,"far":1e400}}'
    id = world.post(body)["id"]
    done = world.run("events", "--q", "spread", "--json")
    assert done.out.count("\n") == 1
    assert '"n":1.50,"far":1e400' in done.out
    assert "far: 1e400" in world.run("events", "show", id).out


def test_an_event_cannot_steer_the_terminal(world):
    id = world.add("evil \x1b[2J\u202e\nsecond line", details={"k\x1b": "v\x07"})
    for done in (world.run("events", "--q", "evil"), world.run("events", "show", id)):
        assert not {"\x1b", "\u202e", "\x07"} & set(done.out)
        assert "second line" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ("events", "show", UNKNOWN),
        ("events", "show", "nonsense"),
        ("wait", UNKNOWN),
        ("hold", UNKNOWN),
        ("release", UNKNOWN),
        ("dead-letters", "retry", UNKNOWN),
        ("dead-letters", "drop", UNKNOWN),
        ("dead-letters", "show", UNKNOWN),
        ("dead-letters", "export", UNKNOWN),
    ],
)
def test_a_wrong_id_says_so_and_exits_65(world, words):
    done = world.run(*words)
    assert done.code == 65, done
    assert words[-1] in done.err


def test_wait_tells_delivered_from_late_and_dead(world):
    world.run("hold")
    id = world.add("waited for")
    late = world.run("wait", id, "--timeout", "50ms")
    assert late.code == 69
    assert "pending" in late.err
    assert "held" in late.err
    world.run("release")
    assert world.run("wait", id).code == 0
    dead = world.run("wait", world.dead("refused"))
    assert dead.code == 1
    assert "rejected" in dead.err


def test_the_destination_is_held_with_a_reason_and_released(world):
    held = world.run("hold", "--reason", "maintenance")
    assert held.code == 0, held
    status = world.run("status", "--json").json
    assert status["destination"]["state"] == "held"
    assert "maintenance" in status["destination"]["reason"]
    assert "maintenance" in world.run("status").out
    check = world.run("status", "--check")
    assert check.code == 2
    assert check.out.count("\n") == 1
    released = world.run("release")
    assert released.code == 0
    assert "was held" in released.out
    assert "maintenance" in released.out
    assert "nothing waited: the destination is " in world.run("release").out
    id = world.add("after the hold")
    assert world.run("wait", id).code == 0
    check = world.run("status", "--check")
    assert check.code == 0 or "dead letter" in check.out, "those are other tests'"


def test_one_entry_is_held_and_released(world):
    world.run("hold")
    kept, other = world.add("kept back"), world.add("goes on")
    assert world.run("hold", kept).code == 0
    world.run("release")
    assert world.run("wait", other).code == 0
    shown = world.run("events", "show", kept)
    assert "held by the operator" in shown.out
    assert world.run("release", kept).code == 0
    assert world.run("wait", kept).code == 0
    too_late = world.run("hold", kept)
    assert too_late.code == 65
    assert "delivered" in too_late.err


def test_status_check_warns_while_the_destination_is_unavailable(world):
    world.faults(status=500)
    id = world.add("during trouble")
    while "unavailable" not in (done := world.run("status", "--check")).out:
        assert done.code in (0, 1), done
    assert done.code == 1, done
    assert "unavailable" in world.run("events", "show", id).out
    world.faults(status=None)
    assert world.run("wait", id).code == 0


def test_dead_letters_are_retried_one_by_one_and_all(world):
    first, second, third = (world.dead(f"dead {number}") for number in range(3))
    listed = world.run("dead-letters", "--json")
    assert {first, second, third} <= {entry["id"] for entry in listed.lines}
    assert world.run("dead-letters", "retry", first).code == 0
    assert world.run("wait", first).code == 0
    done = world.run("dead-letters", "retry", "--all", "--q", "dead 1")
    assert "1 dead letter sent back" in done.out
    assert world.run("wait", second).code == 0
    mixed = world.run("dead-letters", "retry", UNKNOWN, third)
    assert mixed.code == 65
    assert "1 dead letter sent back" in mixed.out, "the good one is done all the same"
    assert world.run("wait", third).code == 0


def test_retry_and_drop_want_to_know_which(world):
    assert world.run("dead-letters", "drop").code == 64
    assert world.run("dead-letters", "drop", "--all", UNKNOWN).code == 64
    assert world.run("dead-letters", "retry", UNKNOWN, "--type", "x").code == 64


def test_all_means_those_that_the_filters_of_dead_letters_leave(world):
    id = world.dead("filtered dead")
    named = ("--q", "filtered dead", "--json")
    for words, found in (
        (("--reason", "rejected", "--status", "400"), [id]),
        (("--reason", "rejected", "--reason", "expired", "--status", "422"), []),
        (("--reason", "exhausted"), []),
        (("--since", "1h"), [id]),
        (("--until", "1h"), []),
    ):
        listed = world.run("dead-letters", *words, *named)
        assert [entry["id"] for entry in listed.lines] == found, words
    assert world.run("dead-letters", "--status", "bad").code == 64
    other = world.run("dead-letters", "retry", "--all", "--q", "filtered dead", "--status", "422")
    assert "0 dead letters sent back" in other.out
    done = world.run("dead-letters", "retry", "--all", "--q", "filtered dead", "--status", "400")
    assert "1 dead letter sent back" in done.out
    assert world.run("wait", id).code == 0


def test_one_request_retries_what_a_filter_names(world):
    first, second = world.dead("in one request", severity="error"), world.dead("in one request")
    wanted = {"q": "in one request", "severity": ["error", "warning"], "status": 400}
    answer = world.post(json.dumps(wanted).encode(), "/v1/dead-letters/retry")
    assert answer == {"changed": 1}
    assert world.run("wait", first).code == 0
    refused = world.post(b'{"limit": 3}', "/v1/dead-letters/retry")
    assert refused["field"] == "limit"
    answer = world.post(b"", "/v1/dead-letters/retry?q=in+one+request&reason=rejected")
    assert answer == {"changed": 1}
    assert world.run("wait", second).code == 0


def test_without_a_terminal_all_are_dropped_only_by_a_word(world):
    id = world.dead("dropped by a word")
    chosen = ("dead-letters", "drop", "--all", "--q", "dropped by a word")
    refused = world.run(*chosen)
    assert refused.code == 64
    assert "--yes" in refused.err
    assert world.run("events", "show", id).code == 0
    assert "1 dead letter dropped" in world.run(*chosen, "--yes").out
    assert world.run("events", "show", id).code == 65


@pytest.mark.parametrize(("typed", "left"), [("2", 1), ("1", 3), ("", 3)])
def test_at_a_terminal_dropping_all_asks_for_the_number_of_events(world, typed, left):
    """And means those that it counted: not what died while it asked."""
    for _ in range(2):
        world.dead(f"asked about {typed}")
    master, slave = pty.openpty()
    words = ("dead-letters", "drop", "--all", "--q", f"asked about {typed}")
    dropping = subprocess.Popen(
        [sys.executable, "-m", "outboxd", *words, "-c", str(world.config)],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        env=world.environment,
    )
    os.close(slave)
    seen = b""
    while b"Type the number" not in seen:
        seen += os.read(master, 65536)
    assert b"2 dead letters for good" in seen
    world.dead(f"asked about {typed}")
    os.write(master, typed.encode() + b"\n")
    assert dropping.wait(PATIENCE_S) == 0
    os.close(master)
    listed = world.run("dead-letters", "--q", f"asked about {typed}", "--json")
    assert len(listed.lines) == left
    world.run("dead-letters", "drop", "--all", "--q", f"asked about {typed}", "--yes")


def test_a_backup_of_a_running_agent_opens_as_an_outbox(world, tmp_path):
    id = world.dead("to be backed up")
    world.run("hold")
    waiting = world.add("waits in the backup")
    copy = tmp_path / "copy.db"
    for _ in range(2):  # the second replaces the first
        done = world.run("backup", str(copy))
        assert done.code == 0, done
        assert str(copy) in done.out
    world.run("release")
    assert [file.name for file in tmp_path.iterdir()] == ["copy.db"]
    assert copy.stat().st_mode & 0o777 == 0o600
    with open_offline(str(copy)) as engine:
        assert engine.get(id).state == "dead"
        (claimed,) = [c for c in engine.fetch(9, (), "mixed", 0, 300).entries if c.id == waiting]
        assert claimed.id == waiting
        assert "a backup of" in engine.put_back


def test_a_backup_says_why_it_cannot_be(world, tmp_path):
    assert world.run("backup").code == 64
    itself = world.run("backup", str(world.outbox))
    assert itself.code == 64
    assert "the outbox itself" in itself.err
    assert world.run("backup", str(tmp_path)).code == 64
    nowhere = world.run("backup", str(tmp_path / "no" / "where.db"))
    assert nowhere.code == 64
    assert "No such file" in nowhere.err
    (tmp_path / "used.db-wal").touch()
    assert world.run("backup", str(tmp_path / "used.db")).code == 64
    assert [file.name for file in tmp_path.iterdir()] == ["used.db-wal"]


def test_dropped_is_gone_for_good(world):
    id = world.dead("to be dropped")
    assert world.run("dead-letters", "drop", id).code == 0
    assert world.run("events", "show", id).code == 65


@pytest.mark.parametrize("drop_first", [False, True])
def test_an_export_goes_back_through_the_batch_route(world, drop_first):
    details = b'{"n":1.50,"big":123456789012345678901234567890}'
    body = b'{"eventType":"x","summary":"there and back %d","severity":"error",' % drop_first
    body += b'"scope":{"clusters":["A"]},"dedupKey":"back-%d","details":%s}' % (drop_first, details)
    world.refused += 1
    world.faults(status=400)
    id = world.post(body)["id"]
    assert world.run("wait", id).code == 1
    world.faults(status=None)
    exported = world.run("dead-letters", "export", id)
    assert exported.code == 0
    assert exported.out.count("\n") == 1
    if drop_first:
        world.run("dead-letters", "drop", id)
    (result,) = world.post(exported.out.encode(), "/v1/events/batch")["results"]
    assert result["status"] == "accepted", result
    (again,) = world.post(exported.out.encode(), "/v1/events/batch")["results"]
    assert again["status"] == "duplicate", "a file handed in twice makes no second event"
    assert world.run("wait", result["id"]).code == 0
    back = world.run("events", "show", result["id"], "--json")
    assert details.decode() in back.out
    assert (back.json["severity"], back.json["scope"]) == ("error", {"clusters": ["A"]})


def test_check_finds_nothing_wrong(world):
    done = world.run("check")
    assert done.code == 0, done
    assert "fail" not in done.out
    for name in ("configuration", "outbox", "spool", "disk", "agent", "DNS", "clock", "API key"):
        assert re.search(rf"^ok +{name}", done.out, re.MULTILINE), name
    assert "any-key" not in done.out


def test_check_waits_for_the_agents_own_look_longer_than_for_an_answer(world, monkeypatch):
    """That asks over the network, where each wait has an end of its own."""
    monkeypatch.setattr(agent, "TIMEOUT_S", 0.05)
    queue = AgentQueue(str(world.socket))
    try:
        assert "API key" in {finding.name for finding in queue.check()}
    finally:
        queue.close()


def test_check_says_that_the_key_was_refused(world):
    world.faults(status=401)
    done = world.run("check")
    assert done.code == 77
    assert "refused" in done.out


def test_check_notes_a_clock_that_is_wrong(world):
    world.faults(dateSkewSeconds=-400)
    done = world.run("check")
    world.faults(dateSkewSeconds=None)
    assert done.code == 0
    # The header tells whole seconds, and some may pass on the way.
    assert re.search(r"(6m [45]\d|7m \d+)s ahead", done.out), done.out


@root_only
def test_another_user_may_look_and_not_touch(world):
    os.chmod(world.socket, 0o666)
    id = world.dead("not theirs")
    unseen = world.run("events", "show", id, nobody=True)
    assert unseen.code == 65
    assert "not theirs" not in world.run("events", nobody=True).out
    assert world.run("status", nobody=True).code == 0
    for words in (
        ("hold",),
        ("release",),
        ("dead-letters", "retry", id),
        ("dead-letters", "drop", "--all", "--yes"),
        ("dead-letters", "retry", "--all"),
    ):
        done = world.run(*words, nobody=True)
        assert done.code == 77, done
        assert "may not" in done.err
    with tempfile.TemporaryDirectory() as anywhere:
        os.chmod(anywhere, 0o777)
        done = world.run("backup", f"{anywhere}/theirs.db", nobody=True)
        assert (done.code, "may not" in done.err, os.listdir(anywhere)) == (77, True, [])
    assert world.run("events", "show", id, "--json").json["state"] == "dead"


@root_only
def test_whom_the_socket_keeps_out_is_told_so(world):
    os.chmod(world.socket, 0o600)
    for words in (("status",), ("events",), ("wait", UNKNOWN), ("hold",), ("check",)):
        done = world.run(*words, nobody=True)
        assert done.code == 77, done
    assert world.run("status", "--check", nobody=True).code == 2
    os.chmod(world.socket, 0o660)


def test_watch_shows_the_screen_in_a_terminal_until_interrupted(world):
    master, slave = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "outboxd", "status", "--watch", "-c", str(world.config)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**world.environment, "TERM": "xterm", "COLUMNS": "120"},
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    while b"Dead letters" not in seen:
        seen += os.read(master, 65536)
    # What it writes while it ends has to go somewhere.
    threading.Thread(target=_drain, args=(master,), daemon=True).start()
    watching.send_signal(2)
    assert watching.wait(PATIENCE_S) == 0


def test_a_reader_that_went_away_is_no_error(world):
    command = f"{sys.executable} -m outboxd events --limit 0 --json -c {world.config} | head -c 1"
    done = subprocess.run(command, shell=True, env=world.environment, capture_output=True)
    assert done.stderr == b""


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass


HOSTILE = "\x1b]0;owned\x07\x9b2J\u202egnp.exe"


def test_nothing_of_an_event_drives_the_terminal(world):
    scope = {key: [HOSTILE] for key in ("clusters", "namespaces", "servicesNames")}
    details = {HOSTILE: HOSTILE, "deep": [{HOSTILE: HOSTILE}]}
    id = world.dead(HOSTILE, scope=scope, details=details, dedupKey=HOSTILE)
    for words in (
        ("events",),
        ("events", "--json"),
        ("events", "show", id),
        ("events", "show", id, "--json"),
        ("events", "--cluster", HOSTILE),
        ("dead-letters", "list"),
        ("dead-letters", "show", id),
        ("dead-letters", "export", id),
        ("status",),
    ):
        done = world.run(*words)
        for text in (done.out, done.err):
            assert all(line.isprintable() for line in text.split("\n")), (words, text)
    assert world.run("events", "show", id, "--json").json["scope"] == scope


def on_a_terminal(world, *words, columns=80, **environment):
    """What a command writes to a terminal that is so wide, colours and all."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (40, columns))
    process = subprocess.Popen(
        [sys.executable, "-m", "outboxd", *words, "-c", str(world.config)],
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**world.environment, **environment},
    )
    os.close(follower)
    written = b""
    try:
        while part := os.read(leader, 65536):
            written += part
    except OSError:
        pass  # the other side has closed it
    os.close(leader)
    assert process.wait(PATIENCE_S) == 0, process.stderr.read()
    process.stderr.close()
    return written.decode().replace("\r\n", "\n").splitlines()


def test_an_event_has_one_line_of_80_columns_whose_id_can_be_shown(world):
    long = "a summary that is much longer than any terminal is wide, and goes on and on"
    id = world.add(long, eventType="A rather long event type", scope={"clusters": ["prod"]})
    world.run("wait", id)
    dead = world.dead(long, severity="error")
    lines = on_a_terminal(world, "events", "--limit", "2")
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines]
    assert len(plain) == 3
    assert max(map(len, plain)) == 80
    assert [world.run("events", "show", line.split()[0], "--json").json["id"]
            for line in plain[1:]] == [dead, id]  # fmt: skip
    assert "\x1b[31m" in lines[1], "an error and a dead letter are red"
    assert "a summary" in plain[2]
    assert lines != plain
    assert on_a_terminal(world, "events", "--limit", "2", NO_COLOR="1") == plain


def test_dead_letters_are_listed_with_status_and_error(world):
    world.dead("refused")
    for columns in (80, 200):
        lines = on_a_terminal(world, "dead-letters", "--limit", "1", columns=columns, NO_COLOR="1")
        heads = ["ID", "RECEIVED", "REASON", "STATUS", "TYPE", "ERROR", "SUMMARY"]
        assert lines[0].split() == heads
        assert lines[1].split()[2:4] == ["rejected", "400"]
        assert max(map(len, lines)) <= columns


def test_filters_name_reason_status_source_and_what_to_leave_out(world):
    id = world.dead("filtered", eventType="only here")
    user = pwd.getpwuid(os.getuid())
    for words, found in (
        (("--reason", "rejected", "--status", "400", "--type", "only here"), [id]),
        (("--type", "only here", "--not", "reason=rejected"), []),
        (("--type", "only here", "--source", "socket", "--severity", "INFO"), [id]),
        (("--type", "only here", "--not", "status=400"), []),
        (("--q", id[:18]), [id]),
        (("--type", "only here", "--producer", user.pw_name), [id]),
        (
            ("--type", "only here", "--producer", f"uid:{user.pw_uid}", "--not", "producer=web"),
            [id],
        ),
        (("--type", "only here", "--not", f"producer={user.pw_name}"), []),
        (("--type", "only here", "--producer", "web-hosts"), []),
    ):
        done = world.run("events", "--json", *words)
        assert [entry["id"] for entry in done.lines] == found, words
    assert f"{user.pw_name} (uid:{user.pw_uid})" in world.run("events", "show", id).out
    wrong = world.run("events", "--not", "colour=red")
    assert wrong.code == 64
    assert "NAME=VALUE" in wrong.err
