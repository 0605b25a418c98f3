"""Log lines as they come out of a real process or a real descriptor."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys

import pytest
from support.waiting import PATIENCE_S

from outboxd.observe import logs
from outboxd.observe.logs import captured, get_logger

KEY = 'k3y"with\\odd-chars'


@pytest.fixture(autouse=True)
def quiet_afterwards():
    """Logging is one for the process: put it back."""
    yield
    logs.flush()
    logs.configure("info", "json")
    for handler in list(logging.getLogger().handlers):
        if type(handler).__name__ == "_FromLibraries":
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def written(tmp_path):
    """Configure logging into a file; call for the lines so far."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def configure(level="info", format="json"):
        logs.configure(level, format, descriptor)
        return lambda: path.read_text().splitlines()

    yield configure
    os.close(descriptor)


def run(code: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )


SAY = """
from outboxd.observe import logs
logs.configure("info", "auto")
logs.get_logger("sender").info("destination.held", status=401, reason="wrong key")
"""


def test_a_line_is_json_where_nobody_watches():
    line = json.loads(run(SAY).stderr)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["event"] == "destination.held"
    assert line["level"] == "info"
    assert line["part"] == "sender"
    assert line["status"] == 401
    assert line["timestamp"].endswith("Z")


def test_a_line_is_readable_on_a_terminal():
    primary, secondary = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SAY], stderr=secondary)
    os.close(secondary)
    text = os.read(primary, 65536).decode()
    assert process.wait(PATIENCE_S) == 0
    os.close(primary)
    assert "destination.held" in text
    assert not text.startswith("{")


def test_the_format_can_be_chosen_whatever_the_other_end(written):
    lines = written(format="console")
    get_logger().info("agent.started", version="1")
    assert "agent.started" in lines()[0]
    assert not lines()[0].startswith("{")


def test_nothing_below_the_level_is_written_and_a_reload_changes_it(written):
    lines = written("warning")
    log = get_logger()
    log.info("a.left_out")
    assert lines() == []
    written("debug")
    log.debug("a.said")
    assert [json.loads(line)["event"] for line in lines()] == ["a.said"]


@pytest.mark.parametrize("level", logs.LEVELS)
def test_each_level_is_known(written, level):
    lines = written(level)
    log = get_logger()
    for method in logs.LEVELS:
        getattr(log, method)("level.tried")
    said = [json.loads(line)["level"] for line in lines()]
    assert said == list(logs.LEVELS[logs.LEVELS.index(level) :])


def test_the_key_stands_in_no_line_however_it_got_there(written):
    logs.keep_secret([KEY, None])
    lines = written("debug")
    log = get_logger(bound=f"x{KEY}x")
    log.info("key.text", text=f"before {KEY} after", nested={"a": [KEY, {"b": (KEY,)}], KEY: 1})
    log.info("key.object", error=ValueError(KEY), raw=KEY.encode(), many={KEY})
    try:
        raise RuntimeError(f"headers: x-api-key={KEY} {KEY!r}")
    except RuntimeError:
        log.exception("key.raised")
    logging.getLogger("httpx").error("sent %s", KEY)
    text = "\n".join(lines())
    for spelt in (KEY, repr(KEY)[1:-1], json.dumps(KEY)[1:-1], "k3y"):
        assert spelt not in text
    assert len(lines()) == 4


@pytest.mark.parametrize(
    "name", ["api_key", "x-api-key", "X-API-Key", "apiKey", "authorization", "password", "token"]
)
def test_what_is_named_like_a_key_is_redacted_though_its_text_is_not_known(written, name):
    lines = written()
    get_logger().info("key.named", **{name: "unknown"}, headers={name: "unknown"})
    line = json.loads(lines()[0])
    assert line[name] == "[redacted]"
    assert line["headers"][name] == "[redacted]"


@pytest.mark.parametrize("name", ["body", "details", "summary", "sent_body", "sentBody"])
def test_an_events_body_is_seen_at_debug_level_alone(written, name):
    lines = written("debug")
    get_logger().error("event.refused", **{name: "private"})
    get_logger().debug("event.refused", **{name: "private"})
    above, below = (json.loads(line) for line in lines())
    assert above[name] == "[left out]"
    assert below[name] == "private"


