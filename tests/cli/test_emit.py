"""`outboxd emit` as a process: with an agent, without one, as another user."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys

import pytest
from support.waiting import PATIENCE_S

from outboxd.times import parse_rfc3339

ID = "0192f0c1-0000-7000-8000-000000000001"


def test_the_receipts_id_stands_alone_on_stdout(place, agent):
    done = place.run("emit", "deploy", "v2 is out", "--cluster", "prod")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ID}\n", "")
    assert agent.heads[0].startswith(b"POST /mgmt/v1/events HTTP/1.1\r\n")


def test_every_option_reaches_the_event(place, agent):
    done = place.run(
        *("emit", "--severity=Warning", "--cluster", "a", "--cluster=b", "--namespace", "n"),
        *("deploy", "--service", "s", "--detail", "k=v=w", "--detail", "empty="),
        *("--dedup-key", "key", "--occurred-at", "2026-11-22T00:31:36.5+01:00", "--ttl", "24h"),
        *("--", "-summary"),
    )
    assert done.returncode == 0, done.stderr
    assert agent.events == [
        {
            "eventType": "deploy",
            "summary": "-summary",
            "severity": "warning",
            "scope": {"clusters": ["a", "b"], "namespaces": ["n"], "servicesNames": ["s"]},
            "details": {"k": "v=w", "empty": ""},
            "dedupKey": "key",
            "occurredAt": "2026-11-21T23:31:36.500Z",
            "ttlSeconds": 86400.0,
        }
    ]


def test_a_whole_event_on_stdin_keeps_the_text_of_its_details(place, agent):
    event = (
        b'{"eventType":"t","summary":"s","details":{"n":12345678901234567890123.10,\n"m":1e400}}'
    )
    assert place.run("emit", "--json", "-", input=event).stdout == f"{ID}\n"
    assert b'{"n":12345678901234567890123.10, "m":1e400}' in agent.bodies[0]


def test_a_whole_event_may_come_from_a_file(place, agent):
    file = place.directory / "event.json"
    file.write_text('{"eventType":"t","summary":"s"}')
    assert place.run("emit", "--json", str(file)).returncode == 0
    assert agent.events[0]["eventType"] == "t"


def test_an_event_gets_a_dedup_key_of_its_own_where_it_has_none(place, agent):
    for _ in range(2):
        place.run("emit", "t", "s", "--cluster", "c")
    place.run("emit", "--json", "-", input=b'{"eventType":"t","summary":"s","dedupKey":null}')
    keys = [event["dedupKey"] for event in agent.events]
    assert len(set(keys)) == 3
    assert all(keys)


def test_warnings_and_duplicates_are_told_on_stderr(place, agent):
    agent.status = 200
    agent.answer = {"id": ID, "status": "duplicate", "warnings": ["no scope: it will reach all"]}
    done = place.run("emit", "t", "s", "--dedup-key", "k")
    assert done.stdout == f"{ID}\n"
    assert "warning: no scope" in done.stderr
    assert "duplicate" in done.stderr


def test_without_an_agent_it_goes_into_the_spool(place):
    done = place.run("emit", "t", "s", "--cluster", "c")
    assert (done.returncode, done.stdout) == (0, "")
    name = re.search(r"spooled as (\S+); goes out when the agent", done.stderr)
    assert name is not None
    assert (place.spool / "new" / name[1]).is_file()
    assert list((place.spool / "tmp").iterdir()) == []
    (event,) = place.spooled()
    assert event["scope"] == {"clusters": ["c"]}
    assert event["dedupKey"]


def test_a_spooled_event_knows_when_it_happened(place):
    place.run("emit", "t", "s")
    place.run("emit", "t", "s", "--occurred-at", "2020-01-01T00:00:00Z")
    now, then = place.spooled()
    assert parse_rfc3339(now["occurredAt"]) > 1_700_000_000_000
    assert then["occurredAt"] == "2020-01-01T00:00:00.000Z"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 507])
def test_an_agent_that_refuses_for_now_makes_it_spool_with_the_same_key(place, agent, status):
    agent.refuse(status, "the outbox is full")
    done = place.run("emit", "t", "s")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"answered {status} (the outbox is full); spooled as" in done.stderr
    assert place.spooled()[0]["dedupKey"] == agent.events[0]["dedupKey"]


@pytest.mark.parametrize("behaviour", ["close", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n\r\n"])
def test_a_lost_answer_makes_it_spool_with_the_same_key(place, agent, behaviour):
    agent.behaviour = behaviour
    done = place.run("emit", "t", "s")
    assert (done.returncode, done.stdout) == (0, "")
    assert place.spooled()[0]["dedupKey"] == agent.events[0]["dedupKey"]


def test_an_agent_that_hangs_is_not_waited_for_for_ever(place, agent, full):
    if not full:
        pytest.skip("waits its ten seconds out: --full")
    agent.behaviour = "hang"
    done = place.run("emit", "t", "s")
    assert done.returncode == 0
    assert "did not answer in 10 seconds; spooled as" in done.stderr


def test_a_refusal_for_good_is_65_and_nothing_is_kept(place, agent):
    agent.refuse(400, "details is too odd", "$.details")
    done = place.run("emit", "t", "s")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == "outboxd: $.details: details is too odd\n"
    assert place.spooled() == []


@pytest.mark.parametrize(
    ("words", "event", "told"),
    [
        (["t", "s", "--severity", "loud"], b"", "$.severity"),
        (["t" * 61, "s"], b"", "$.eventType"),
        (["t", ""], b"", "summary is empty"),
        (["t", "s", "--occurred-at", "yesterday"], b"", "$.occurredAt"),
        (["t", "s", "--ttl", "0s"], b"", "$.ttlSeconds"),
        (["t", "s", "--dedup-key", ""], b"", "$.dedupKey"),
        (["--json", "-"], b"", "no event"),
        (["--json", "-"], b"{", "not JSON"),
        (["--json", "-"], b'{"eventType":"t","summary":"s","sumary":1}', '"summary"'),
        (["--json", "-"], b'{"eventType":"t","summary":"s"}\n' * 2, "not JSON"),
        (["--json", "-"], b"[" * 100_000, "nested deeper"),
        (["--json", "-"], b'{"eventType":"t","summary":"' + b"s" * 300_000 + b'"}', "bytes"),
    ],
)
def test_what_is_no_event_is_65_with_one_line_and_not_kept(place, words, event, told):
    done = place.run("emit", *words, input=event)
    assert (done.returncode, done.stdout) == (65, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert place.spooled() == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["t"],
        ["t", "s", "more"],
        ["--json", "-", "t", "s"],
        ["--json", "-", "--cluster", "c"],
        ["t", "s", "--detail", "no-equals"],
        ["t", "s", "--detail", "=v"],
        ["t", "s", "--detail", "k=1", "--detail", "k=2"],
        ["t", "s", "--ttl", "soon"],
        ["t", "s", "--clutser", "c"],
        ["t", "s", "--cluster"],
    ],
)
def test_a_wrong_command_line_is_64(place, words):
    done = place.run("emit", *words)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("outboxd: ")
    assert place.spooled() == []


@pytest.mark.parametrize("slip", ["[delivry]\n", "nonsense", "[http]\nlisten = '\n"])
def test_a_wrong_configuration_is_one_warning_and_the_event_is_stored(place, slip):
    with place.config.open("a") as file:
        file.write(slip)
    done = place.run("emit", "t", "s", "--cluster", "c")
    assert (done.returncode, len(place.spooled())) == (0, 1)
    assert done.stderr.startswith(f"outboxd: warning: {place.config}: ")
    assert done.stderr.count("warning") == 1


@pytest.mark.usefixtures("root")
def test_a_configuration_that_this_user_cannot_read_is_one_warning(place, open_to_all):
    open_to_all()
    place.config.chmod(0o600)
    state = place.directory / "state"
    state.mkdir()
    state.chmod(0o777)
    done = place.run("emit", "t", "s", "--cluster", "c", as_nobody=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "it cannot be read: Permission denied" in done.stderr


def test_c_and_socket_name_the_agent(place, agent):
    environment = {**place.environment, "OUTBOXD_CONFIG": "/nowhere"}
    config = str(place.config)
    assert place.run("emit", "t", "s", "-c", config, env=environment).stdout == f"{ID}\n"
    assert place.run("-c", config, "emit", "t", "s", env=environment).stdout == f"{ID}\n"
    place.config.write_text(f'[intake]\nsocket = "/nowhere"\nspool = "{place.spool}"\n')
    socket = str(place.socket)
    assert place.run("emit", "t", "s", "--socket", socket).stdout == f"{ID}\n"


def test_where_neither_agent_nor_spool_takes_it_it_is_75_with_what_to_do(place):
    place.spool.write_text("a file in its place")
    done = place.run("emit", "t", "s")
    assert (done.returncode, done.stdout) == (75, "")
    assert "no agent answers" in done.stderr
    assert "hint:" in done.stderr


def test_a_socket_path_longer_than_an_address_works_too(place, agent):
    long = place.directory / ("d" * 100) / "and more"
    long.mkdir(parents=True)
    (long / "agent.sock").symlink_to(place.socket)
    done = place.run("emit", "t", "s", "--socket", str(long / "agent.sock"))
    assert done.stdout == f"{ID}\n", done.stderr


@pytest.mark.usefixtures("root")
def test_another_user_hands_in_at_the_socket(place, agent, open_to_all):
    open_to_all()
    assert place.run("emit", "t", "s", as_nobody=True).stdout == f"{ID}\n"


@pytest.mark.usefixtures("root")
def test_another_user_hands_in_at_a_spool_that_it_may_not_list(place, open_to_all):
    open_to_all()
    for part in ("tmp", "new"):
        (place.spool / part).mkdir(parents=True)
        (place.spool / part).chmod(0o733)
    done = place.run("emit", "t", "s", as_nobody=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (file,) = (place.spool / "new").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.usefixtures("root")
def test_another_user_without_any_right_is_told_what_to_do(place, open_to_all):
    open_to_all()
    for part in ("tmp", "new"):
        (place.spool / part).mkdir(parents=True)
    place.spool.chmod(0o755)
    done = place.run("emit", "t", "s", as_nobody=True)
    assert done.returncode == 75
    assert "usermod -aG" in done.stderr or "let this user write in" in done.stderr


def test_the_umask_does_not_hide_a_spooled_event_from_the_agent(place):
    for part in ("tmp", "new"):
        (place.spool / part).mkdir(parents=True)
        (place.spool / part).chmod(0o2770)
    place.run("emit", "t", "s", umask=0o777)
    (file,) = (place.spool / "new").iterdir()
    assert file.stat().st_mode & 0o600 == 0o600


def test_a_reader_that_has_gone_is_no_traceback(place, agent):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m outboxd emit t s | true; echo ${{PIPESTATUS[0]}}"],
        env=place.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "0"


def test_an_event_whose_id_could_not_be_written_is_stored_all_the_same(place, agent):
    with open("/dev/full", "wb") as full_disk:
        process = place.start("emit", "t", "s", stdout=full_disk)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, "who tries again would make a second event"
    assert ID.encode() in told
    assert b"No space left" in told


def test_closed_standard_streams_do_not_matter(place, agent):
    script = f"exec {sys.executable} -m outboxd emit t s >&- 2>&- <&-"
    done = subprocess.run(
        ["bash", "-c", script], env=place.environment, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0
    assert json.loads(agent.bodies[0])["summary"] == "s"


def test_text_that_is_not_utf_8_is_stored_with_a_gap_and_a_warning(place, agent):
    done = place.run("emit", b"t\xc3", b"St\xf6rung", "--detail", b"\xff=\xfe", "--cluster", "c")
    assert (done.returncode, done.stdout) == (0, f"{ID}\n")
    assert agent.events[0]["summary"] == "St\ufffdrung"
    assert agent.events[0]["details"] == {"\ufffd": "\ufffd"}
    assert done.stderr == (
        "outboxd: warning: type, summary, detail: what is not UTF-8 was replaced by \ufffd\n"
    )


@pytest.mark.parametrize(
    "format",
    [
        "--rfc-3339=seconds",
        "--rfc-3339=ns",
        "-Iseconds",
        "-Ins",
        "-Iminutes",
        "+%FT%T%z",
        "+%F %T%:z",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_a_time_is_taken_as_date_prints_it(place, agent, format, zone):
    moment = "2026-11-22 00:31:36.5 UTC"
    printed = subprocess.run(
        ["date", "-d", moment, format],
        env={**place.environment, "TZ": zone, "LC_ALL": "C"},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    done = place.run("emit", "t", "s", "--cluster", "c", "--occurred-at", printed)
    assert done.returncode == 0, done.stderr
    assert agent.events[0]["occurredAt"][:16] == "2026-11-22T00:31"
