"""`outboxd status`: how agent, outbox and destination stand, on one screen."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from outboxd.api.status import CRITICAL, LEVELS, OK, judge
from outboxd.cli import callers, figures, render
from outboxd.cli.agent import AgentQueue
from outboxd.cli.queue import Queue, client_config, open_queue, socket_path
from outboxd.cli.rows import one_line, read_entry
from outboxd.cli.watch import bars, watch
from outboxd.config.sections import Config
from outboxd.errors import EX_OK, ConfigError, OutboxdError, UsageError
from outboxd.producer.command_line import Arguments
from outboxd.text import harmless
from outboxd.times import parse_rfc3339, rfc3339
from outboxd.units import format_duration, format_size

SAMPLE_ENTRIES = 100
# An agent that hangs is told within the ten seconds that NRPE and Nagios give a check.
CHECK_ANSWER_S = 5.0
YEAR_S = 366 * 86400
WORDS = {
    "ok": "ok",
    "backingOff": "unavailable, backing off",
    "throttled": "throttled",
    "held": "held",
    "untried": "not tried yet",
}
COLOURS = {"ok": "green", "backingOff": "yellow", "throttled": "yellow", "held": "red"}


class Picture(NamedTuple):
    """All that one screen shows."""

    status: dict[str, Any]
    running: bool
    socket_path: str
    activity: dict[str, Any] | None
    rates: figures.Rates | None
    arriving: float | None  # events a second, also where no rates are known
    now_ms: int


def run(arguments: Arguments) -> int:
    """The screen, JSON, a monitoring line, or the screen again and again."""
    if arguments.check:
        return check(arguments)
    config = client_config(arguments)
    if arguments.watch:
        return watch(lambda coloured: watched(arguments, config, coloured))
    with open_queue(arguments) as queue:
        if arguments.json:
            print(one_line(msgspec.json.encode(queue.status())))
            return EX_OK
        picture = take(queue, arguments, config)
    for line in screen(picture, config, render.colours()):
        print(line)
    return EX_OK


def check(arguments: Arguments) -> int:
    """One line and 0, 1 or 2, as monitoring systems want it."""
    try:
        config = client_config(arguments)
        queue = AgentQueue(socket_path(arguments, config), CHECK_ANSWER_S)
        try:
            status = queue.status()
        finally:
            queue.close()
    except (ConfigError, UsageError):
        raise
    except OutboxdError as error:
        print(f"OUTBOXD CRITICAL - {harmless(error.message)}")
        return CRITICAL
    now_ms = time.time_ns() // 1_000_000
    findings = judge(status, now_ms)
    level = findings[0].level if findings else OK
    outbox = status["outbox"]
    oldest_at = outbox["oldestPendingAt"]
    oldest_s = 0 if oldest_at is None else max(0, (now_ms - parse_rfc3339(oldest_at)) // 1000)
    worst = [found.message for found in findings if found.level == level]
    told = "; ".join(worst) or f"destination {status['destination']['state']}"
    print(
        f"OUTBOXD {LEVELS[level].upper()} - {harmless(told)};"
        f" {outbox['pending']} pending, {outbox['dead']} dead"
        f" | pending={outbox['pending']} dead={outbox['dead']} held={outbox['held']}"
        f" oldest={oldest_s}s"
    )
    return level


def take(queue: Queue, arguments: Arguments, config: Config) -> Picture:
    """Ask for all that the screen shows."""
    now_ms = time.time_ns() // 1_000_000
    activity = queue.activity()
    speed = figures.rates(activity) if activity else None
    arriving = speed.arriving if speed else _arriving(queue, now_ms)
    path = socket_path(arguments, config)
    return Picture(queue.status(), queue.running, path, activity, speed, arriving, now_ms)


def watched(arguments: Arguments, config: Config, coloured: bool) -> list[str]:
    """The screen now; an agent that goes away and comes back is no end of it."""
    try:
        with open_queue(arguments) as queue:
            picture = take(queue, arguments, config)
    except OutboxdError as error:
        return [harmless(error.message), *([error.hint] if error.hint else [])]
    lines = screen(picture, config, coloured)
    if picture.activity and len(picture.activity["at"]) > 1:
        lines += ["", "Backlog of the last hour:", bars(picture.activity["pending"])]
    return lines


def screen(picture: Picture, config: Config, coloured: bool) -> list[str]:
    """The screen, line by line."""
    status = picture.status
    if picture.running:
        head = f"outboxd {status['version']}, the agent at {picture.socket_path}"
    else:
        kept = "database" if config.outbox.url else "file"
        head = f"no agent is running; this is what the outbox's {kept} says"
        head = render.colour(head, "red", coloured)
    lines = [harmless(head) if not coloured else head, ""]
    return lines + render.fields(
        [
            *_destination_fields(picture, coloured),
            *_deliverer_fields(picture, coloured),
            *_outbox_fields(picture),
            *_room_fields(picture, config, coloured),
            *callers.fields(status.get("gateway"), picture.now_ms),
            *callers.refused_users(status, picture.now_ms),
        ]
    )


def _destination_fields(picture: Picture, coloured: bool) -> list[tuple[str, str]]:
    destination = picture.status["destination"]
    state = destination["state"]
    told = render.colour(WORDS.get(state, state), COLOURS.get(state, ""), coloured)
    if destination.get("since"):
        told += f" since {render.time_and_distance(destination['since'], picture.now_ms)}"
    if destination.get("reason"):
        told += f"\n{harmless(destination['reason'])}"
    if destination.get("nextProbeAt"):
        told += f"\nnext try {render.distance(destination['nextProbeAt'], picture.now_ms)}"
    endpoint = harmless(destination["endpoint"])
    if destination.get("gateway"):
        endpoint += "\na gateway, which sends on; what is delivered here, it has"
    found = [("Destination", told), ("Endpoint", endpoint)]
    if picture.running:
        found.append(
            ("Sending", f"{destination['inFlight']} in flight, {destination['permits']} permitted")
        )
    return found


def _deliverer_fields(picture: Picture, coloured: bool) -> list[tuple[str, str]]:
    """Who delivers, where several gateways share the outbox, and how its database is."""
    deliverer = picture.status.get("deliverer")
    if deliverer is None:
        return []
    left_s = deliverer["leaseLeftSeconds"]
    lease = "" if left_s is None else f", its lease runs for {max(0.0, left_s):.0f} s"
    told = render.colour("no gateway", "red", coloured)
    if deliverer["here"]:
        told = f"this gateway{lease}"
    elif deliverer["gateway"] is not None:
        told = f"the gateway on {harmless(deliverer['gateway'])}{lease}"
    told += f"\nfor the account {harmless(deliverer['account'])}"
    answer_s, lag_s = deliverer["databaseAnswerSeconds"], deliverer["standbyLagSeconds"]
    database = "not asked yet" if answer_s is None else f"answers in {answer_s * 1000:.0f} ms"
    if lag_s is not None:
        database += f", its standby is {lag_s:.1f} s behind"
    if deliverer["trouble"]:
        database = render.colour(harmless(deliverer["trouble"]), "red", coloured)
    fields = [("Delivered by", told), ("Database", database)]
    others = [
        f"{harmless(other['name'])}: {other['pending']:,} pending, delivered by"
        f" {harmless(other['gateway'] or 'no gateway')}"
        for other in deliverer["otherAccounts"]
    ]
    return [*fields, ("Other accounts", "\n".join(others))] if others else fields


def _outbox_fields(picture: Picture) -> list[tuple[str, str]]:
    outbox = picture.status["outbox"]
    backlog = f"{outbox['pending']:,} pending"
    if outbox["held"]:
        backlog += f", {outbox['held']:,} of them held"
    if outbox["oldestPendingAt"]:
        oldest = render.time_and_distance(outbox["oldestPendingAt"], picture.now_ms)
        backlog += f"\nthe oldest from {oldest}"
    found = [("Backlog", backlog)]
    if picture.rates is not None:
        found.append(
            (
                "Rate",
                f"{picture.rates.arriving:.1f} in and {picture.rates.delivered:.1f} out a second",
            )
        )
    if outbox["pending"] and picture.running:
        left_s = figures.drain_s(outbox["pending"], picture.rates)
        known = "unknown: it does not shrink at present"
        found.append(
            ("Drained in", known if left_s is None else f"about {format_duration(left_s)}")
        )
    dead = f"{outbox['dead']:,}" + ("; see `outboxd dead-letters`" if outbox["dead"] else "")
    return [*found, ("Delivered", f"{outbox['delivered']:,} kept"), ("Dead letters", dead)]


def _room_fields(picture: Picture, config: Config, coloured: bool) -> list[tuple[str, str]]:
    status = picture.status
    intake, outbox = status["intake"], status["outbox"]
    accepting = render.colour("accepting", "green", coloured)
    refusing = render.colour("not accepting", "red", coloured)
    why = f": {harmless(intake['reason'])}" if intake.get("reason") else ""
    found = [("Intake", accepting if intake["accepting"] else refusing + why)]
    free_bytes = status["disk"]["freeBytes"]
    disk = "unknown" if free_bytes is None else f"{format_size(free_bytes)} free"
    if "deliverer" in status or config.outbox.url:
        disk = "the database's"
    found.append(("Disk", f"{disk}, the outbox has {format_size(outbox['bytes'])}"))
    if picture.arriving is not None:
        left_s = figures.outage_s(
            status, picture.arriving, config.outbox.events_max, config.outbox.disk_free_min
        )
        if left_s is not None:
            found.append(("Can hold", f"an outage of {_long(left_s)} at the present rate"))
    if outbox.get("salvaged") or outbox.get("lostToDamage"):
        damage = f"{outbox['salvaged']:,} entries salvaged, {outbox['lostToDamage']:,} lost"
        found.append(("Damage", render.colour(damage, "red", coloured)))
    return found


def _long(seconds: float) -> str:
    """A time that may be so long that its length means nothing."""
    return "more than a year" if seconds > YEAR_S else format_duration(seconds)


def _arriving(queue: Queue, now_ms: int) -> float | None:
    """The rate of arrival, from the newest entries themselves."""
    since = rfc3339(now_ms - figures.RATE_WINDOW_MS)
    page = queue.page([("since", since)], None, SAMPLE_ENTRIES)
    times = [parse_rfc3339(read_entry(entry).received_at) for entry in page.entries]
    return figures.arriving_rate(times, page.next is None, now_ms, figures.RATE_WINDOW_MS)
