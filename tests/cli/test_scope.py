"""`outboxd scope`: whom an event would reach."""

from __future__ import annotations

import json

import pytest

from outboxd.cli.main import main


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 20),
        (("--cluster", "A"), 10),
        (("--namespace", "C"), 10),
        (("--service", "1", "--service", "2", "--service", "3"), 12),
        (("--cluster", "B", "--namespace", "D"), 5),
        (("--namespace", "C", "--service", "5"), 2),
        (("--cluster", "nowhere"), 0),
    ],
)
def test_the_documentations_examples(capsys, words, count):
    assert main(["scope", *words, "--json"]) == 0
    services = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(services) == count
    assert all(service.keys() == {"cluster", "namespace", "service"} for service in services)


def test_people_get_a_table_and_are_told_of_names_that_nothing_has(capsys):
    assert main(["scope", "--cluster", "B", "--namespace", "D", "--service", "9"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "0 of 20 services" in shown.err
    assert "no service '9'" in shown.err
    assert main(["scope", "--cluster", "B", "--service", "5"]) == 0
    assert capsys.readouterr().out.split() == [
        *("CLUSTER", "NAMESPACE", "SERVICE", "B", "C", "5", "B", "D", "5")
    ]


def test_an_inventory_that_cannot_be_read_is_named(capsys, tmp_path):
    assert main(["scope", "--inventory", str(tmp_path / "none.toml")]) == 78
    assert "none.toml" in capsys.readouterr().err
