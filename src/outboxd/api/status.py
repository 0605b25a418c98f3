"""How everything stands: the one shape of `GET /v1/status`, and what is wrong in words.

The agent's routes, its page and the commands (also while no agent runs) show
this and nothing else, so that all of them say the same. Pure: the time is an
argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from outboxd.outbox.model import Counts, Damage
from outboxd.status import (
    Deliverer,
    DestinationState,
    DestinationStatus,
    Gateway,
    GatewayStatus,
    ProducerSeen,
    RefusedEvents,
    RefusedUsers,
)
from outboxd.times import parse_rfc3339, rfc3339
from outboxd.units import format_duration

BACKLOG_OLD_MS = 15 * 60_000
UNTRIED_FINE_MS = 60_000
UNLED_S = 5.0  # a lease may have ended for so long before nobody seems to take it
DEAD_FRESH_MS = 24 * 3_600_000
CERTIFICATE_SOON_MS = 14 * 24 * 3_600_000

OK, WARNING, CRITICAL = 0, 1, 2
LEVELS = ("ok", "warning", "critical")


class StatusProblem(NamedTuple):
    """Something that is wrong."""

    level: int  # WARNING or CRITICAL
    message: str
    hint: str  # what to do


class OutboxStatus(NamedTuple):
    """How the outbox stands."""

    counts: Counts
    oldest_pending_at: int | None
    last_dead_at: int | None
    bytes: int
    damage: Damage


def status_json(
    *,
    version: str,
    host: str,
    socket_path: str,
    now: int,
    destination: DestinationStatus,
    outbox: OutboxStatus,
    accepting: bool,
    refusal: str | None,
    free_bytes: int | None,
    drain_rate: float | None = None,
    unhealthy: str | None = None,
    gateway: GatewayStatus | None = None,
    deliverer: Deliverer | None = None,
    refused: RefusedUsers | None = None,
) -> dict[str, Any]:
    """The shape of `GET /v1/status`; `drain_rate` is in entries a second, times in ms.
    `deliverer`: where several gateways share the outbox."""
    counts = outbox.counts
    refused = refused or RefusedUsers()
    status: dict[str, Any] = {
        "version": version,
        "host": host,
        "socket": socket_path,
        "destination": {
            "endpoint": destination.endpoint,
            "state": str(destination.state),
            "reason": destination.reason,
            "since": _time(destination.since_at or None),
            "nextProbeAt": _time(destination.next_probe_at),
            "permits": destination.permits,
            "inFlight": destination.in_flight,
            "gateway": destination.is_gateway,
            "gatewayTold": _told(destination.gateway),
        },
        "outbox": {
            "pending": counts.pending,
            "delivered": counts.delivered,
            "dead": counts.dead,
            "held": counts.held,
            "oldestPendingAt": _time(outbox.oldest_pending_at if counts.pending else None),
            "lastDeadAt": _time(outbox.last_dead_at if counts.dead else None),
            "bytes": outbox.bytes,
            "salvaged": outbox.damage.salvaged,
            "lostToDamage": outbox.damage.lost,
        },
        "intake": {"accepting": accepting, "reason": refusal},
        "gateway": None if gateway is None else _gateway(gateway),
        "refusedUsers": [
            {"producer": user.producer, "refused": [_refused(one) for one in user.refused]}
            for user in refused.users
        ],
        "refusedUsersLeftOut": refused.left_out,
        "disk": {"freeBytes": free_bytes},
        "rate": {
            "drainPerSecond": None if drain_rate is None else round(drain_rate, 3),
            "drainSeconds": round(counts.pending / drain_rate) if drain_rate else None,
        },
        "now": rfc3339(now),
    }
    if unhealthy is not None:
        status["unhealthy"] = unhealthy
    if deliverer is not None:
        status["deliverer"] = {
            "account": deliverer.account,
            "gateway": deliverer.gateway,
            "here": deliverer.is_here,
            "leaseLeftSeconds": _rounded(deliverer.lease_left_s),
            "databaseAnswerSeconds": _rounded(deliverer.answer_s),
            "standbyLagSeconds": _rounded(deliverer.standby_lag_s),
            "trouble": deliverer.trouble,
            "otherAccounts": [each._asdict() for each in deliverer.others],
        }
    status["findings"] = [
        {"level": LEVELS[found.level], "message": found.message, "hint": found.hint}
        for found in judge(status, now)
    ]
    return status


def without_words(status: dict[str, Any]) -> None:
    """Take out what quotes others' events: for whoever may read only its own."""
    callers = (status["gateway"] or {}).get("producers", ())
    for producer in (*callers, *status["refusedUsers"]):
        for refused in producer["refused"]:
            refused["told"] = None


