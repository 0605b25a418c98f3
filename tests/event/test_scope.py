"""Komodor's rules of correlation, with the 20 services of its documentation."""

from __future__ import annotations

import pytest

from outboxd.errors import ConfigError
from outboxd.event.scope import Inventory, Service, correlated, parse_inventory

EXAMPLE = Inventory.example()


def names(*triples):
    return [Service(*triple) for triple in triples]


@pytest.mark.parametrize(
    ("scope", "reached"),
    [
        ({}, EXAMPLE.services),
        ({"clusters": ["A"]}, [s for s in EXAMPLE.services if s.cluster == "A"]),
        ({"namespaces": ["C"]}, [s for s in EXAMPLE.services if s.namespace == "C"]),
        (
            {"servicesNames": ["1", "2", "3"]},
            [s for s in EXAMPLE.services if s.service in ("1", "2", "3")],
        ),
        (
            {"clusters": ["B"], "namespaces": ["D"]},
            names(*(("B", "D", number) for number in "12345")),
        ),
        ({"namespaces": ["C"], "servicesNames": ["5"]}, names(("A", "C", "5"), ("B", "C", "5"))),
        ({"clusters": ["A", "B"]}, EXAMPLE.services),
        ({"clusters": [], "namespaces": [], "servicesNames": []}, EXAMPLE.services),
        ({"clusters": ["a"]}, []),
        (
            {"clusters": ["A", "nowhere"], "servicesNames": ["1"], "namespaces": ["D"]},
            names(("A", "D", "1")),
        ),
        ({"clusters": ["A"], "namespaces": ["nowhere"]}, []),
    ],
)
def test_a_scope_reaches_what_the_documentation_says(scope, reached):
    assert correlated(scope, EXAMPLE) == reached


@pytest.mark.parametrize(
    ("scope", "count"),
    [
        ({}, 20),
        ({"clusters": ["A"]}, 10),
        ({"namespaces": ["C"]}, 10),
        ({"servicesNames": ["1", "2", "3"]}, 12),
        ({"clusters": ["B"], "namespaces": ["D"]}, 5),
        ({"namespaces": ["C"], "servicesNames": ["5"]}, 2),
    ],
)
def test_the_documentations_counts_hold(scope, count):
    assert len(correlated(scope, EXAMPLE)) == count


def test_three_lists_mean_every_service_everywhere():
    text = 'clusters = ["x", "y"]\nnamespaces = ["n"]\nservices = ["s", "t"]'
    inventory = parse_inventory(text, "inventory.toml")
    assert [str(s) for s in inventory.services] == ["x/n/s", "x/n/t", "y/n/s", "y/n/t"]
    assert (inventory.clusters, inventory.namespaces, inventory.names) == (
        ["x", "y"],
        ["n"],
        ["s", "t"],
    )


def test_tables_list_the_services_of_each_namespace(tmp_path):
    path = tmp_path / "inventory.toml"
    path.write_text(
        '[clusters.production]\nshop = ["cart", "cart"]\n[clusters.test]\nqa = ["cart"]'
    )
    inventory = Inventory.load(str(path))
    assert [s.as_json() for s in inventory.services] == [
        {"cluster": "production", "namespace": "shop", "service": "cart"},
        {"cluster": "test", "namespace": "qa", "service": "cart"},
    ]


def test_without_a_file_the_inventory_is_the_documentations():
    assert Inventory.load(None).services == EXAMPLE.services


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "clusters is missing"),
        ("a = [", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
        ('clusters = ["A"]\nnamespaces = ["B"]', "services is missing"),
        ('clusters = "A"\nnamespaces = ["B"]\nservices = ["C"]', "clusters is not a list"),
        ('clusters = ["A"]\nnamespaces = ["B"]\nservices = [1]', "services is not a list"),
        ('clusters = ["A"]\nnamespaces = ["B"]\nservices = [""]', "services is not a list"),
        ('cluster = ["A"]', 'unknown key "cluster"'),
        ('services = ["A"]\n[clusters.A]\nB = ["C"]', "both lists and tables"),
        ("[clusters]\nA = 1", '"A" is no table'),
        ("[clusters.A]\nB = 1", "clusters.A.B is not a list"),
    ],
)
def test_a_wrong_inventory_is_refused_with_what_is_wrong(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_inventory(text, "inventory.toml")
    assert said in caught.value.message
    assert caught.value.message.startswith("inventory.toml: ")


def test_an_inventory_has_a_limit():
    lists = "[" + ",".join(f'"{number}"' for number in range(1000)) + "]"
    text = f'clusters = {lists}\nnamespaces = {lists}\nservices = ["a"]'
    with pytest.raises(ConfigError, match="more than 100000 services"):
        parse_inventory(text, "inventory.toml")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Inventory.load(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="directory"):
        Inventory.load(str(tmp_path))
    (tmp_path / "latin1.toml").write_bytes(b'clusters = ["\xe4"]')
    with pytest.raises(ConfigError, match="not UTF-8"):
        Inventory.load(str(tmp_path / "latin1.toml"))