def test_what_repeats_is_left_out_and_counted(written):
    lines = written()
    for number in range(100):
        get_logger().warning("intake.refused", number=number)
    logs.flush()
    said = [json.loads(line) for line in lines()]
    assert [line["event"] for line in said] == ["intake.refused"] * 10 + ["lines.omitted"]
    assert said[-1]["of"] == "intake.refused"
    assert said[-1]["count"] == 90
    assert said[-1]["level"] == "warning"


def test_at_debug_level_everything_is_said(written):
    lines = written("debug")
    for _ in range(50):
        get_logger().debug("attempt.made")
    assert len(lines()) == 50


def test_odd_values_are_put_into_words(written):
    lines = written()
    loop: list = []
    loop.append(loop)

    class Broken:
        def __str__(self) -> str:
            raise ValueError("broken")

    get_logger().info(
        "value.odd", surrogate="\ud800", nan=float("nan"), huge=10**5000, loop=loop, broken=Broken()
    )
    line = json.loads(lines()[0])
    assert line["nan"] == "nan"
    assert line["broken"] == "<Broken>"
    assert "bits" in line["huge"]


def test_no_text_from_outside_drives_the_readers_terminal(written):
    lines = written(format="console")
    get_logger().info("event.refused", reason="\x1b[2J\x07", other="a\nb")
    assert "\x1b" not in lines()[0]
    assert "\x07" not in lines()[0]
    assert len(lines()) == 1


def test_a_very_long_text_is_cut(written):
    lines = written()
    get_logger().info("event.refused", reason="x" * 1_000_000)
    assert len(lines()[0]) < 20_000
    assert "more characters" in lines()[0]


def test_a_pipe_without_a_reader_costs_the_line_alone():
    reader, writer = os.pipe()
    os.close(reader)
    logs.configure("info", "json", writer)
    get_logger().info("agent.started")
    os.close(writer)


def test_a_closed_descriptor_costs_the_line_alone():
    reader, writer = os.pipe()
    logs.configure("info", "json", writer)
    os.close(writer)
    os.close(reader)
    get_logger().info("agent.started")


def test_a_full_disk_costs_the_line_alone():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    logs.configure("info", "json", descriptor)
    get_logger().info("agent.started")
    os.close(descriptor)


def test_a_reader_that_stopped_does_not_stop_the_agent_and_is_told_what_it_missed():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    logs.configure("debug", "json", writer)
    log = get_logger()
    for _ in range(1000):
        log.debug("attempt.made", text="x" * 500)
    while True:
        try:
            os.read(reader, 1 << 20)
        except BlockingIOError:
            break
    log.debug("attempt.made", number=1)
    told = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines() if line]
    assert [line["event"] for line in told] == ["lines.lost", "attempt.made"]
    assert told[0]["count"] > 500
    os.close(reader)
    os.close(writer)


def test_a_program_without_stderr_runs():
    result = run(
        "import os; os.close(2)\n" + SAY + "print('done')",
    )
    assert result.stdout == b"done\n"


def test_the_journal_is_told_the_priority(written, monkeypatch, tmp_path):
    lines = written()
    status = (tmp_path / "log").stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    written()
    get_logger().error("outbox.damaged")
    get_logger().info("agent.started")
    assert [line[:4] for line in lines()] == ["<3>{", "<6>{"]


def test_what_libraries_say_goes_the_same_way(written):
    lines = written()
    logging.getLogger("asyncio").warning("slow callback")
    logging.getLogger("httpx").info("not worth a line")
    assert [json.loads(line)["library"] for line in lines()] == ["asyncio"]


def test_tests_can_capture_lines():
    log = get_logger("sender")
    with captured() as lines:
        log.info("delivery.settled", count=3)
    assert lines == [{"level": "info", "event": "delivery.settled", "part": "sender", "count": 3}]
