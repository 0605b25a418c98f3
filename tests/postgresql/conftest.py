"""Fleets of real gateways on servers of the tests' own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from support import clusters
from support.clusters import template  # noqa: F401
from support.gateways import Fleet


@pytest.fixture
def fleet(tmp_path):
    """Makes fleets, and ends them."""
    with ExitStack() as made:

        def make(url: str, **more: object) -> Fleet:
            directory = tmp_path / f"fleet-{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            one = Fleet(directory, url, **more)
            made.callback(one.close)
            return one.start()

        yield make


@pytest.fixture
def node(template):  # noqa: F811
    with clusters.single(template) as one:
        yield one


@pytest.fixture
def only_full(full):
    """Of tests that have no short form: minutes of servers that go down."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before any server is made for it."""
    if "only_full" in item.fixturenames and not item.config.getoption("--full"):
        pytest.skip("one of the full figures (--full)")
