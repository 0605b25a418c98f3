"""The sandbox from outside: a real process, real requests."""

from __future__ import annotations

import email.utils
import time

import pytest

GOOD = {"eventType": "deploy", "summary": "v2 is out"}
KEYS = {
    *("id", "state", "held", "eventType", "summary", "severity", "scope", "details"),
    *("occurredAt", "receivedAt", "dueAt", "deliveredAt", "source", "dedupKey", "repeats"),
    *("attemptCount", "lastOutcome", "lastStatus", "lastError", "deadReason"),
    "correlatedServices",
}


def test_a_good_event_is_answered_201_with_an_id_and_its_correlated_services(sandbox):
    answer = sandbox.post({**GOOD, "scope": {"namespaces": ["C"], "servicesNames": ["5"]}})
    assert answer.status == 201
    assert answer.json["correlatedServices"] == [
        {"cluster": "A", "namespace": "C", "service": "5"},
        {"cluster": "B", "namespace": "C", "service": "5"},
    ]
    assert [entry["id"] for entry in sandbox.events()] == [answer.json["id"]]


def test_an_event_without_scope_reaches_all_twenty_services_of_the_documentation(sandbox):
    assert len(sandbox.post().json["correlatedServices"]) == 20


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"eventType": "a", "summary": "b", "details": {"n": NaN}}', "not valid JSON"),
        (b'{"eventType": "a", "summary": "b", "details": {"n": "\xff"}}', "not valid JSON"),
        ({"summary": "x"}, "eventType must be a string"),
        ({"eventType": "x"}, "summary must be a string"),
        ({**GOOD, "eventType": ""}, "eventType should not be empty"),
        ({**GOOD, "eventType": "x" * 61}, "eventType must be shorter than or equal to 60"),
        ({**GOOD, "severity": "Warning"}, "severity must be one of"),
        ({**GOOD, "details": []}, "details must be an object"),
        ({**GOOD, "scope": []}, "scope must be an object"),
        ({**GOOD, "scope": {"clusters": "A"}}, "scope.clusters must be an array"),
        ({**GOOD, "scope": {"clusters": [1]}}, "each value in scope.clusters must be a string"),
        ({**GOOD, "scope": {"serviceName": ["1"]}}, "serviceName should not exist"),
        ({**GOOD, "scope": {"serviceNames": ["1"], "servicesNames": ["1"]}}, "not have both"),
        ({**GOOD, "dedupKey": "k"}, "dedupKey should not exist"),
    ],
)
def test_what_komodor_would_refuse_is_answered_400_with_messages_and_not_kept(
    sandbox, event, message
):
    answer = sandbox.post(event)
    assert answer.status == 400
    assert any(message in each for each in answer.json["message"]), answer.json
    assert sandbox.events() == []


@pytest.mark.parametrize("name", ["serviceNames", "servicesNames"])
def test_both_spellings_of_a_scopes_services_are_taken_and_correlated(sandbox, name):
    every = sandbox.post(GOOD).json["correlatedServices"]
    wanted = every[0]["service"]
    answer = sandbox.post({**GOOD, "scope": {name: [wanted]}})
    assert answer.status == 201
    assert {one["service"] for one in answer.json["correlatedServices"]} == {wanted}


def test_all_faults_of_an_event_are_told_at_once(sandbox):
    answer = sandbox.post({"eventType": "", "severity": "bad", "extra": 1})
    assert len(answer.json["message"]) == 4


def test_sixty_characters_are_counted_as_code_points(sandbox):
    assert sandbox.post({**GOOD, "eventType": "ü" * 60}).status == 201
    assert sandbox.post({**GOOD, "eventType": "𝄞" * 61}).status == 400


def test_no_key_is_401_and_any_key_will_do(sandbox):
    assert sandbox.post(key=None).status == 401
    assert sandbox.post(key="").status == 401
    assert sandbox.post(key="whatever").status == 201
    assert sandbox.ask("GET", "/mgmt/v1/apikey/validate", key=None).status == 401
    assert sandbox.ask("GET", "/mgmt/v1/apikey/validate").status == 200


