"""One agent after the other, quickly started, before a scripted Komodor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agent import Zygote
from support.outside import Agent, Komodor


@pytest.fixture
def komodor() -> Iterator[Komodor]:
    """A fresh stand-in."""
    komodor = Komodor()
    yield komodor
    komodor.stop()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts agents quickly."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def make_agent(tmp_path: Path, komodor: Komodor, zygote: Zygote) -> Iterator[Callable[..., Agent]]:
    """Starts agents, one at a time, that are killed at the end."""
    made: list[Agent] = []

    def make(
        start: bool = True,
        endpoint: str | None = None,
        environ: dict[str, str] | None = None,
        **sections: Any,
    ) -> Agent:
        # With an environment of its own it is a new interpreter.
        how: dict[str, Any] = {"zygote": zygote} if environ is None else {"environ": environ}
        agent = Agent(tmp_path, endpoint or komodor.url, extra=sections, **how)
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        if agent.pid is not None:
            agent.kill()


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    """One agent with the settings of every day."""
    return make_agent()
