"""What `outboxd status` says of those who hand in: who is refused and why, and of a
gateway whether it is open and who comes.

Reads the members `gateway` and `refusedUsers` of the status. The whole of it has `--json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outboxd.cli import render
from outboxd.producer_names import name_of
from outboxd.text import harmless
from outboxd.units import format_duration

SHOWN_MAX = 10  # of producers, of clocks and of strangers, each
TOLD_MAX = 120  # characters


def fields(gateway: Mapping[str, Any] | None, now_ms: int) -> list[tuple[str, str]]:
    """The lines of the screen; none where the agent is no gateway."""
    if gateway is None:
        return []
    address = gateway["address"]
    told = "not open" if address is None else harmless(address)
    told += (
        f"\n{gateway['connections']:,} of {gateway['connectionsMax']:,} connections,"
        f" {gateway['tokens']:,} names with a token"
    )
    if gateway["certificateEndsAt"]:
        told += f"\nits certificate ends {render.distance(gateway['certificateEndsAt'], now_ms)}"
    for one in gateway["troubles"]:
        told += f"\n{harmless(one['message'])}: {harmless(one['hint'])}"
    found = [("Gateway", told)]
    producers = gateway["producers"]
    lines = [_producer(one, now_ms) for one in producers]
    lines += [f"and {gateway['producersLeftOut']:,} more"] * bool(gateway["producersLeftOut"])
    found += _field("Producers", lines)
    clocks = [_clock(p["name"], one, now_ms) for p in producers for one in p["wrongClocks"]]
    found += _field("Wrong clocks", clocks)
    found += _field("Unknown", [_stranger(one, now_ms) for one in gateway["strangers"]])
    return found


def refused_users(status: Mapping[str, Any], now_ms: int) -> list[tuple[str, str]]:
    """The lines of users of this host who were refused; may ask who they are."""
    lines = []
    for user in status.get("refusedUsers", ()):
        refused = "; ".join(_refused(one, now_ms) for one in user["refused"])
        lines.append(f"{harmless(name_of(user['producer']))} ({user['producer']}): {refused}")
    lines += [f"and {status['refusedUsersLeftOut']:,} more"] * bool(
        status.get("refusedUsersLeftOut")
    )
    return _field("Refused users", lines)


def _field(name: str, lines: list[str]) -> list[tuple[str, str]]:
    more = len(lines) - SHOWN_MAX
    shown = lines[:SHOWN_MAX] + ([f"and {more:,} more, see --json"] if more > 0 else [])
    return [(name, "\n".join(shown))] if shown else []


def _producer(producer: Mapping[str, Any], now_ms: int) -> str:
    told = f"{harmless(producer['name'])}: {producer['accepted']:,} taken"
    if producer["acceptedAt"]:
        told += f", the last {render.distance(producer['acceptedAt'], now_ms)}"
    return "; ".join([told, *(_refused(one, now_ms) for one in producer["refused"])])


def _refused(one: Mapping[str, Any], now_ms: int) -> str:
    word = "throttled" if one["reason"] == "rate" else f"refused ({one['reason']})"
    told = f"{one['count']:,} {word}, {render.distance(one['at'], now_ms)}"
    return f"{told}: {harmless(one['told'][:TOLD_MAX])}" if one["told"] else told


def _clock(name: str, clock: Mapping[str, Any], now_ms: int) -> str:
    off = format_duration(abs(clock["aheadMs"]) / 1000)
    direction = "ahead" if clock["aheadMs"] > 0 else "behind"
    host = harmless(clock["host"] or "a host")
    seen = render.distance(clock["at"], now_ms)
    return f"{host} of {harmless(name)} is {off} {direction}, seen {seen}"


def _stranger(stranger: Mapping[str, Any], now_ms: int) -> str:
    count = stranger["count"]
    last = render.distance(stranger["at"], now_ms)
    requests = f"{count:,} request{'' if count == 1 else 's'}"
    return f"{harmless(stranger['peer'])}: {requests}, {harmless(stranger['reason'])}, {last}"