def test_with_a_key_of_its_own_it_takes_no_other(start_sandbox):
    with start_sandbox("--api-key", "right") as sandbox:
        assert sandbox.post(key="right").status == 201
        assert sandbox.post(key="wrong").status == 401
        assert sandbox.ask("GET", "/mgmt/v1/apikey/validate", key="wrong").status == 401


def test_an_entry_has_the_shape_of_the_agents(sandbox):
    details = {"occurredAt": "2026-11-21T23:31:36.123Z", "deliveryAttempts": 3, "host": "a"}
    sandbox.post({**GOOD, "severity": "error", "scope": {"clusters": ["A"]}, "details": details})
    (entry,) = sandbox.events()
    assert entry.keys() >= KEYS
    assert entry["state"] == "delivered"
    assert entry["attemptCount"] == 3
    assert entry["occurredAt"] == details["occurredAt"]
    whole = sandbox.ask("GET", f"/v1/events/{entry['id']}").json
    assert whole["sentBody"]["details"] == details
    assert sandbox.ask("GET", "/v1/events/none").status == 404


def test_numbers_come_back_as_they_were_sent(sandbox):
    details = b'{"big": 123456789012345678901234567890, "far": 1e400, "plain": 1.50}'
    sandbox.post(b'{"eventType": "a", "summary": "b", "details": ' + details + b"}")
    assert details in sandbox.ask("GET", "/v1/events").body


def test_the_list_is_newest_first_and_pages(sandbox):
    for number in range(7):
        sandbox.post({**GOOD, "summary": str(number)})
    first = sandbox.ask("GET", "/v1/events?limit=3").json
    assert [entry["summary"] for entry in first["events"]] == ["6", "5", "4"]
    second = sandbox.ask("GET", f"/v1/events?limit=9&cursor={first['next']}").json
    assert [entry["summary"] for entry in second["events"]] == ["3", "2", "1", "0"]
    assert second["next"] is None
    assert sandbox.ask("GET", "/v1/events?cursor=x").status == 400


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?type=deploy", ["one"]),
        ("?type=deploy&type=backup", ["two", "one"]),
        ("?severity=error", ["two"]),
        ("?cluster=A&namespace=C", ["one"]),
        ("?service=5", ["two"]),
        ("?q=TWO", ["two"]),
        ("?state=delivered", ["two", "one"]),
        ("?state=pending", []),
        ("?since=2020-01-01T00:00:00Z", ["two", "one"]),
        ("?until=2020-01-01T00:00:00Z", []),
    ],
)
def test_each_filter_leaves_what_it_names(sandbox, query, found):
    sandbox.post({**GOOD, "summary": "one", "scope": {"clusters": ["A"], "namespaces": ["C"]}})
    sandbox.post(
        {
            "eventType": "backup",
            "summary": "two",
            "severity": "error",
            "scope": {"servicesNames": ["5"]},
        }
    )
    assert [entry["summary"] for entry in sandbox.events(query)] == found


def test_an_unknown_filter_is_refused_with_the_nearest(sandbox):
    answer = sandbox.ask("GET", "/v1/events?typ=deploy")
    assert (answer.status, answer.json["hint"]) == (400, "did you mean 'type'?")


def test_the_idempotency_key_tells_events_from_their_repetitions(sandbox):
    for key in ("a", "b", "a"):
        sandbox.post(headers={"Idempotency-Key": key})
    summary = sandbox.ask("GET", "/sandbox/summary").json
    assert (summary["received"], summary["distinct"], summary["repeated"]) == (3, 2, 1)
    assert sandbox.ask("GET", "/v1/events/a").json["arrivals"] == [1, 3]