def judge(status: Mapping[str, Any], now: int) -> list[StatusProblem]:
    """What is wrong, the worst first; nothing where all is well."""
    found = [
        *_health(status),
        *_damage(status),
        *_intake(status),
        *_deliverer(status),
        *_destination(status, now),
        *_listener(status, now),
        *_dead_letters(status, now),
    ]
    return sorted(found, key=lambda each: -each.level)


def _health(status: Mapping[str, Any]) -> list[StatusProblem]:
    reason = status.get("unhealthy")
    if reason is None:
        return []
    hint = "the log says why (journalctl -u outboxd); systemd starts it afresh"
    return [StatusProblem(CRITICAL, f"the agent does not get on: {reason}", hint)]


def _destination(status: Mapping[str, Any], now: int) -> list[StatusProblem]:
    destination = status["destination"]
    state, reason = destination["state"], destination.get("reason")
    why = f": {reason}" if reason else ""
    found = []
    if state == DestinationState.HELD:
        hint = "mend what it says and run `outboxd check`; `outboxd release` tries at once"
        found.append(StatusProblem(CRITICAL, f"the destination is held{why}", hint))
    elif state == DestinationState.BACKING_OFF:
        hint = "nothing is lost, it goes on by itself; `outboxd check` says how far requests come"
        found.append(StatusProblem(WARNING, f"the destination is unavailable{why}", hint))
    elif state == DestinationState.THROTTLED:
        hint = "nothing is lost, it goes on by itself; [delivery] rate_max sends more slowly"
        found.append(StatusProblem(WARNING, f"the destination throttles{why}", hint))
    oldest_at = status["outbox"]["oldestPendingAt"]
    waited_ms = 0 if oldest_at is None else now - parse_rfc3339(oldest_at)
    if waited_ms >= BACKLOG_OLD_MS:
        waited = format_duration(waited_ms / 1000)
        hint = "`outboxd events --state pending` has them, `events show ID` says why one waits"
        found.append(StatusProblem(WARNING, f"the oldest entry has waited {waited}", hint))
    elif state == DestinationState.UNTRIED and waited_ms > UNTRIED_FINE_MS and _delivers(status):
        hint = "`outboxd check` says how far requests come"
        found.append(StatusProblem(WARNING, "nothing has been delivered since the start", hint))
    return found


def _intake(status: Mapping[str, Any]) -> list[StatusProblem]:
    intake = status["intake"]
    if intake["accepting"]:
        return []
    why = f": {intake['reason']}" if intake.get("reason") else ""
    hint = "producers spool meanwhile; make room on the disk, or let the backlog drain"
    return [StatusProblem(CRITICAL, f"no events are taken{why}", hint)]


def _deliverer(status: Mapping[str, Any]) -> list[StatusProblem]:
    deliverer = status.get("deliverer")
    if deliverer is None:
        return []
    left_s = deliverer["leaseLeftSeconds"]
    if deliverer["trouble"] is not None or (left_s is not None and left_s > -UNLED_S):
        return []  # told by the intake, or fine
    hint = "is a gateway running that reaches both the database and Komodor? see their logs"
    return [StatusProblem(WARNING, "no gateway delivers", hint)]


