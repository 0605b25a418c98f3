"""What all tests share: the pytest options, and the tools that some need."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from support import seeds

seeds.settle_hypothesis()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the full durability figures")
    parser.addoption(
        "--soak", action="store_true", help="the hour-long soak as well, and other seeds"
    )


def pytest_configure() -> None:
    """A shell starts what it puts in the background with these ignored, nohup with
    SIGHUP, and every child inherits that; here they mean what they mean at a terminal.
    What has a handler, as SIGHUP here, means that to what a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that has a short form and full figures is found with `-m full`, and one that
    is marked as long is among the full figures alone."""
    seeds.seed_hypothesis(items)
    for item in items:
        is_long = item.get_closest_marker("long") is not None
        if is_long or "full" in getattr(item, "fixturenames", ()):
            item.add_marker("full")
        if is_long and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="it is among the full figures: --full"))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the full figures are wanted rather than the short form."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What the test draws from; a failing one shows how to draw the same again."""
    number = seeds.seed_of(request.node)
    option = " --full" if request.config.getoption("--full") else ""
    print(f"again: OUTBOXD_SEED={number} python -m pytest{option} '{request.node.nodeid}'")
    return number


@pytest.fixture
def own_garbage() -> Iterator[None]:
    """For what measures its own processor time: the collector looks at nothing that was there
    before, such as six thousand tests, which takes it a second now and then."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def need():
    """Call with a tool's name: skips where it is missing, fails when all tests must run."""

    def check(tool: str, package: str | None = None) -> str:
        path = shutil.which(tool)
        if path is None:
            reason = f"{tool} is not installed (Debian package {package or tool})"
            if os.environ.get("OUTBOXD_TEST_ALL") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return check