def test_in_an_outage_the_connection_is_reset_and_nothing_is_kept(sandbox):
    assert sandbox.faults(outage=True).json["outage"] is True
    with pytest.raises(ConnectionResetError):
        sandbox.post()
    with pytest.raises(ConnectionResetError):
        sandbox.ask("GET", "/mgmt/v1/apikey/validate")
    assert sandbox.events() == []
    sandbox.faults(outage=False)
    assert sandbox.post().status == 201


def test_a_share_of_failures_is_answered_500_and_not_kept(sandbox):
    sandbox.faults(failRate=1.0)
    assert sandbox.post().status == 500
    assert sandbox.events() == []


def test_a_lost_answer_is_an_event_that_arrived(sandbox):
    sandbox.faults(closeBeforeAnswer=True)
    with pytest.raises(ConnectionResetError):
        sandbox.post()
    assert len(sandbox.events()) == 1


def test_a_status_is_forced_with_its_retry_after_for_so_many_calls(sandbox):
    sandbox.faults(status=503, retryAfter=7, times=2)
    answers = [sandbox.post() for _ in range(3)]
    assert [answer.status for answer in answers] == [503, 503, 201]
    assert answers[0].headers["Retry-After"] == "7"


def test_above_its_rate_calls_are_answered_429(sandbox):
    sandbox.faults(rateLimit=0.001)
    assert [sandbox.post().status for _ in range(3)] == [201, 429, 429]
    assert len(sandbox.events()) == 1


def test_a_captive_portal_answers_200_with_a_page(sandbox):
    sandbox.faults(html=True)
    answer = sandbox.post()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert sandbox.events() == []


def test_latency_delays_the_answer_and_not_the_event(sandbox):
    sandbox.faults(latencyMs=60)  # a timer may be a few ms early
    started_s = time.monotonic()
    assert sandbox.post().status == 201
    assert time.monotonic() - started_s >= 0.05


def test_its_clock_can_be_wrong(sandbox):
    sandbox.faults(dateSkewSeconds=3600)
    date = email.utils.parsedate_to_datetime(sandbox.post().headers["Date"]).timestamp()
    assert 3500 < date - time.time() < 3700


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"failrate": 1}, "did you mean failRate?"),
        ({"failRate": 2}, "between 0 and 1"),
        ({"outage": 1}, "true or false"),
        ({"status": "x"}, "a whole number"),
        ([], "must be an object"),
    ],
)
def test_faults_that_make_no_sense_are_refused_and_change_nothing(sandbox, wanted, message):
    answer = sandbox.ask("POST", "/sandbox/faults", wanted)
    assert answer.status == 400
    assert message in answer.json["error"]
    assert sandbox.post().status == 201


def test_null_and_reset_end_a_fault(sandbox):
    sandbox.faults(status=500, failRate=0.5)
    assert sandbox.faults(status=None).json["failRate"] == 0.5
    sandbox.ask("POST", "/sandbox/reset")
    assert sandbox.ask("GET", "/sandbox/faults").json["failRate"] == 0.0


def test_options_set_the_first_faults_and_the_inventory(start_sandbox, tmp_path):
    inventory = tmp_path / "inventory.toml"
    inventory.write_text('clusters = ["x"]\nnamespaces = ["y"]\nservices = ["z", "w"]\n')
    options = ("--fail-rate", "0.2", "--latency", "80ms", "--inventory", str(inventory))
    with start_sandbox(*options) as sandbox:
        faults = sandbox.ask("GET", "/sandbox/faults").json
        assert (faults["failRate"], faults["latencyMs"]) == (0.2, 80)
        assert sandbox.ask("GET", "/sandbox/inventory").json["services"] == ["z", "w"]
        sandbox.faults(failRate=0)
        assert len(sandbox.post().json["correlatedServices"]) == 2


def test_it_ends_at_once_and_quietly_on_sigterm(start_sandbox):
    with start_sandbox() as sandbox:
        sandbox.faults(hangSeconds=60)
        assert sandbox.stop() == (0, "")