def _damage(status: Mapping[str, Any]) -> list[StatusProblem]:
    outbox = status["outbox"]
    lost, salvaged = outbox.get("lostToDamage") or 0, outbox.get("salvaged") or 0
    if not lost and not salvaged:
        return []
    hint = "check the disk; the damaged files are kept beside the outbox, with their date"
    told = f"the outbox was damaged: {salvaged} entries salvaged, {lost} lost"
    return [StatusProblem(CRITICAL, told, hint)]


def _dead_letters(status: Mapping[str, Any], now: int) -> list[StatusProblem]:
    outbox = status["outbox"]
    last_at = outbox.get("lastDeadAt")
    if last_at is None or now - parse_rfc3339(last_at) >= DEAD_FRESH_MS:
        return []
    count = outbox["dead"]
    ago = format_duration(max(0, now - parse_rfc3339(last_at)) / 1000)
    told = f"{count} dead letter{'' if count == 1 else 's'}, the last one {ago} ago"
    hint = "`outboxd dead-letters` says why; mend that, then `outboxd dead-letters retry --all`"
    return [StatusProblem(WARNING, told, hint)]


def _listener(status: Mapping[str, Any], now: int) -> list[StatusProblem]:
    """Of a gateway: what keeps its producers out, or soon will."""
    gateway = status.get("gateway")
    if gateway is None:
        return []
    found = [
        StatusProblem(CRITICAL if one["keepsOut"] else WARNING, one["message"], one["hint"])
        for one in gateway["troubles"]
    ]
    if gateway["address"] is None:
        hint = "`outboxd check` says why; hosts keep their events meanwhile"
        found.append(StatusProblem(CRITICAL, "the gateway's address is not open", hint))
    ends_at = gateway["certificateEndsAt"]
    left_ms = CERTIFICATE_SOON_MS if ends_at is None else parse_rfc3339(ends_at) - now
    hint = "renew it; it is taken over while the gateway runs"
    if left_ms <= 0:
        found.append(StatusProblem(CRITICAL, "the gateway's certificate has expired", hint))
    elif left_ms < CERTIFICATE_SOON_MS:
        told = f"the gateway's certificate ends in {format_duration(left_ms / 1000)}"
        found.append(StatusProblem(WARNING, told, hint))
    return found


def _gateway(gateway: GatewayStatus) -> dict[str, Any]:
    callers = gateway.callers
    return {
        "address": gateway.address,
        "connections": gateway.connections,
        "connectionsMax": gateway.connections_max,
        "connectionsPerPeer": gateway.connections_per_peer,
        "tokens": gateway.tokens,
        "certificateEndsAt": _time(gateway.certificate_ends_at),
        "troubles": [
            {"message": one.message, "hint": one.hint, "keepsOut": one.keeps_out}
            for one in gateway.troubles
        ],
        "producers": [_producer(producer) for producer in callers.producers],
        "producersLeftOut": callers.producers_left_out,
        "unauthenticated": callers.unauthenticated,
        "strangers": [
            {"peer": one.peer, "reason": one.reason, "count": one.requests, "at": _time(one.at)}
            for one in callers.strangers
        ],
    }


def _producer(producer: ProducerSeen) -> dict[str, Any]:
    return {
        "name": producer.name,
        "accepted": producer.accepted,
        "acceptedAt": _time(producer.accepted_at),
        "refused": [_refused(one) for one in producer.refused],
        "wrongClocks": [
            {"host": one.host or None, "aheadMs": one.ahead_ms, "at": _time(one.at)}
            for one in producer.clocks
        ],
    }


def _refused(one: RefusedEvents) -> dict[str, Any]:
    return {"reason": one.reason, "count": one.events, "at": _time(one.at), "told": one.told}


def _told(gateway: Gateway | None) -> dict[str, float] | None:
    """What a gateway says of itself."""
    if gateway is None:
        return None
    return {
        "dedupSeconds": gateway.dedup_s,
        "eventTypeMax": gateway.event_type_max,
        "eventBytesMax": gateway.event_bytes_max,
    }


def _delivers(status: Mapping[str, Any]) -> bool:
    """Whether this agent does, and not another that shares its outbox."""
    return bool(status.get("deliverer", {"here": True})["here"])


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
