"""Metrics as Prometheus would read them."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outboxd.clock import FakeClock
from outboxd.observe import metrics as module
from outboxd.observe.metrics import Metrics
from outboxd.outbox.model import Counts, Damage, DeadReason, Outcome, Source
from outboxd.status import DestinationState, DestinationStatus


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def metrics(clock):
    return Metrics("1.2.3", clock)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """One sample, as the text form has it."""
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"there is no {name} {labels}")


def samples(metrics: Metrics) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def exercise(metrics: Metrics) -> None:
    """Call everything once."""
    for source in module.SOURCES:
        metrics.accepted(source)
    for reason in module.REFUSALS:
        metrics.refused(reason)
    for outcome in module.OUTCOMES:
        metrics.attempt(outcome, 0.02)
    for reason in module.DEAD_REASONS:
        metrics.dead(reason)
    for limit in module.LIMITS_MET:
        metrics.limit_met(limit)
    for result in module.SPOOL_RESULTS:
        metrics.spool_file(result)
    for action in module.OPERATOR_ACTIONS:
        metrics.operator(action)
    for part in module.PARTS:
        metrics.progress(part)
    metrics.unauthenticated()
    metrics.alerts_truncated(2)
    metrics.token_accepted(module.OTHER, 3)
    for reason in (*module.TOKEN_REFUSALS, module.OTHER):
        metrics.token_refused(module.OTHER, reason, 2)
    metrics.token_clock_wrong(module.OTHER)
    for reason in (*module.USER_REFUSALS, module.OTHER):
        metrics.user_refused(module.OTHER, reason, 2)
    metrics.duplicates()
    metrics.repeats()
    metrics.intake_request(0.001)
    metrics.commit(0.002, 17)
    metrics.pruned(5)
    metrics.delivered(3)
    metrics.delivery_age(0.5)
    metrics.possible_duplicates()
    for outcome in module.OUTCOMES:
        metrics.set_aside(outcome)
    metrics.revived(10)
    metrics.part_failed("page")
    metrics.reload(True)
    metrics.limits(events_max=1000, disk_free_min_bytes=64 << 20)
    metrics.watch(
        counts=lambda: Counts(4, 3, 2, 1),
        oldest_pending_at=lambda: 1,
        damage=lambda: Damage(2, 1),
        outbox_bytes=lambda: 4096,
        wal_bytes=lambda: 100,
        disk_free_bytes=lambda: 1 << 30,
        accepting=lambda: True,
        spool_waiting=lambda: 7,
        connections=lambda: 3,
        destination=lambda: DestinationStatus("https://x", "held", "401", 0, None, 4, 2),
    )


@pytest.mark.parametrize("used", [False, True])
def test_promtool_has_nothing_to_say(metrics, need, used):
    promtool = need("promtool", "prometheus")
    if used:
        exercise(metrics)
    result = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.render(), capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_every_series_is_there_from_the_start(metrics):
    before = set(samples(metrics))
    exercise(metrics)
    assert set(samples(metrics)) == before


def test_every_method_moves_what_it_says(metrics):
    before = samples(metrics)
    exercise(metrics)
    after = samples(metrics)
    still = {
        name[0]
        for name in before
        if before[name] == after[name]
        and name[0].startswith("outboxd_")
        and not name[0].endswith("_bucket")
    }
    # The states that the destination is not in, and what stays 0 in a good run.
    assert still == {
        "outboxd_destination_state",
        "outboxd_part_failures_total",
        "outboxd_config_reloads_total",
        "outboxd_config_reload_refused",
        "outboxd_build_info",
        "outboxd_delivers",  # nobody else could
    }


def test_tokens_are_counted_by_name_up_to_a_bound(metrics):
    metrics.known_tokens(["web"])
    accepted = "outboxd_gateway_events_accepted_total"
    assert value(metrics, accepted, token="web") == 0
    for number in range(200):
        metrics.token_accepted(f"n{number}", 1)
        metrics.token_refused(f"n{number}", "rate", 1)
        metrics.token_refused(f"n{number}", "something new", 1)
    names = [labels for name, *labels in samples(metrics) if name == accepted]
    assert len(names) == module.TOKENS_NAMED_MAX + 1
    assert value(metrics, accepted, token="n98") == 1
    assert value(metrics, accepted, token="other") == 200 - 99
    refused = "outboxd_gateway_events_refused_total"
    assert value(metrics, refused, token="other", reason="rate") == 200 - 99
    assert value(metrics, refused, token="n0", reason="other") == 1


def test_users_who_are_refused_are_counted_by_uid_up_to_a_bound(metrics):
    refused = "outboxd_user_refusals_total"
    assert value(metrics, refused, uid="other", reason="full") == 0
    for number in range(200):
        metrics.user_refused(str(number), "full", 2)
    metrics.user_refused("0", "something new", 1)
    names = {labels for name, *labels in samples(metrics) if name == refused for labels in labels}
    assert len(names) <= (module.USERS_NAMED_MAX + 1) * (len(module.USER_REFUSALS) + 1)
    assert value(metrics, refused, uid="7", reason="full") == 2
    assert value(metrics, refused, uid="other", reason="full") == 2 * (200 - 100)
    assert value(metrics, refused, uid="0", reason="other") == 1


def test_labels_are_those_of_the_model():
    assert set(module.SOURCES) == {source.value for source in Source}
    assert set(module.DEAD_REASONS) == {reason.value for reason in DeadReason}
    # For an expired entry no request is made.
    assert set(module.OUTCOMES) == {outcome.value for outcome in Outcome} - {"expired"}


def test_counts_are_batched(metrics):
    metrics.accepted("batch", 500)
    metrics.accepted("batch", 20)
    assert value(metrics, "outboxd_events_accepted_total", source="batch") == 520
    assert value(metrics, "outboxd_events_accepted_total", source="socket") == 0


def test_an_unknown_label_value_is_counted_as_other(metrics):
    metrics.refused("a reason that nobody thought of")
    assert value(metrics, "outboxd_events_refused_total", reason="other") == 1


def test_a_histogram_has_its_observations_in_the_right_buckets(metrics):
    for duration_s in (0.0001, 0.00011, 0.3, 99):
        metrics.commit(duration_s, 1)
    name = "outboxd_outbox_commit_duration_seconds"
    assert value(metrics, f"{name}_bucket", le="0.0001") == 1
    assert value(metrics, f"{name}_bucket", le="0.00025") == 2
    assert value(metrics, f"{name}_bucket", le="1.0") == 3
    assert value(metrics, f"{name}_bucket", le="+Inf") == 4
    assert value(metrics, f"{name}_count") == 4
    assert value(metrics, f"{name}_sum") == pytest.approx(99.30021)


def test_a_clock_that_went_backwards_gives_no_negative_age(metrics, clock):
    metrics.delivery_age(-5)
    metrics.watch(oldest_pending_at=lambda: clock.wall_ms() + 60_000)
    assert value(metrics, "outboxd_delivery_age_seconds_sum") == 0
    assert value(metrics, "outboxd_oldest_pending_age_seconds") == 0


def test_the_oldest_pending_entry_ages(metrics, clock):
    at = clock.wall_ms()
    metrics.watch(oldest_pending_at=lambda: at)
    clock.advance(90)
    assert value(metrics, "outboxd_oldest_pending_age_seconds") == 90
    metrics.watch(oldest_pending_at=lambda: None)
    assert value(metrics, "outboxd_oldest_pending_age_seconds") == 0


@pytest.mark.parametrize("state", list(DestinationState))
def test_the_destination_is_in_one_state(metrics, state):
    status = DestinationStatus("https://x", state.value, None, 0, None, 8, 3)
    metrics.watch(destination=lambda: status)
    states = {s: value(metrics, "outboxd_destination_state", state=s) for s in DestinationState}
    assert [s for s, is_in in states.items() if is_in] == [state]
    assert value(metrics, "outboxd_destination_held") == (state == "held")
    assert value(metrics, "outboxd_delivery_permits") == 8
    assert value(metrics, "outboxd_delivery_in_flight") == 3


def test_a_reader_that_fails_costs_its_own_values_alone(metrics):
    def fail():
        raise OSError("gone")

    metrics.watch(disk_free_bytes=fail, counts=fail, oldest_pending_at=fail, destination=fail)
    text = metrics.render().decode()
    assert "outboxd_disk_free_bytes NaN" in text
    assert 'outboxd_entries{state="pending"} NaN' in text
    assert "outboxd_oldest_pending_age_seconds NaN" in text
    assert "outboxd_intake_accepting 0.0" in text


def test_a_refused_reload_shows_until_one_is_applied(metrics):
    metrics.reload(False)
    assert value(metrics, "outboxd_config_reload_refused") == 1
    metrics.reload(True)
    assert value(metrics, "outboxd_config_reload_refused") == 0
    assert value(metrics, "outboxd_config_reloads_total", result="refused") == 1


def test_progress_is_a_moment(metrics, clock):
    clock.advance(5)
    metrics.progress("sender")
    name = "outboxd_last_progress_timestamp_seconds"
    assert value(metrics, name, part="sender") == clock.wall_ms() / 1000
    assert value(metrics, name, part="writer") == 0


def test_two_agents_in_one_process_count_apart(metrics):
    other = Metrics()
    other.delivered()
    assert value(metrics, "outboxd_events_delivered_total") == 0


def test_the_process_and_the_build_are_there(metrics):
    assert value(metrics, "process_resident_memory_bytes") > 0
    assert value(metrics, "outboxd_build_info", version="1.2.3") == 1
